package wasm

import (
	"runtime"
	"slices"

	"github.com/tetratelabs/wazero/experimental"
	"golang.org/x/sys/unix"
)

// untouched bytes at the start of a memory get their pages when the guest comes to
// them; the rest has them before the guest is let in. A first store into a page
// costs the guest 3 fuel and the kernel microseconds, in which nothing can stop
// it: the pages of one slice would be 50 ms.
const untouched = 1 << 20

// freeChunk bytes are given back at once. 250 MB take the kernel 5 ms, in which
// this thread does nothing else.
const freeChunk = 4 << 20

// memory of one guest: addresses for all that it may have, to which the kernel
// gives pages as they are touched. It grows without a copy, and none of it is
// the collector's to account for; both would hold up others.
type memory struct {
	all  []byte
	used int       // the guest's so far
	pay  func(int) // is called for the bytes that it grows by; may panic
}

// newMemory returns nil where the kernel has no addresses to give.
func newMemory(most uint64, pay func(int)) *memory {
	all, err := unix.Mmap(-1, 0, int(most), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil
	}
	_ = unix.Madvise(all, unix.MADV_NOHUGEPAGE) // a guest of one page is to take one
	m := &memory{all: all, pay: pay}
	runtime.AddCleanup(m, func(all []byte) { _ = unix.Munmap(all) }, all)
	return m
}

// Reallocate implements experimental.LinearMemory.
func (m *memory) Reallocate(size uint64) []byte {
	if size > uint64(len(m.all)) {
		return nil
	}
	for at := m.used; at < int(size); at += pageSize {
		m.pay(pageSize)
		if at >= untouched {
			for page := at; page < at+pageSize; page += 4096 {
				m.all[page] = 0
			}
		}
	}
	m.used = int(size)
	return m.all[:size:size]
}

// Free implements experimental.LinearMemory. It gives back the pages; the
// addresses stay until nothing refers to m, so that no mistake of the host's can
// reach what is not its own.
func (m *memory) Free() {
	for part := range slices.Chunk(m.all[:m.used], freeChunk) {
		_ = unix.Madvise(part, unix.MADV_DONTNEED)
		runtime.Gosched()
	}
}

// allocate gives the instance its memory, and holds on to it. What it begins with
// is not charged, what it grows by is, as if it were filled.
func (in *instance) allocate(room, most uint64) experimental.LinearMemory {
	pay := func(bytes int) {
		if in.meter.global == nil {
			runtime.Gosched()
			return
		}
		in.meter.chargeBytes(bytes)
	}
	if m := newMemory(most, pay); m != nil {
		in.linear = m
		return m
	}
	return &heapMemory{make([]byte, 0, room), pay}
}

// heapMemory is Go's.
type heapMemory struct {
	buffer []byte
	pay    func(int)
}

// Reallocate implements experimental.LinearMemory.
func (m *heapMemory) Reallocate(size uint64) []byte {
	m.pay(int(size) - len(m.buffer))
	m.buffer = append(m.buffer, make([]byte, size-uint64(len(m.buffer)))...)
	return m.buffer
}

// Free implements experimental.LinearMemory.
func (m *heapMemory) Free() {}
