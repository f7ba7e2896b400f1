// Package hello is a small workload for WASI preview 1, in C without a library:
// see program/hello.c for what it does and how it is built.
package hello

import _ "embed"

// Program is program/hello.wasm.
//
//go:embed program/hello.wasm
var Program []byte
