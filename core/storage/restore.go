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

	"github.com/dgraph-io/badger/v4"
)

// RestoreGap is how many revisions a restored store leaves out after the last
// one of its backups. The store that was backed up may have gone on and clients
// may know those revisions: they are never given away again. It is etcd's advice
// for a restore.
const RestoreGap = 1_000_000_000

// Verify reads backups, an increment after what it follows, and tells what they
// hold. It fails with ErrDamaged, ErrOrder or ErrNewerFormat. The first may be
// an increment. A reader with a method Name() string is called by that name.
func Verify(files ...io.Reader) (Info, error) {
	return readChain(files, func(*restored) error { return nil })
}

// Restore makes a store in dir from a full backup and the increments that
// follow it. It is at the state of revision to, or where they end when to is 0.
// Keys keep their revisions; the store's own goes on RestoreGap above the last
// one of the backups, and what came before is compacted: whoever watched has to
// read again. dir must not exist, or be empty (ErrExists otherwise); it appears
// whole or not at all.
func Restore(dir string, to int64, files ...io.Reader) (info Info, err error) {
	if err := vacant(dir); err != nil {
		return info, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return info, fmt.Errorf("storage: restore: %w", err)
	}
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return info, fmt.Errorf("storage: restore: %w", err)
	}
	temporary, err := os.MkdirTemp(parent, "."+filepath.Base(dir)+"-restore-*")
	if err != nil {
		return info, fmt.Errorf("storage: restore: %w", err)
	}
	defer os.RemoveAll(temporary)
	if info, err = restore(temporary, to, files); err != nil {
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

func restore(dir string, to int64, files []io.Reader) (info Info, err error) {
	if _, err := checkFormat(dir); err != nil {
		return info, err
	}
	d, err := openDisk(dir, 64<<20, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, d.close()) }()

	full := int64(0)
	leases := map[int64][]byte{}
	used := map[int64]struct{}{}
	var waiting []*pending
	size := 0
	flush := func() error {
		err := d.batch(func(b *badger.WriteBatch) error {
			for _, c := range waiting {
				if err := set(b, c); err != nil {
					return err
				}
			}
			return nil
		})
		waiting, size = waiting[:0], 0
		return err
	}
	info, err = readChain(files, func(r *restored) error {
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
	}, func(first Info) error {
		full = first.Revision
		switch {
		case first.Since != 0:
			return fmt.Errorf("%w: it begins with the increment since revision %d; begin with a full backup", ErrOrder, first.Since)
		case to != 0 && to < full:
			return fmt.Errorf("storage: restore to revision %d: %w: the full backup is of revision %d", to, ErrCompacted, full)
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

// readChain calls do for everything in the files, and begin with the first head.
func readChain(files []io.Reader, do func(*restored) error, begin ...func(Info) error) (chain Info, err error) {
	if len(files) == 0 {
		return chain, errors.New("storage: no backup is given")
	}
	for i, file := range files {
		name := fmt.Sprintf("backup %d", i+1)
		if named, ok := file.(interface{ Name() string }); ok {
			name = named.Name()
		}
		d := &decoder{r: bufio.NewReaderSize(file, 256<<10), done: chain.Revision}
		if err := d.head(); err != nil {
			return chain, fmt.Errorf("storage: %s: %w", name, err)
		}
		one := &d.info
		switch {
		case i == 0:
			chain = *one
			for _, check := range begin {
				if err := check(*one); err != nil {
					return chain, fmt.Errorf("storage: %s: %w", name, err)
				}
			}
		case one.Store != chain.Store:
			err = fmt.Errorf("%w: it is of another store than those before", ErrOrder)
		case one.Since == 0:
			err = fmt.Errorf("%w: it is a full backup, which only the first can be", ErrOrder)
		case one.Since > chain.Revision:
			err = fmt.Errorf("%w: it begins at revision %d, those before end at %d; the one between is missing", ErrOrder, one.Since, chain.Revision)
		case one.Revision < chain.Revision:
			err = fmt.Errorf("%w: it ends at revision %d, those before at %d", ErrOrder, one.Revision, chain.Revision)
		}
		if err == nil {
			err = d.records(do)
		}
		if err != nil {
			return chain, fmt.Errorf("storage: %s: %w", name, err)
		}
		if i == 0 {
			chain.Changes, chain.Bytes = 0, 0
		}
		chain.Revision, chain.Created = one.Revision, one.Created
		chain.Changes += one.Changes
		chain.Bytes += one.Bytes
	}
	return chain, nil
}
