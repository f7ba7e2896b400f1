// Package qm is the guest SDK of ABI qm/1 for Go, the standard toolchain and
// TinyGo; docs/abi.md is the reference, docs/sdk/go.md the guide. A guest is a
// main package that registers its functions in an init function, with package
// columns (one call for all nodes), rows (one for each) or admission, and is
// built with
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -trimpath -ldflags="-s -w" -o policy.wasm .
//	tinygo build -target=wasip1 -buildmode=c-shared -no-debug -o policy.wasm .
//
// Its manifest goes into the custom section "qm.manifest". What a function is
// handed is guest memory of the host's: it is valid until the function returns,
// and only verdicts, scores and the answer may be written.
package qm
