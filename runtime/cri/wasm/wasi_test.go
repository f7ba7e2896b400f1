package wasm_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const openParams = "\x7f\x7f\x7f\x7f\x7f\x7e\x7e\x7f\x7f"

// again is a program that calls a function of WASI with the arguments, which code
// leaves on the stack, until the answer is not success, and exits with it. It has
// 100 MiB of memory, "note" at 16, and path_open as function 2.
func again(function, params string, code []byte) []byte {
	uleb := func(n int) []byte { return binary.AppendUvarint(nil, uint64(n)) }
	name := func(s string) []byte { return append(uleb(len(s)), s...) }
	section := func(id byte, parts ...[]byte) []byte {
		content := slices.Concat(parts...)
		return slices.Concat([]byte{id}, uleb(len(content)), content)
	}
	wasi := name("wasi_snapshot_preview1")
	body := slices.Concat([]byte{1, 1, 0x7f, 0x03, 0x40}, code, []byte{0x10, 0, 0x22, 0, 0x45, 0x0d, 0, 0x0b, 0x20, 0, 0x10, 1, 0x0b})
	return slices.Concat([]byte("\x00asm\x01\x00\x00\x00"),
		section(1, []byte{4, 0x60}, name(params), []byte{1, 0x7f, 0x60, 1, 0x7f, 0, 0x60, 0, 0, 0x60}, name(openParams), []byte{1, 0x7f}),
		section(2, []byte{3}, wasi, name(function), []byte{0, 0}, wasi, name("proc_exit"), []byte{0, 1}, wasi, name("path_open"), []byte{0, 3}),
		section(3, []byte{1, 2}),
		section(5, []byte{1, 0}, uleb(1600)),
		section(7, []byte{2}, name("memory"), []byte{2, 0}, name("_start"), []byte{0, 3}),
		section(10, []byte{1}, uleb(len(body)), body),
		section(11, []byte{1, 0, 0x41, 16, 0x0b}, name("note")))
}

// A program takes from the process that it runs in, which may be the node's, what
// its memory limit says and little more: no table as long as a number it gives,
// no copies of a path as long as its memory, no files without end.
func TestProgramsAreBounded(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "note"), []byte("a note\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	i32 := func(values ...int64) (code []byte) {
		for _, v := range values {
			code = append(code, 0x41)
			for ; v >= 64; v >>= 7 {
				code = append(code, byte(v)|0x80)
			}
			code = append(code, byte(v))
		}
		return code
	}
	open := func(path, length int64) []byte {
		return slices.Concat(i32(3, 0, path, length, 0), []byte{0x42, 2, 0x42, 0}, i32(0, 64))
	}
	shim := shimCommand(t)
	for _, tt := range []struct {
		name, function, params string
		code                   []byte
		errno                  int32
	}{
		{"a file of any number", "fd_renumber", "\x7f\x7f", slices.Concat(open(16, 4), []byte{0x10, 2, 0x1a}, i32(4, 1<<31-1)), 8},
		{"a path of 99 MiB", "path_open", openParams, open(1024, 99<<20), 37},
		{"files without end", "path_open", openParams, open(16, 4), 33},
		{"a folder's long name", "path_create_directory", "\x7f\x7f\x7f", i32(3, 1024, 99<<20), 37},
		{"a link's long name", "path_symlink", "\x7f\x7f\x7f\x7f\x7f", i32(16, 4, 3, 1024, 4097), 37},
		{"a million subscriptions", "poll_oneoff", "\x7f\x7f\x7f\x7f", i32(1024, 64<<20, 1<<20, 64), 28},
	} {
		for where, command := range map[string][]string{"InProcess": nil, "Process": shim} {
			t.Run(tt.name+" "+where, func(t *testing.T) {
				b := newWasm(t, t.TempDir(), command)
				defer b.Close()
				if _, err := b.Images().Import("hostile", bytes.NewReader(again(tt.function, tt.params, tt.code))); err != nil {
					t.Fatal(err)
				}
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				p, err := start(t, b, func(c *runtimeapi.ContainerConfig) {
					c.Image.Image = "hostile"
					c.Linux.Resources.MemoryLimitInBytes = 128 << 20
					c.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/"}}
				})
				if err != nil {
					t.Fatal(err)
				}
				if st := p.ended(); st.ExitCode != tt.errno {
					t.Errorf("exit code %d (%s), expected %d", st.ExitCode, st.Message, tt.errno)
				}
				runtime.ReadMemStats(&after)
				if used := after.TotalAlloc - before.TotalAlloc; used > 160<<20 {
					t.Errorf("%d bytes were allocated for a program of 100 MiB", used)
				}
				if p, err = start(t, b, func(c *runtimeapi.ContainerConfig) { c.Args = []string{"--lines", "1"} }); err != nil {
					t.Fatal(err)
				}
				if st := p.ended(); st.ExitCode != 0 || p.text() != "stdout: hello from hello\nstdout: line 1\n" {
					t.Errorf("the next program: exit code %d, %q", st.ExitCode, p.text())
				}
			})
		}
	}
}
