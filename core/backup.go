package core

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"github.com/quaymaster/quaymaster/core/storage"
)

// BackupPath is where the API server hands out backups: GET, with since=R for
// an increment. Who may read it may read every secret: nobody but system:masters
// may unless a role names it among its nonResourceURLs.
const BackupPath = "/backup"

// Backup writes the engine's objects at one revision, which it returns, while
// the engine works. since above 0 asks for what happened after that revision
// alone; see Options.History. With Options.StoreKey the backup is encrypted with
// that key: storage.Keys opens it. Keys and certificates below DataDir/pki, node
// data and policy files are no objects: copy them as files.
func (e *Engine) Backup(ctx context.Context, w io.Writer, since int64) (int64, error) {
	if e.parts.embedded == nil {
		return 0, fmt.Errorf("back up: %w; use etcdctl snapshot save", ErrNoHistory)
	}
	return e.parts.embedded.Backup(ctx, w, since)
}

// Restore makes the objects of an engine that is to use dataDir from a full
// backup and increments; opts.Dir is not looked at. The engine keeps what else is
// in dataDir but must not have objects there. Objects keep their UIDs and resource
// versions, new ones are higher than any before.
func Restore(dataDir string, opts storage.RestoreOptions, files ...io.Reader) (storage.Info, error) {
	opts.Dir = filepath.Join(dataDir, "store")
	return storage.Restore(opts, files...)
}

// stall is how long a reader of a backup may take for one megabyte, about.
const stall = time.Minute

// backup serves BackupPath.
func (p *parts) backup(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "a backup is read with GET", http.StatusMethodNotAllowed)
		return
	}
	if p.embedded == nil {
		http.Error(w, "back up: "+ErrNoHistory.Error()+"; use etcdctl snapshot save", http.StatusNotImplemented)
		return
	}
	since := int64(0)
	if text := r.URL.Query().Get("since"); text != "" {
		var err error
		if since, err = strconv.ParseInt(text, 10, 64); err != nil || since < 1 {
			http.Error(w, fmt.Sprintf("since=%q is no revision", text), http.StatusBadRequest)
			return
		}
	}
	out := &backupWriter{w: w, control: http.NewResponseController(w)}
	_, err := p.embedded.Backup(r.Context(), out, since)
	switch {
	case err == nil:
	case out.begun: // the reader misses the trailer
		p.options.Logger.Warn("a backup was cut short", "error", err)
	case errors.Is(err, storage.ErrCompacted):
		http.Error(w, err.Error(), http.StatusGone)
	case errors.Is(err, storage.ErrFuture):
		http.Error(w, err.Error(), http.StatusBadRequest)
	default:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// backupWriter begins the answer with the first bytes, and gives up on a reader
// that has stalled.
type backupWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	begun   bool
}

func (b *backupWriter) Write(data []byte) (int, error) {
	if !b.begun {
		b.begun = true
		b.w.Header().Set("Content-Type", "application/octet-stream")
	}
	if err := b.control.SetWriteDeadline(time.Now().Add(stall)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return b.w.Write(data)
}
