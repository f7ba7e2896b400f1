// Package sdk holds the sources of the guest SDKs, for the tools that put them
// beside a new guest.
package sdk

import "embed"

// Files by their path below this folder.
//
//go:embed c/qm.h go/doc.go go/guest.go go/record.go
var Files embed.FS
