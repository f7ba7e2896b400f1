package program

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/tetratelabs/wazero"

	"github.com/quaymaster/quaymaster/runtime/cri/process"
)

// Files in a container's folder.
const (
	RunFile  = "run.json"  // what to run
	SelfFile = "shim.json" // which process runs it: written by that process, which is the only one then
	ExitFile = "exit.json" // how it ended
)

// Shim runs the container of a folder in this process and returns when it
// has ended, its result being in the folder. It prints a line when the folder says
// that the container is this process's.
func Shim(dir string) error {
	debug.SetGCPercent(25)
	s := &Spec{}
	if err := process.ReadFile(filepath.Join(dir, RunFile), s); err != nil {
		return fmt.Errorf("run a wasm container: %w", err)
	}
	if err := process.Claim(filepath.Join(dir, SelfFile)); err != nil {
		return fmt.Errorf("take a wasm container: %w", err)
	}
	fmt.Println("running")
	cache, err := wazero.NewCompilationCacheWithDir(s.Cache)
	if err != nil {
		return err
	}
	ctx := context.Background()
	defer cache.Close(ctx)
	res := Run(ctx, s, cache, false, func(d time.Duration) (<-chan time.Time, func() bool) {
		t := time.NewTimer(d)
		return t.C, t.Stop
	})
	res.Finished = time.Now()
	return process.WriteFile(filepath.Join(dir, ExitFile), res)
}
