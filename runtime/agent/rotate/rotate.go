// Package rotate keeps the logs of running containers within bounds: a log that
// has grown too large is put aside, the runtime is told to begin a new one, and
// older ones are compressed and, in the end, removed.
package rotate

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/utils/clock"
)

// Upstream's defaults: bytes of a log, logs of a container with the present one, and how often they are looked at.
const (
	MaxSize  = 10 << 20
	MaxFiles = 5
	Period   = 10 * time.Second
)

// Options of New. The zero value of a bound is upstream's default.
type Options struct {
	MaxSize  int64
	MaxFiles int
	// Reopen tells the runtime to open a container's log again.
	Reopen func(ctx context.Context, id string) error
	Clock  clock.PassiveClock
}

// Rotator rotates logs.
type Rotator struct{ opts Options }

// New returns a rotator.
func New(opts Options) *Rotator {
	if opts.MaxSize == 0 {
		opts.MaxSize = MaxSize
	}
	if opts.MaxFiles == 0 {
		opts.MaxFiles = MaxFiles
	}
	return &Rotator{opts}
}

// stamp is in the name of a log that was put aside: PATH.20060102-150405, with .gz once it is compressed.
const stamp = "20060102-150405"

const compressed, unfinished = ".gz", ".tmp"

// Log rotates a running container's log, if it is too large. It may be repeated after a failure.
func (r *Rotator) Log(ctx context.Context, id, path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		// Put aside by an attempt that failed: the runtime still writes to it.
		if old, globErr := Aside(path); globErr == nil && len(old) > 0 {
			return r.opts.Reopen(ctx, id)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("rotate the log of container %s: %w", id, err)
	}
	if info.Size() < r.opts.MaxSize {
		return nil
	}
	if err := r.clean(path); err != nil {
		return fmt.Errorf("rotate the log of container %s: %w", id, err)
	}
	aside := path + "." + r.opts.Clock.Now().UTC().Format(stamp)
	for n := 1; exists(aside) || exists(aside+compressed); n++ {
		aside = fmt.Sprintf("%s.%s-%d", path, r.opts.Clock.Now().UTC().Format(stamp), n)
	}
	if err := os.Rename(path, aside); err != nil {
		return fmt.Errorf("rotate the log of container %s: %w", id, err)
	}
	if err := r.opts.Reopen(ctx, id); err != nil {
		return errors.Join(fmt.Errorf("reopen the log of container %s: %w", id, err), os.Rename(aside, path))
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Aside returns the logs that were put aside for a container's log, the oldest first.
func Aside(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(path)+".") {
			out = append(out, filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
	slices.SortFunc(out, func(a, b string) int {
		return strings.Compare(strings.TrimSuffix(a, compressed), strings.TrimSuffix(b, compressed))
	})
	return out, nil
}

// clean removes what is too old, so that there is room for one more, and compresses what
// is left.
func (r *Rotator) clean(path string) error {
	logs, err := Aside(path)
	if err != nil {
		return err
	}
	var errs []error
	logs = slices.DeleteFunc(logs, func(log string) bool {
		if !strings.HasSuffix(log, unfinished) {
			return false
		}
		errs = append(errs, os.Remove(log))
		return true
	})
	for len(logs) > max(r.opts.MaxFiles-2, 0) {
		errs = append(errs, os.Remove(logs[0]))
		logs = logs[1:]
	}
	for _, log := range logs {
		if !strings.HasSuffix(log, compressed) {
			errs = append(errs, compress(log))
		}
	}
	return errors.Join(errs...)
}

func compress(path string) (err error) {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	temporary := path + unfinished
	out, err := os.OpenFile(temporary, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	w := gzip.NewWriter(out)
	_, err = io.Copy(w, in)
	if err = errors.Join(err, w.Close(), out.Close()); err == nil {
		err = os.Rename(temporary, path+compressed)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	return os.Remove(path)
}
