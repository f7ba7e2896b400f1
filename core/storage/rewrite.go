package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
)

// Progress is told now and then how many bytes of a long work are done, of about
// how many.
type Progress func(done, total int64)

// Rewrite copies a store with all its history into new files and puts them in
// the place of the old ones: encrypted with a new key in the file newKey, or in
// the clear when that is "". oldKey is the file of the present key, "" when
// there is none; it may be the same. What was garbage is gone. The store must be
// closed; its disk needs room for a second one. It is whole at any moment: who
// interrupts Rewrite finds the old one.
func Rewrite(dir, oldKey, newKey string, tell Progress) (err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("storage: rewrite: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, formatFile)); err != nil {
		return fmt.Errorf("storage: rewrite %s: %w", dir, err)
	}
	key, err := unlock(dir, oldKey)
	if err != nil {
		return err
	}
	from, err := openDisk(dir, 64<<20, key, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	closed := false
	defer func() {
		if !closed {
			err = errors.Join(err, from.close(true))
		}
	}()
	temporary, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+"-rewrite-*")
	if err != nil {
		return fmt.Errorf("storage: rewrite: %w", err)
	}
	defer os.RemoveAll(temporary)
	into := newKey
	if newKey != "" {
		// The old key's file keeps the old key until the files have changed places.
		into = newKey + nextKey
		if err := os.Remove(into); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("storage: rewrite: %w", err)
		}
		before, err := readKeys(newKey) // they open backups, or another store
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("storage: rewrite: %w", err)
		}
		if _, err := makeKey(into, before...); err != nil {
			return fmt.Errorf("storage: rewrite: %w", err)
		}
	}
	if err := rewrite(from, temporary, into, tell); err != nil {
		return fmt.Errorf("storage: rewrite %s: %w", dir, err)
	}
	closed = true
	if err := from.close(true); err != nil {
		return fmt.Errorf("storage: rewrite %s: %w", dir, err)
	}
	if err := exchange(temporary, dir); err != nil {
		return fmt.Errorf("storage: rewrite %s: %w", dir, err)
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return fmt.Errorf("storage: rewrite %s: %w", dir, err)
	}
	if newKey == "" {
		return nil
	}
	_, err = unlock(dir, newKey) // puts the new key in its place
	return err
}

func rewrite(from *disk, dir, keyFile string, tell Progress) (err error) {
	if _, err := checkFormat(dir); err != nil {
		return err
	}
	key, err := unlock(dir, keyFile)
	if err != nil {
		return err
	}
	to, err := openDisk(dir, 64<<20, key, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.close(true)) }()
	lsm, vlog := from.db.Size()
	total, done, told := lsm+vlog, int64(0), int64(0)

	txn := from.db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{AllVersions: true, PrefetchValues: true, PrefetchSize: 64})
	defer it.Close()
	batch, size, count := to.db.NewManagedWriteBatch(), 0, 0
	flush := func() error {
		err := batch.Flush()
		batch, size, count = to.db.NewManagedWriteBatch(), 0, 0
		return err
	}
	for it.Rewind(); it.Valid(); it.Next() {
		item := it.Item()
		k := item.KeyCopy(nil)
		if bytes.Equal(k, journalKey) {
			continue // it has one of its own
		}
		if item.IsDeletedOrExpired() {
			err = batch.DeleteAt(k, item.Version())
		} else {
			var value []byte
			if value, err = item.ValueCopy(nil); err == nil {
				err = batch.SetEntryAt(badger.NewEntry(k, value).WithMeta(item.UserMeta()), item.Version())
			}
			size += min(len(value), inline)
			done += int64(len(value))
		}
		if err != nil {
			batch.Cancel()
			return err
		}
		size, done = size+len(k), done+int64(len(k))
		if count++; size >= maxBytes || count >= maxCount {
			if err := flush(); err != nil {
				return err
			}
		}
		if tell != nil && done-told >= 1<<20 {
			told = done
			tell(done, max(total, done))
		}
	}
	if err := flush(); err != nil {
		return err
	}
	return to.logger.unsynced()
}
