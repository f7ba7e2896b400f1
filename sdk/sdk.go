// Package sdk holds the sources of the guest SDKs, for the tools that put them
// beside a new guest.
package sdk

import "embed"

// Files by their path below this folder.
//
//go:embed c/qm.h go/*.go go/columns go/rows go/admission rust/Cargo.toml rust/src
//go:embed assemblyscript/package.json assemblyscript/package-lock.json assemblyscript/assembly
var Files embed.FS
