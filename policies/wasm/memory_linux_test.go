package wasm

import (
	"bytes"
	"os"
	"runtime"
	"testing"
	"time"
	"unsafe"
)

// holds says whether the process has a mark in its memory at an address. That something is mapped there says nothing: once the place is
// free, Go or the race detector may take it.
func holds(t *testing.T, at uintptr, mark string) bool {
	t.Helper()
	memory, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	got := make([]byte, len(mark))
	_, err = memory.ReadAt(got, int64(at)) // fails where nothing is mapped
	return err == nil && string(got) == mark
}

// A guest's memory keeps its place and its bytes as it grows, ends where its
// limit is, reads as zero when it was freed, and is unmapped when nothing
// refers to it.
func TestMemoryOfGuests(t *testing.T) {
	paid := 0
	m := newMemory(5*pageSize, func(n int) { paid += n })
	if m == nil {
		t.Fatal("no memory")
	}
	first := m.Reallocate(pageSize)
	copy(first, "kept")
	more := m.Reallocate(4 * pageSize)
	if &more[0] != &first[0] || !bytes.HasPrefix(more, []byte("kept")) || len(more) != 4*pageSize || cap(more) != len(more) {
		t.Fatalf("grown to %d bytes at another place or without what was in them: %q", len(more), more[:4])
	}
	if m.Reallocate(6*pageSize) != nil {
		t.Error("grew beyond its limit")
	}
	if paid != 4*pageSize {
		t.Errorf("paid for %d bytes", paid)
	}
	const mark = "of a guest that is gone"
	last := m.all[4*pageSize:] // what the guest has not grown to is not freed
	copy(last, mark)
	at := uintptr(unsafe.Pointer(&last[0]))
	if !holds(t, at, mark) {
		t.Fatal("not mapped")
	}
	m.Free()
	if !bytes.Equal(more, make([]byte, len(more))) {
		t.Error("what was freed is still there")
	}
	runtime.KeepAlive(m)
	for deadline := time.Now().Add(time.Minute); holds(t, at, mark); {
		if time.Now().After(deadline) {
			t.Fatal("nothing refers to the memory, and it is mapped")
		}
		runtime.GC()
	}
}
