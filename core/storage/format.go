package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// formatFile names the layout of a directory, apart from the version of the
// program: a line with formatName and a number.
const (
	formatFile = "FORMAT"
	formatName = "quaymaster-store"
	format     = 3
)

// The formats:
//
//	1  the first
//	2  revisions have times, which are stored under markPrefix
//	3  the journal has what Badger may lack

// migrations bring a directory of a format to the next one. Each may be cut short
// and begun again.
var migrations = map[int]func(opts Options, d *disk) error{
	1: func(opts Options, d *disk) error {
		// The times of what came before are not known, but that it was until now.
		rev := max(1, int64(d.db.MaxVersion()))
		m := mark{at: opts.Clock.Now().UnixMilli(), rev: rev}
		return d.put(markKey(rev), encodeMark(m), uint64(rev))
	},
	2: func(Options, *disk) error { return nil }, // but an older version would not read the journal
}

// migrate brings a directory to the present format, step by step.
func migrate(opts Options, d *disk, from int) error {
	for first := from; from < format; from++ {
		opts.Opening(fmt.Sprintf("format %d to %d", first, format), int64(from-first), int64(format-first))
		opts.Logger.Info("storage: bring the directory to a newer format", "dir", opts.Dir, "from", from, "to", from+1, "of", format)
		err := migrations[from](opts, d)
		if err == nil {
			err = writeFormat(opts.Dir, from+1)
		}
		if err != nil {
			return fmt.Errorf("from format %d to %d: %w", from, from+1, err)
		}
		opts.Opening(fmt.Sprintf("format %d to %d", first, format), int64(from+1-first), int64(format-first))
	}
	return nil
}

// checkFormat prepares dir and gives its format, or says why it is not to be
// touched.
func checkFormat(dir string) (int, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, fmt.Errorf("storage: %w", err)
	}
	path := filepath.Join(dir, formatFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return format, createFormat(dir)
	}
	if err != nil {
		return 0, fmt.Errorf("storage: %w", err)
	}
	number, ok := strings.CutPrefix(strings.TrimSpace(string(data)), formatName+" ")
	n, err := strconv.Atoi(number)
	switch {
	case !ok || err != nil || n < 1:
		return 0, fmt.Errorf("storage: %s is %w: its file %s says %q; choose another directory", dir, ErrForeign, formatFile, data)
	case n > format:
		return 0, fmt.Errorf("storage: %s was %w: its format is %d, this one knows up to %d; use that version", dir, ErrNewerFormat, n, format)
	}
	return n, nil
}

func createFormat(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("storage: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), formatFile) {
			return fmt.Errorf("storage: %s is %w: it holds %s; choose an empty directory", dir, ErrForeign, e.Name())
		}
	}
	return writeFormat(dir, format)
}

// writeFormat writes the file whole or not at all.
func writeFormat(dir string, n int) error {
	temp, err := os.CreateTemp(dir, formatFile+"-*")
	if err != nil {
		return fmt.Errorf("storage: %w", err)
	}
	defer os.Remove(temp.Name())
	_, err = fmt.Fprintf(temp, "%s %d\n", formatName, n)
	if err = errors.Join(err, temp.Sync(), temp.Close()); err == nil {
		err = os.Rename(temp.Name(), filepath.Join(dir, formatFile))
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("storage: prepare %s: %w", dir, err)
	}
	return nil
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
