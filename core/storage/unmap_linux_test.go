package storage

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
)

// mapped are the bytes of a store's tables that the process has mapped, and that it has resident.
func mapped(t *testing.T, dir string) (size, resident int) {
	t.Helper()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	ours := false
	for line := range strings.Lines(string(smaps)) {
		var kilobytes int
		if field, _, _ := strings.Cut(line, " "); !strings.HasSuffix(field, ":") { // a mapping's first line, with a file or without
			ours = strings.Contains(line, dir) && strings.HasSuffix(line, ".sst\n")
		} else if _, err := fmt.Sscanf(line, "Size: %d kB", &kilobytes); err == nil && ours {
			size += kilobytes << 10
		} else if _, err := fmt.Sscanf(line, "Rss: %d kB", &kilobytes); err == nil && ours {
			resident += kilobytes << 10
		}
	}
	return size, resident
}

// fillTables writes what makes some tables, and tells which values are where.
func fillTables(t *testing.T, s *Store, tables int) map[string]string {
	t.Helper()
	const long = 32 << 10
	values := map[string]string{}
	var group sync.WaitGroup
	for i := range tables * memTable / long {
		key, value := fmt.Sprintf("/k/%05d", i), strings.Repeat(fmt.Sprintf("%08d", i), long/8)
		values[key] = value
		if group.Go(func() { put(t, s, key, value) }); i%64 == 63 {
			group.Wait()
		}
	}
	group.Wait()
	settle(t, s)
	return values
}

func holdsValue(t *testing.T, s *Store, key, value string) {
	t.Helper()
	r, err := s.Etcd().KV.Get(context.Background(), key)
	if err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != value {
		t.Errorf("%s: %d values, %v: not what was written", key, len(r.Kvs), err)
	}
}

// Tables are not resident after they were written, nor after a start has read them, and are read all the same.
func TestTablesAreUnmapped(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	values := fillTables(t, s, 5) // the last of which Badger still has in memory
	pass(t, func() {}, func() bool { size, _ := mapped(t, dir); return size >= 3*memTable })
	few := func(when string) {
		t.Helper()
		pass(t, s.disk.unmap, func() bool { _, resident := mapped(t, dir); return resident < memTable/2 })
		for key, value := range values {
			holdsValue(t, s, key, value)
		}
		if _, resident := mapped(t, dir); resident < memTable {
			t.Errorf("%s: %d bytes are resident when all was read: the test sees nothing", when, resident)
		}
	}
	few("written")
	s.Close()
	s = open(t, Options{Dir: dir})
	if size, resident := mapped(t, dir); size < 3*memTable || resident > size/2 {
		t.Errorf("after the start %d of %d bytes are resident", resident, size)
	}
	few("opened")
}

// What is unmapped while tables come and go is never anything else's memory.
func TestUnmapWhileTablesComeAndGo(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	done := make(chan struct{})
	var unmapping sync.WaitGroup
	unmapping.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				s.disk.unmap()
			}
		}
	})
	kept := make([][]byte, 64) // memory of ours, as large as what comes and goes
	for round := range 3 {
		for i := range kept {
			kept[i] = []byte(strings.Repeat(string(rune('a'+i%26)), 256<<10))
		}
		values := fillTables(t, s, 3)
		if err := s.disk.merge(s.rev); err != nil {
			t.Fatal(err)
		}
		for key, value := range values {
			if rand.IntN(4) == 0 {
				holdsValue(t, s, key, value)
			}
		}
		for i, memory := range kept {
			if strings.Trim(string(memory), string(rune('a'+i%26))) != "" {
				t.Errorf("round %d: memory was taken", round)
			}
		}
	}
	close(done)
	unmapping.Wait()
}
