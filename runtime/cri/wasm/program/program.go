// Package program runs one WebAssembly program for WASI preview 1: in the process
// of who calls Run, or as the whole of a small process beside the backend (Shim).
// As there is one of these a container, it imports wazero and the standard library
// alone, and so takes little memory (see cmd/quaymaster/early).
package program

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/tetratelabs/wazero"
	experimentalsys "github.com/tetratelabs/wazero/experimental/sys"
	"github.com/tetratelabs/wazero/experimental/sysfs"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"

	"github.com/quaymaster/quaymaster/runtime/cri/logfile"
)

// pageSize is WebAssembly's, in bytes; a module has at most 65,536 of them.
const (
	pageSize = 64 << 10
	maxPages = 1 << 16
)

// Exit codes of programs that did not end by themselves: those of a process
// killed by SIGKILL and by SIGABRT.
const (
	ExitKilled  = 137
	exitTrapped = 134
)

// Spec is all that a run needs: what a shim is given.
type Spec struct {
	Module      string      `json:"module"` // path of the .wasm file
	Cache       string      `json:"cache"`  // folder of compiled modules
	Args        []string    `json:"args"`
	Env         [][2]string `json:"env,omitempty"`
	Mounts      []Mount     `json:"mounts,omitempty"`
	MemoryLimit int64       `json:"memoryLimit,omitempty"` // bytes; 0 = none
	Log         string      `json:"log,omitempty"`         // path; "" = no log
}

