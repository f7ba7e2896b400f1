package wasm

import (
	"runtime"

	"github.com/tetratelabs/wazero/experimental"
	"golang.org/x/sys/unix"
)

// memory of one guest: addresses for all that it may have, to which the kernel
// gives pages as they are touched. It grows without a copy, and none of it is
// the collector's to account for; both would hold up others.
type memory struct{ all []byte }

// newMemory returns nil where the kernel has no addresses to give.
func newMemory(most uint64) *memory {
	all, err := unix.Mmap(-1, 0, int(most), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil
	}
	_ = unix.Madvise(all, unix.MADV_NOHUGEPAGE) // a guest of one page is to take one
	m := &memory{all}
	runtime.AddCleanup(m, func(all []byte) { _ = unix.Munmap(all) }, all)
	return m
}

// Reallocate implements experimental.LinearMemory.
func (m *memory) Reallocate(size uint64) []byte {
	if size > uint64(len(m.all)) {
		return nil
	}
	return m.all[:size:size]
}

// Free implements experimental.LinearMemory. It gives back the pages; the
// addresses stay until nothing refers to m, so that no mistake of the host's can
// reach what is not its own.
func (m *memory) Free() { _ = unix.Madvise(m.all, unix.MADV_DONTNEED) }

// allocate gives the instance its memory, and holds on to it.
func (in *instance) allocate(room, most uint64) experimental.LinearMemory {
	if m := newMemory(most); m != nil {
		in.linear = m
		return m
	}
	return &heapMemory{make([]byte, 0, room)}
}

// heapMemory is Go's.
type heapMemory struct{ buffer []byte }

// Reallocate implements experimental.LinearMemory.
func (m *heapMemory) Reallocate(size uint64) []byte {
	m.buffer = append(m.buffer, make([]byte, size-uint64(len(m.buffer)))...)
	return m.buffer
}

// Free implements experimental.LinearMemory.
func (m *heapMemory) Free() {}
