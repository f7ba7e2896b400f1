package wasm

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"
)

// mapped says whether the process has a mapping that begins at an address.
func mapped(t *testing.T, at uintptr) bool {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		from, rest, _ := strings.Cut(line, "-")
		to, _, _ := strings.Cut(rest, " ")
		first, _ := strconv.ParseUint(from, 16, 64)
		end, _ := strconv.ParseUint(to, 16, 64)
		if uint64(at) >= first && uint64(at) < end {
			return true
		}
	}
	return false
}

// A guest's memory keeps its place and its bytes as it grows, ends where its
// limit is, reads as zero when it was freed, and is unmapped when nothing
// refers to it.
func TestMemoryOfGuests(t *testing.T) {
	paid := 0
	m := newMemory(4*pageSize, func(n int) { paid += n })
	if m == nil {
		t.Fatal("no memory")
	}
	first := m.Reallocate(pageSize)
	copy(first, "kept")
	more := m.Reallocate(4 * pageSize)
	if &more[0] != &first[0] || !bytes.HasPrefix(more, []byte("kept")) || len(more) != 4*pageSize || cap(more) != len(more) {
		t.Fatalf("grown to %d bytes at another place or without what was in them: %q", len(more), more[:4])
	}
	if m.Reallocate(5*pageSize) != nil {
		t.Error("grew beyond its limit")
	}
	if paid != 4*pageSize {
		t.Errorf("paid for %d bytes", paid)
	}
	at := uintptr(unsafe.Pointer(&first[0]))
	if !mapped(t, at) {
		t.Fatal("not mapped")
	}
	m.Free()
	if !bytes.Equal(more, make([]byte, len(more))) {
		t.Error("what was freed is still there")
	}
	runtime.KeepAlive(m)
	for deadline := time.Now().Add(time.Minute); mapped(t, at); {
		if time.Now().After(deadline) {
			t.Fatal("nothing refers to the memory, and it is mapped")
		}
		runtime.GC()
	}
}
