package policy

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// watcher says that something in some directories may have changed: by file
// events, and by the clock where there are none (no inotify, network file systems).
type watcher struct {
	logger *slog.Logger

	mu   sync.Mutex
	fs   *fsnotify.Watcher // nil: only the clock
	dirs map[string]bool
}

func newWatcher(logger *slog.Logger) *watcher {
	w := &watcher{logger: logger, dirs: map[string]bool{}}
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		logger.Warn("no file events, files are looked at every so often instead", "error", err)
		return w
	}
	w.fs = fs
	return w
}

func (w *watcher) close() {
	if w.fs != nil {
		_ = w.fs.Close()
	}
}

// addDirs adds the directories where a change can change what path reads: its
// own, and those along its symbolic links.
func addDirs(dirs map[string]bool, path string) {
	dirs[filepath.Dir(path)] = true
	if real, err := filepath.EvalSymlinks(path); err == nil {
		dirs[filepath.Dir(real)] = true
	}
}

// watch sets the directories. One that cannot be watched is left to the clock
// and tried again at the next call.
func (w *watcher) watch(dirs map[string]bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fs == nil {
		return
	}
	for dir := range dirs {
		if !w.dirs[dir] && w.fs.Add(dir) == nil {
			w.dirs[dir] = true
		}
	}
	for dir := range w.dirs {
		if !dirs[dir] {
			_ = w.fs.Remove(dir) // it may be gone
			delete(w.dirs, dir)
		}
	}
}

// run calls changed until ctx ends: once the directories have been quiet for a
// while after an event, every poll, and as long after the last call (at first, after first) as that asked for.
func (w *watcher) run(ctx context.Context, first, quiet, poll time.Duration, changed func() time.Duration) {
	var events chan fsnotify.Event
	var failures chan error
	if w.fs != nil {
		events, failures = w.fs.Events, w.fs.Errors
	}
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	settle := time.NewTimer(time.Hour)
	settle.Stop()
	defer settle.Stop()
	again := func(after time.Duration) {
		if after > 0 {
			settle.Reset(after)
		}
	}
	again(first)
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			if e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename) {
				w.forget(e.Name)
			}
			settle.Reset(quiet)
		case err, ok := <-failures:
			if !ok {
				failures = nil
				continue
			}
			w.logger.Warn("file events", "error", err)
			settle.Reset(quiet) // events may have been lost
		case <-settle.C:
			again(changed())
		case <-ticker.C:
			again(changed())
		}
	}
}

// forget makes the next watch add a directory again that went away.
func (w *watcher) forget(dir string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.dirs, dir)
}
