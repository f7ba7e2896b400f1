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
	format     = 1
)

// checkFormat prepares dir, or says why it is not to be touched.
func checkFormat(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("storage: %w", err)
	}
	path := filepath.Join(dir, formatFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return createFormat(dir, path)
	}
	if err != nil {
		return fmt.Errorf("storage: %w", err)
	}
	number, ok := strings.CutPrefix(strings.TrimSpace(string(data)), formatName+" ")
	n, err := strconv.Atoi(number)
	switch {
	case !ok || err != nil || n < 1:
		return fmt.Errorf("storage: %s is %w: its file %s says %q; choose another directory", dir, ErrForeign, formatFile, data)
	case n > format:
		return fmt.Errorf("storage: %s was %w: its format is %d, this one knows up to %d; use that version", dir, ErrNewerFormat, n, format)
	}
	return nil
}

func createFormat(dir, path string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("storage: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), formatFile) {
			return fmt.Errorf("storage: %s is %w: it holds %s; choose an empty directory", dir, ErrForeign, e.Name())
		}
	}
	// Written whole or not at all.
	temp, err := os.CreateTemp(dir, formatFile+"-*")
	if err != nil {
		return fmt.Errorf("storage: %w", err)
	}
	defer os.Remove(temp.Name())
	_, err = fmt.Fprintf(temp, "%s %d\n", formatName, format)
	if err = errors.Join(err, temp.Sync(), temp.Close()); err == nil {
		err = os.Rename(temp.Name(), path)
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
