// Package plugins holds the shipped guests as they were built, for programs
// that want to load them without a file.
package plugins

import _ "embed"

// PreferLabel1 and PreferLabel2 are two versions of c/prefer-label.
var (
	//go:embed c/prefer-label/prefer-label-v1.wasm
	PreferLabel1 []byte
	//go:embed c/prefer-label/prefer-label-v2.wasm
	PreferLabel2 []byte
)
