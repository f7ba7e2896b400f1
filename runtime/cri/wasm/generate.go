package wasm

//go:generate clang-19 --target=wasm32-unknown-unknown -Oz -nostdlib -fno-builtin -mbulk-memory -Wl,--no-entry,--export=_start,--strip-all,-z,stack-size=8192,--initial-memory=131072 -o testdata/hello.wasm testdata/hello.c
