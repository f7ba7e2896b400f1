package storage

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

// A crash left longer tables in memory, as they were once: as they were written, and cut by a start that crashed, too.
func TestLongerTablesAfterCrash(t *testing.T) {
	const longer = 7 << 20
	for name, cut := range map[string]bool{"as written": false, "cut": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			opts := badger.DefaultOptions(dir).WithLogger(nil).WithMemTableSize(longer).WithValueThreshold(1 << 20).WithValueLogFileSize(4 << 20)
			db, err := badger.OpenManaged(opts)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			values := map[string]string{}
			for i := range 20 {
				values[fmt.Sprintf("/k/%02d", i)] = strings.Repeat(fmt.Sprintf("%08d", i), longer/8/24)
			}
			batch := db.NewManagedWriteBatch()
			for key, value := range values {
				if err := batch.SetEntryAt(badger.NewEntry([]byte(key), []byte(value)), 1); err != nil {
					t.Fatal(err)
				}
			}
			if err := batch.Flush(); err != nil {
				t.Fatal(err)
			}
			crashed := image(t, dir)
			logs, err := filepath.Glob(filepath.Join(crashed, "*.mem"))
			if err != nil || len(logs) != 1 {
				t.Fatalf("%d logs, %v", len(logs), err)
			}
			if cut {
				if err := os.Truncate(logs[0], longer); err != nil {
					t.Fatal(err)
				}
			}
			d, err := openDisk(crashed, 64<<20, nil, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := d.close(true); err != nil {
					t.Error(err)
				}
			}()
			for key, value := range values {
				if got, err := d.meta([]byte(key)); err != nil || string(got) != value {
					t.Errorf("%s: %d bytes, %v: not what was written", key, len(got), err)
				}
			}
		})
	}
}
