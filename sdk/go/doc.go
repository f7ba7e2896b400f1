// Package qm is the guest SDK of ABI qm/1 for the standard Go toolchain;
// docs/abi.md is the reference. A guest is a main package that calls Register
// in an init function and is built with
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -trimpath -ldflags="-s -w" -o policy.wasm .
//
// Its manifest goes into the custom section "qm.manifest". What a callback is
// handed is guest memory of the host's: it is valid until the callback returns,
// and only verdicts and scores may be written.
package qm
