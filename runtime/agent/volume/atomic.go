package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// content is one generated file.
type content struct {
	data []byte
	mode fs.FileMode
}

// current is the link that names the present generation of a volume's files.
const current = "..data"

// publish makes files the contents of a folder in one step, as upstream does: they are
// written to a folder of their own, to which the link ..data is then turned; each name
// that containers see is a link through it. What is the same already is left as it is.
func publish(dir string, files map[string]content, group *int64) (err error) {
	root, err := os.OpenRoot(dir) // no item's path leads out of the volume
	if err != nil {
		return err
	}
	defer root.Close()
	before, _ := root.Readlink(current)
	if before != "" && same(root, before, files) {
		return nil
	}
	next, err := os.MkdirTemp(dir, "..generation-")
	if err != nil {
		return err
	}
	name := filepath.Base(next)
	defer func() {
		if err != nil {
			err = errors.Join(err, root.RemoveAll(name))
		}
	}()
	if err := os.Chmod(next, 0o755); err != nil {
		return err
	}
	for _, path := range slices.Sorted(maps.Keys(files)) {
		if !filepath.IsLocal(path) || strings.HasPrefix(path, "..") {
			return fmt.Errorf("path %q escapes from the volume", path)
		}
		at := filepath.Join(name, path)
		if err := root.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			return err
		}
		mode := files[path].mode
		if err := root.WriteFile(at, files[path].data, 0o600); err != nil {
			return err
		}
		if group != nil {
			if err := root.Chown(at, -1, int(*group)); err != nil {
				return err
			}
			mode |= 0o440
		}
		if err := root.Chmod(at, mode); err != nil { // whatever the umask
			return err
		}
	}
	if err := root.Symlink(name, current+"-new"); err != nil {
		return err
	}
	if err := root.Rename(current+"-new", current); err != nil {
		return err
	}
	return errors.Join(links(root, files), removeOld(root, before))
}

// same tells whether a generation has exactly these files.
func same(root *os.Root, name string, files map[string]content) bool {
	seen := 0
	err := fs.WalkDir(root.FS(), name, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		want, ok := files[strings.TrimPrefix(path, name+"/")]
		have, err := root.ReadFile(path)
		if err != nil || !ok || !bytes.Equal(want.data, have) {
			return errors.New("another file")
		}
		seen++
		return nil
	})
	return err == nil && seen == len(files)
}

// links makes the names at the top of the volume, and removes those that are no more.
func links(root *os.Root, files map[string]content) error {
	top := map[string]bool{}
	for path := range files {
		first, _, _ := strings.Cut(filepath.ToSlash(path), "/")
		top[first] = true
	}
	var errs []error
	for name := range top {
		want := filepath.Join(current, name)
		if have, err := root.Readlink(name); err == nil && have == want {
			continue
		}
		_ = root.RemoveAll(name)
		errs = append(errs, root.Symlink(want, name))
	}
	entries, err := fs.ReadDir(root.FS(), ".")
	errs = append(errs, err)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "..") && !top[e.Name()] {
			errs = append(errs, root.Remove(e.Name()))
		}
	}
	return errors.Join(errs...)
}

func removeOld(root *os.Root, name string) error {
	if name == "" {
		return nil
	}
	return root.RemoveAll(name)
}
