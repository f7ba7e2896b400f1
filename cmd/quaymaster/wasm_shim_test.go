package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/quaymaster/quaymaster/core/coretest"
	"github.com/quaymaster/quaymaster/examples/hello"
	"github.com/quaymaster/quaymaster/runtime/cri/process"
	"github.com/quaymaster/quaymaster/runtime/cri/wasm/program"
)

// TestWasmShimIsSmall bounds what the process of a WebAssembly container has of
// memory for itself: only package early gets it that small.
func TestWasmShimIsSmall(t *testing.T) {
	if testing.Short() {
		t.Skip("the bound is that of an ordinary build; -short is used with the race detector")
	}
	dir := t.TempDir()
	spec := program.Spec{
		Module: filepath.Join(dir, "hello.wasm"), Cache: filepath.Join(dir, "cache"), Log: filepath.Join(dir, "log"),
		Args: []string{"hello", "--sleep", "100000000"},
	}
	if err := os.WriteFile(spec.Module, hello.Program, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := process.WriteFile(filepath.Join(dir, program.RunFile), spec); err != nil {
		t.Fatal(err)
	}
	if _, err := command(t.Context(), t, "backend", "wasm-shim", t.TempDir()).Output(); err == nil {
		t.Error("a folder without a container is run")
	}
	// The first compiles, the second finds what it compiled, as every container does.
	for _, compiles := range []bool{true, false} {
		cmd := command(t.Context(), t, "backend", "wasm-shim", dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		coretest.Eventually(t, "the program's greeting", func(context.Context) (bool, error) {
			log, _ := os.ReadFile(spec.Log) // it is made when the program starts
			return bytes.Contains(log, []byte("hello from hello")), nil
		})
		own := float64(memoryOf(t, cmd.Process.Pid, "RssAnon"))
		t.Logf("compiling: %t; a shim has %.1f MiB for itself", compiles, own/(1<<20))
		if !compiles && own > maxShim {
			t.Errorf("more than %d: what initialises itself before package early?", maxShim>>20)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it says that it was killed
		for _, name := range []string{filepath.Join(dir, program.SelfFile), spec.Log} {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
	}
}
