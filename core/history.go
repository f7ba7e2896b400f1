package core

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/quaymaster/quaymaster/core/storage"
)

// Moment of an engine's past: a revision, or a time when Revision is 0.
type Moment struct {
	Revision int64
	Time     time.Time
}

// Revision is the state that objects had at a revision of the store.
func Revision(revision int64) Moment { return Moment{Revision: revision} }

// Time is the state that objects had at a time, to the second.
func Time(t time.Time) Moment { return Moment{Time: t} }

// ParseMoment reads a revision (48210), a time (2026-01-31T14:03:00Z) or how long
// before now (10m, 2d).
func ParseMoment(text string, now time.Time) (Moment, error) {
	if revision, err := strconv.ParseInt(text, 10, 64); err == nil && revision > 0 {
		return Revision(revision), nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return Time(t), nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return Time(now.Add(-ago)), nil
	}
	if days, err := strconv.ParseUint(strings.TrimSuffix(text, "d"), 10, 16); err == nil && strings.HasSuffix(text, "d") {
		return Time(now.Add(-time.Duration(days) * 24 * time.Hour)), nil
	}
	return Moment{}, fmt.Errorf("%q is no moment: give a revision (48210), a time (2026-01-31T14:03:00Z) or how long ago (10m, 2d)", text)
}

// ErrNoHistory is what an engine on a real etcd answers when it is asked for
// what only the embedded store can do.
var ErrNoHistory = errors.New("only the embedded store can do that, not etcd")

// History tells what the engine still knows of its past.
func (e *Engine) History() (storage.History, error) {
	if e.parts.embedded == nil {
		return storage.History{}, fmt.Errorf("history: %w", ErrNoHistory)
	}
	return e.parts.embedded.History(), nil
}

// Past reads objects as they were at one revision. Nothing can be written, and
// its watches stay silent: nothing happens after it.
type Past struct {
	// Revision that is read.
	Revision int64
	config   *rest.Config
	client   kubernetes.Interface
}

// Client is an administrator's. What has no state in the store, logs for
// example, is refused. When the engine forgets the revision, reads fail as
// expired (410), with what is still there.
func (p *Past) Client() kubernetes.Interface { return p.client }

// RESTConfig is for other clients of this process, as the engine's.
func (p *Past) RESTConfig() *rest.Config { return rest.CopyConfig(p.config) }

// At gives the engine's past, however long ago it was within Options.History. It
// fails with storage.ErrCompacted beyond that, and says what is still there.
func (e *Engine) At(moment Moment) (*Past, error) {
	revision, err := e.parts.resolve(moment)
	if err != nil {
		return nil, err
	}
	config := e.parts.config()
	config.Transport = e.parts.past(config.Transport, revision)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &Past{Revision: revision, config: config, client: client}, nil
}

// resolve gives the revision of a moment, which can be read.
func (p *parts) resolve(moment Moment) (int64, error) {
	if p.embedded == nil {
		if moment.Revision == 0 {
			return 0, fmt.Errorf("the revision of %s: %w; give a revision", moment.Time.Format(time.RFC3339), ErrNoHistory)
		}
		return moment.Revision, nil
	}
	if moment.Revision == 0 {
		return p.embedded.RevisionAt(moment.Time)
	}
	return moment.Revision, p.embedded.Readable(moment.Revision)
}

// past makes a transport to the API server that reads at a revision.
func (p *parts) past(to http.RoundTripper, revision int64) http.RoundTripper {
	return &pastTransport{to: to, revision: revision, forgotten: func() error {
		_, err := p.resolve(Revision(revision))
		return err
	}}
}

// key is where the store has an object.
func (k stored) key(namespace, name string) string {
	if k.Namespaced {
		return k.Prefix + namespace + "/" + name
	}
	return k.Prefix + name
}

// parse is its reverse.
func (k stored) parse(key string) (namespace, name string, ok bool) {
	name, ok = strings.CutPrefix(key, k.Prefix)
	if k.Namespaced && ok {
		namespace, name, ok = strings.Cut(name, "/")
	}
	return namespace, name, ok && name != "" && !strings.Contains(name, "/")
}