// Mount is a folder of the host that a program sees.
type Mount struct {
	Host     string `json:"host"`
	Guest    string `json:"guest"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Result is how a run ended.
type Result struct {
	Code     int32     `json:"code"`
	Reason   string    `json:"reason"`
	Message  string    `json:"message,omitempty"`
	Finished time.Time `json:"finished"`
}

// Ended is the result of a program that ended with a code.
func Ended(code int32, message string) Result {
	reason := "Completed"
	if code != 0 {
		reason = "Error"
	}
	return Result{Code: code, Reason: reason, Message: message}
}

// newRuntime returns a runtime with a memory limit. One whose runs can be
// cancelled costs some speed in loops: a process can be killed instead.
func newRuntime(ctx context.Context, s *Spec, cache wazero.CompilationCache, cancellable bool) (wazero.Runtime, wazero.CompiledModule, error) {
	config := wazero.NewRuntimeConfig().WithCompilationCache(cache).WithCloseOnContextDone(cancellable)
	if s.MemoryLimit > 0 {
		pages := min(s.MemoryLimit/pageSize, maxPages)
		if pages == 0 {
			return nil, nil, fmt.Errorf("the memory limit of %d bytes is less than one page of 64Ki", s.MemoryLimit)
		}
		config = config.WithMemoryLimitPages(uint32(pages))
	}
	code, err := os.ReadFile(s.Module)
	if err != nil {
		return nil, nil, err
	}
	rt := wazero.NewRuntimeWithConfig(ctx, config)
	mod, err := rt.CompileModule(ctx, code)
	if err != nil {
		_ = rt.Close(ctx)
		return nil, nil, fmt.Errorf("compile the module: %w", err)
	}
	return rt, mod, nil
}

// Check compiles a module and looks whether it is a WASI command.
func Check(ctx context.Context, s *Spec, cache wazero.CompilationCache, cancellable bool) error {
	rt, mod, err := newRuntime(ctx, s, cache, cancellable)
	if err != nil {
		return err
	}
	defer rt.Close(ctx)
	if _, ok := mod.ExportedFunctions()["_start"]; !ok {
		return errors.New("the module exports no function _start: it is no WASI command")
	}
	for _, f := range mod.ImportedFunctions() {
		if module, name, _ := f.Import(); module != wasi_snapshot_preview1.ModuleName {
			return fmt.Errorf("the module imports %s.%s, and only %s is offered", module, name, wasi_snapshot_preview1.ModuleName)
		}
	}
	return nil
}

// Timer is a clock's: what fires after a time, and what stops it.
type Timer func(time.Duration) (<-chan time.Time, func() bool)

// Run runs a program to its end or, if it is cancellable, the context's.
func Run(ctx context.Context, s *Spec, cache wazero.CompilationCache, cancellable bool, timer Timer) Result {
	log, err := logfile.Open(s.Log, time.Now)
	if err != nil {
		return Result{Code: 128, Reason: "StartError", Message: err.Error()}
	}
	defer log.Close()
	stdout, stderr := log.Stream(logfile.Stdout), log.Stream(logfile.Stderr)
	defer func() { _, _ = stdout.Close(), stderr.Close() }()

	background := context.Background()
	rt, mod, err := newRuntime(background, s, cache, cancellable)
	if err != nil {
		return Result{Code: 128, Reason: "StartError", Message: err.Error()}
	}
	defer rt.Close(background)
	if err := offerWASI(background, rt); err != nil {
		return Result{Code: 128, Reason: "StartError", Message: err.Error()}
	}
	files := wazero.NewFSConfig()
	for _, m := range s.Mounts {
		root, err := os.OpenRoot(m.Host)
		if err != nil {
			return Result{Code: 128, Reason: "StartError", Message: fmt.Sprintf("mount %s: %v", m.Guest, err)}
		}
		defer root.Close()
		var dir experimentalsys.FS = &jail{FS: sysfs.DirFS(m.Host), root: root}
		if m.ReadOnly {
			dir = &sysfs.ReadFS{FS: dir}
		}
		files = files.(sysfs.FSConfig).WithSysFSMount(dir, m.Guest)
	}
	config := wazero.NewModuleConfig().WithName("").WithArgs(s.Args...).WithStdout(stdout).WithStderr(stderr).WithFSConfig(files).
		WithSysWalltime().WithSysNanotime().WithRandSource(rand.Reader).WithNanosleep(func(ns int64) { sleep(ctx, timer, time.Duration(ns)) })
	for _, e := range s.Env {
		config = config.WithEnv(e[0], e[1])
	}
	_, err = rt.InstantiateModule(ctx, mod, config)
	var exit *sys.ExitError
	switch {
	case ctx.Err() != nil:
		return Ended(ExitKilled, "")
	case err == nil:
		return Ended(0, "")
	case errors.As(err, &exit):
		return Ended(int32(exit.ExitCode()&0xff), "")
	}
	text := strings.TrimPrefix(err.Error(), "module[] function[_start] failed: ")
	message, _, _ := strings.Cut(text, "\n")
	_, _ = io.WriteString(stderr, text+"\n")
	return Ended(exitTrapped, message)
}

// sleep is the program's; the end of the container ends it.
func sleep(ctx context.Context, timer Timer, d time.Duration) {
	fired, stop := timer(d)
	defer stop()
	select {
	case <-ctx.Done():
	case <-fired:
	}
}

// jail keeps a program inside a mounted folder: WASI refuses paths with "..",
// and here no link leads out, nor can one be made.
type jail struct {
	experimentalsys.FS
	root *os.Root
}

// inside tells whether a path, or the folder of one that is not there, is in the mount.
func (j *jail) inside(name string) experimentalsys.Errno {
	name = strings.TrimSuffix(name, "/")
	if name == "" || name == "." {
		return 0
	}
	_, err := j.root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		if _, lerr := j.root.Lstat(name); lerr == nil {
			return experimentalsys.EPERM // a link to nowhere
		}
		_, err = j.root.Stat(path.Dir(name))
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, fs.ErrNotExist):
		return experimentalsys.ENOENT
	case errors.Is(err, fs.ErrPermission):
		return experimentalsys.EACCES
	}
	return experimentalsys.EPERM
}

func (j *jail) OpenFile(name string, flag experimentalsys.Oflag, perm fs.FileMode) (experimentalsys.File, experimentalsys.Errno) {
	if errno := j.inside(name); errno != 0 {
		return nil, errno
	}
	return j.FS.OpenFile(name, flag, perm)
}

func (j *jail) Stat(name string) (sys.Stat_t, experimentalsys.Errno) {
	if errno := j.inside(name); errno != 0 {
		return sys.Stat_t{}, errno
	}
	return j.FS.Stat(name)
}

func (j *jail) Lstat(name string) (sys.Stat_t, experimentalsys.Errno) {
	if errno := j.inside(path.Dir(name)); errno != 0 {
		return sys.Stat_t{}, errno
	}
	return j.FS.Lstat(name)
}

func (j *jail) Mkdir(name string, perm fs.FileMode) experimentalsys.Errno {
	if errno := j.inside(name); errno != 0 {
		return errno
	}
	return j.FS.Mkdir(name, perm)
}

func (j *jail) Rename(from, to string) experimentalsys.Errno {
	for _, name := range []string{path.Dir(from), path.Dir(to)} {
		if errno := j.inside(name); errno != 0 {
			return errno
		}
	}
	return j.FS.Rename(from, to)
}

func (j *jail) Rmdir(name string) experimentalsys.Errno {
	if errno := j.inside(path.Dir(name)); errno != 0 {
		return errno
	}
	return j.FS.Rmdir(name)
}

func (j *jail) Unlink(name string) experimentalsys.Errno {
	if errno := j.inside(path.Dir(name)); errno != 0 {
		return errno
	}
	return j.FS.Unlink(name)
}

func (j *jail) Chmod(name string, perm fs.FileMode) experimentalsys.Errno {
	if errno := j.inside(name); errno != 0 {
		return errno
	}
	return j.FS.Chmod(name, perm)
}

func (j *jail) Utimens(name string, atim, mtim int64) experimentalsys.Errno {
	if errno := j.inside(name); errno != 0 {
		return errno
	}
	return j.FS.Utimens(name, atim, mtim)
}

func (j *jail) Link(string, string) experimentalsys.Errno    { return experimentalsys.EPERM }
func (j *jail) Symlink(string, string) experimentalsys.Errno { return experimentalsys.EPERM }
