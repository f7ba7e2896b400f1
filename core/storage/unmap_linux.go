package storage

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
	"golang.org/x/sys/unix"
)

// unmap drops the pages of Badger's tables from the process: they stay in the kernel's
// cache, and come back as they are read. A table is written, merged and read at start
// through its mapping, and would be resident whole from then on.
//
// Badger gives up a table whenever a merge has replaced it, and then its addresses may be
// another's, whose memory this would take. An iterator holds the tables that are there when it is
// made; a table that is there before and after is one of them, for numbers are used once.
func (d *disk) unmap() {
	before := d.files()
	txn := d.db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	held := txn.NewIterator(badger.IteratorOptions{})
	defer held.Close()
	after := d.files()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return // more is resident, nothing else
	}
	for line := range strings.Lines(string(maps)) {
		at := strings.IndexByte(line, '/')
		if at < 0 {
			continue
		}
		var begin, end uintptr
		file := strings.TrimSuffix(line[at:], "\n")
		if !before[file] || !after[file] {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x rw-s", &begin, &end); err == nil { // shared: what was written is the file's
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, begin, end-begin, unix.MADV_DONTNEED) // all goes on without
		}
	}
}

// files are the paths of Badger's tables, as the kernel has them.
func (d *disk) files() map[string]bool {
	dir, err := filepath.Abs(d.db.Opts().Dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return nil
	}
	files := map[string]bool{}
	for _, t := range d.db.Tables() {
		files[filepath.Join(dir, table.IDToFilename(t.ID))] = true
	}
	return files
}
