package storage

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// RestoreGap is how many revisions a restored store leaves out after the last
// one of its backups. The store that was backed up may have gone on and clients
// may know those revisions: they are never given away again. It is etcd's advice
// for a restore.
const RestoreGap = 1_000_000_000

// Verify is Keys.Verify without keys.
func Verify(files ...io.Reader) (Info, error) { return Keys{}.Verify(files...) }

// RestoreOptions say what Restore makes.
type RestoreOptions struct {
	// Dir is where the store is to be. It must not exist, or be empty.
	Dir string
	// To is the revision whose state is restored; 0: where the backups end.
	To int64
	// KeyFile holds the key that the store is encrypted with, as Options.KeyFile;
	// it is made when missing. "" leaves the store in the clear.
	KeyFile string
	// Keys open encrypted backups. Those in KeyFile need not be named.
	Keys Keys
	// Clear allows encrypted backups to become a store in the clear; else ErrClear.
	Clear bool
}

// Restore makes a store from a full backup and the increments that follow it.
// Keys keep their revisions; the store's own goes on RestoreGap above the last
// one of the backups, and what came before is compacted: whoever watched has to
// read again. The directory appears whole or not at all. It fails with ErrExists
// when it is not empty, with ErrEncrypted when a key is missing, with ErrClear, and
// as Verify.
func Restore(opts RestoreOptions, files ...io.Reader) (info Info, err error) {
	if err := vacant(opts.Dir); err != nil {
		return info, err
	}
	dir, err := filepath.Abs(opts.Dir)
	if err != nil {
		return info, fmt.Errorf("storage: restore: %w", err)
	}
	parent := filepath.Dir(dir)
	if _, missing := os.Stat(parent); missing != nil {
		defer func() {
			if err != nil {
				_ = os.Remove(parent) // made for nothing
			}
		}()
	}
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return info, fmt.Errorf("storage: restore: %w", err)
	}
	temporary, err := os.MkdirTemp(parent, "."+filepath.Base(dir)+"-restore-*")
	if err != nil {
		return info, fmt.Errorf("storage: restore: %w", err)
	}
	defer os.RemoveAll(temporary)
	if info, err = restore(temporary, opts, files); err != nil {
		return info, err
	}
	if err := os.Rename(temporary, dir); err != nil {
		return info, fmt.Errorf("storage: restore: %w", err)
	}
	if err := syncDir(parent); err != nil {
		return info, fmt.Errorf("storage: restore: %w", err)
	}
	return info, nil
}

func vacant(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("storage: restore: %w", err)
	case len(entries) > 0:
		return fmt.Errorf("storage: restore: %s %w: it holds %s; choose a new directory or move that away", dir, ErrExists, entries[0].Name())
	}
	return nil
}

func restore(dir string, opts RestoreOptions, files []io.Reader) (info Info, err error) {
	if _, err := checkFormat(dir); err != nil {
		return info, err
	}
	c := chain{keys: opts.Keys}
	if opts.KeyFile != "" {
		c.keys = c.keys.with(opts.KeyFile)
	}
	_, missing := os.Stat(opts.KeyFile)
	key, err := unlock(dir, opts.KeyFile)
	if err != nil {
		return info, err
	}
	if opts.KeyFile != "" && missing != nil {
		defer func() {
			if err != nil {
				err = errors.Join(err, os.Remove(opts.KeyFile)) // made for nothing
			}
		}()
	}
	d, err := openDisk(dir, 64<<20, key, slog.New(slog.DiscardHandler))
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, d.close(true)) }()

	to := opts.To
	leases := map[int64][]byte{}
	used := map[int64]struct{}{}
	var waiting []*pending
	size := 0
	flush := func() error {
		err := d.store(waiting, nil)
		waiting, size = waiting[:0], 0
		return err
	}
	first := true
	c.head = func(one Info) error {
		if one.Key != "" && key == nil && !opts.Clear {
			return ErrClear
		}
		if !first {
			return nil
		}
		first = false
		switch {
		case one.Since != 0:
			return fmt.Errorf("%w: it begins with the increment since revision %d; begin with a full backup", ErrOrder, one.Since)
		case to != 0 && to < one.Revision:
			return fmt.Errorf("restore to revision %d: %w: the full backup is of revision %d", to, ErrCompacted, one.Revision)
		}
		return nil
	}
	info, err = c.read(files, func(r *restored) error {
		switch {
		case r.lease != 0:
			leases[r.lease] = r.expiry
			return nil
		case to != 0 && r.rev > to:
			return nil
		}
		if r.kv != nil && r.kv.Lease != 0 {
			used[r.kv.Lease] = struct{}{}
		}
		waiting = append(waiting, &r.pending)
		if size += r.size(); size >= maxBytes || len(waiting) >= maxCount {
			return flush()
		}
		return nil
	})
	if err == nil && to > info.Revision {
		err = fmt.Errorf("storage: restore to revision %d: %w: the backups end at %d", to, ErrFuture, info.Revision)
	}
	if err == nil {
		err = flush()
	}
	if err != nil {
		return info, err
	}
	next := info.Revision + RestoreGap
	for id := range used {
		// A lease that the last backup did not know had ended: so will its keys.
		if leases[id] == nil {
			leases[id] = encodeLease(1, time.UnixMilli(0))
		}
	}
	for id, lease := range leases {
		if err := d.put(leaseKey(id), lease, uint64(next)); err != nil {
			return info, err
		}
	}
	return info, d.put(compactKey, strconv.AppendInt(nil, next, 10), uint64(next))
}

// chain reads a backup and what follows it.
type chain struct {
	keys   Keys
	closed bool             // an encrypted one whose key is missing is only read through
	head   func(Info) error // called for each with its head; may be nil
}

// read calls do for everything in the files.
func (c chain) read(files []io.Reader, do func(*restored) error) (all Info, err error) {
	if len(files) == 0 {
		return all, errors.New("storage: no backup is given")
	}
	for i, file := range files {
		name := fmt.Sprintf("backup %d", i+1)
		if named, ok := file.(interface{ Name() string }); ok {
			name = named.Name()
		}
		d := &decoder{r: bufio.NewReaderSize(file, 256<<10), done: all.Revision}
		if err := d.head(); err != nil {
			return all, fmt.Errorf("storage: %s: %w", name, err)
		}
		one := &d.info
		switch {
		case i == 0:
			all = *one
		case one.Store != all.Store:
			err = fmt.Errorf("%w: it is of another store than those before", ErrOrder)
		case one.Since == 0:
			err = fmt.Errorf("%w: it is a full backup, which only the first can be", ErrOrder)
		case one.Since > all.Revision:
			err = fmt.Errorf("%w: it begins at revision %d, those before end at %d; the one between is missing", ErrOrder, one.Since, all.Revision)
		case one.Revision < all.Revision:
			err = fmt.Errorf("%w: it ends at revision %d, those before at %d", ErrOrder, one.Revision, all.Revision)
		}
		if err == nil && c.head != nil {
			err = c.head(*one)
		}
		switch {
		case err != nil:
		case one.Key != "":
			err = d.sealed(c, do)
		default:
			err = d.records(do)
		}
		if err != nil {
			return all, fmt.Errorf("storage: %s: %w", name, err)
		}
		if i == 0 {
			all.Changes, all.Bytes = 0, 0
		}
		all.Revision, all.Created, all.Key = one.Revision, one.Created, one.Key
		all.Changes += one.Changes
		all.Bytes += one.Bytes
	}
	return all, nil
}
