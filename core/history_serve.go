package core

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"

	"github.com/quaymaster/quaymaster/core/apiserver"
	"github.com/quaymaster/quaymaster/core/informer"
	"github.com/quaymaster/quaymaster/core/storage"
)

// HistoryPath is where the API server tells of the past, a JSON object a line.
// The first is a HistoryHead, the others are HistoryEntry:
//
//	GET /history                        the head alone
//	GET /history?name=N&resource=R…     the states of an object, oldest first
//	GET /history?from=M&to=M&resource=R…  what differs between two moments
//
// with group, version, resource, namespace and name to choose the objects, limit
// for the newest states alone, and moments as ParseMoment reads them; to is the
// present by default. Nobody but system:masters may read the path unless a role
// names it among its nonResourceURLs, and of objects everyone sees those that he
// may list.
const HistoryPath = "/history"

// HistoryHead says what can be read and what the answer is about.
type HistoryHead struct {
	Oldest int64     `json:"oldest"`
	Since  time.Time `json:"since"` // when Oldest became the present
	Newest int64     `json:"newest"`
	From   int64     `json:"from,omitempty"` // revisions of the moments
	To     int64     `json:"to,omitempty"`
}

// HistoryEntry is a state of an object, or what it was and what it became.
type HistoryEntry struct {
	Group     string `json:"group,omitempty"`
	Version   string `json:"version"`
	Resource  string `json:"resource"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	// Revision and Time of the change, to the second. No time: not known.
	Revision int64      `json:"revision,omitempty"`
	Time     *time.Time `json:"time,omitempty"`
	// Old is missing in the states of one object, and where it did not exist.
	Old json.RawMessage `json:"old,omitempty"`
	// New is missing where it was deleted.
	New json.RawMessage `json:"new,omitempty"`
	// Error says why nothing of this resource is told, in this namespace.
	Error string `json:"error,omitempty"`
}

// stored is a resource with its place in the store.
type stored struct{ informer.Resource }

// stored lists what the store holds, custom resources too, longer prefixes first.
func (p *parts) stored() []stored {
	var out []stored
	for _, r := range apiserver.Resources() {
		out = append(out, stored{r})
	}
	for _, r := range p.server.CustomResources() {
		out = append(out, stored{r})
	}
	slices.SortStableFunc(out, func(a, b stored) int { return len(b.Prefix) - len(a.Prefix) })
	return out
}

// teller answers one request for HistoryPath.
type teller struct {
	*parts
	w      http.ResponseWriter
	r      *http.Request
	query  url.Values
	as     http.RoundTripper // the API in the name of who asks
	lines  *json.Encoder
	denied map[string]bool
}

func (p *parts) history(w http.ResponseWriter, r *http.Request) {
	who, ok := apirequest.UserFrom(r.Context())
	switch {
	case r.Method != http.MethodGet:
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "the past is read with GET", http.StatusMethodNotAllowed)
		return
	case !ok:
		http.Error(w, "nobody asks", http.StatusForbidden)
		return
	case p.embedded == nil:
		http.Error(w, "history: "+ErrNoHistory.Error(), http.StatusNotImplemented)
		return
	}
	t := &teller{parts: p, w: w, r: r, query: r.URL.Query(), as: p.server.RESTConfig(who).Transport, denied: map[string]bool{}}
	if err := t.tell(); err != nil {
		if t.lines != nil { // the answer has begun
			p.options.Logger.Warn("a history was cut short", "error", err)
			panic(http.ErrAbortHandler)
		}
		code := http.StatusInternalServerError
		var status apierrors.APIStatus
		switch {
		case errors.As(err, &status):
			code = int(status.Status().Code)
		case errors.Is(err, storage.ErrCompacted):
			code = http.StatusGone
		case errors.Is(err, storage.ErrFuture), errors.Is(err, errQuery):
			code = http.StatusBadRequest
		}
		http.Error(w, err.Error(), code)
	}
}

var errQuery = errors.New("the request")

func (t *teller) tell() error {
	h := t.embedded.History()
	head := HistoryHead{Oldest: h.Oldest, Newest: h.Newest, Since: h.Since}
	var err error
	for name, into := range map[string]*int64{"from": &head.From, "to": &head.To} {
		if text := t.query.Get(name); text != "" {
			moment, err := ParseMoment(text, t.options.Clock.Now())
			if err != nil {
				return fmt.Errorf("%w: %s: %w", errQuery, name, err)
			}
			if *into, err = t.resolve(moment); err != nil {
				return err
			}
		}
	}
	var chosen []stored
	if t.query.Get("resource") != "" {
		if chosen, err = t.choose(); err != nil {
			return err
		}
	}
	switch {
	case head.From != 0:
		if head.To == 0 {
			head.To = head.Newest
		}
		return t.differences(head, chosen)
	case t.query.Get("name") != "" && chosen != nil:
		return t.versions(head, chosen[0])
	case len(t.query) == 0:
		return t.begin(head)
	}
	return fmt.Errorf("%w: give resource and name, or from", errQuery)
}

// choose finds the resource that is asked for.
func (t *teller) choose() ([]stored, error) {
	want := schema.GroupResource{Group: t.query.Get("group"), Resource: t.query.Get("resource")}
	for _, s := range t.stored() {
		if s.GroupResource() == want {
			if version := t.query.Get("version"); version != "" {
				s.Version = version
			}
			return []stored{s}, nil
		}
	}
	return nil, fmt.Errorf("%w: the store holds no %s", errQuery, want)
}

func (t *teller) begin(head HistoryHead) error {
	t.w.Header().Set("Content-Type", "application/x-ndjson")
	t.lines = json.NewEncoder(t.w)
	return t.lines.Encode(head)
}

// versions tells the states of one object.
func (t *teller) versions(head HistoryHead, s stored) error {
	namespace, name := t.query.Get("namespace"), t.query.Get("name")
	versions := t.embedded.Versions(s.key(namespace, name))
	if limit, err := strconv.Atoi(t.query.Get("limit")); err == nil && limit > 0 && len(versions) > limit {
		versions = versions[len(versions)-limit:]
	}
	for i, v := range versions {
		entry := s.entry(namespace, name)
		entry.Revision = v.Revision
		if !v.Time.IsZero() {
			entry.Time = &v.Time
		}
		if !v.Deleted {
			// Older than all that is kept, it was the state of the oldest.
			object, err := t.object(s, namespace, name, max(v.Revision, head.Oldest))
			if err != nil {
				return err
			}
			entry.New = object
		}
		if i == 0 {
			if err := t.begin(head); err != nil {
				return err
			}
		}
		if err := t.lines.Encode(entry); err != nil {
			return err
		}
	}
	if len(versions) == 0 {
		if _, err := t.object(s, namespace, name, head.Newest); err != nil && !apierrors.IsNotFound(err) {
			return err // who may not read it learns that first
		}
		return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound,
			Message: fmt.Sprintf("%s %q is not known, nor was it in the time that is: %s", s.GroupResource(), name, t.embedded.History())}}
	}
	return nil
}

// differences tells what is not the same at two revisions.
func (t *teller) differences(head HistoryHead, chosen []stored) error {
	prefix := "/registry/"
	all := chosen
	if chosen == nil {
		all = t.stored()
	} else {
		prefix = chosen[0].Prefix
	}
	differences, err := t.embedded.Differences(prefix, head.From, head.To)
	if err != nil {
		return err
	}
	if err := t.begin(head); err != nil {
		return err
	}
	for _, d := range differences {
		i := slices.IndexFunc(all, func(s stored) bool { return strings.HasPrefix(d.Key, s.Prefix) })
		if i < 0 {
			continue // the API server's own records
		}
		s := all[i]
		namespace, name, ok := s.parse(d.Key)
		if want := t.query.Get("name"); !ok || want != "" && want != name {
			continue
		}
		if want := t.query.Get("namespace"); want != "" && (s.Namespaced && want != namespace || !s.Namespaced && chosen == nil) {
			continue
		}
		if err := t.difference(head, s, namespace, name, d); err != nil {
			return err
		}
	}
	return nil
}

func (t *teller) difference(head HistoryHead, s stored, namespace, name string, d storage.Difference) error {
	where := s.GroupResource().String() + "/" + namespace
	if t.denied[where] {
		return nil
	}
	entry := s.entry(namespace, name)
	entry.Revision = d.To
	err := t.state(&entry.Old, s, namespace, name, head.From, d.From)
	if err == nil {
		err = t.state(&entry.New, s, namespace, name, head.To, d.To)
	}
	if apierrors.IsForbidden(err) || apierrors.IsMethodNotSupported(err) {
		t.denied[where] = true
		entry = s.entry(namespace, "")
		entry.Error, err = err.Error(), nil
	}
	if err != nil {
		return err
	}
	return t.lines.Encode(entry)
}

func (t *teller) state(into *json.RawMessage, s stored, namespace, name string, at, revision int64) error {
	if revision == 0 {
		return nil
	}
	object, err := t.object(s, namespace, name, at)
	*into = object
	return err
}

// object reads one at a revision, as who asks may see it.
func (t *teller) object(s stored, namespace, name string, revision int64) (json.RawMessage, error) {
	path := []string{"apis", s.Group, s.Version}
	if s.Group == "" {
		path = []string{"api", s.Version}
	}
	if s.Namespaced {
		path = append(path, "namespaces", namespace)
	}
	target := url.URL{Scheme: "http", Host: "quaymaster.internal", Path: "/" + strings.Join(append(path, s.GroupVersionResource.Resource, name), "/")}
	request, err := http.NewRequestWithContext(t.r.Context(), http.MethodGet, target.String(), nil)
	if err != nil {
		return nil, err
	}
	response, err := t.past(t.as, revision).RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		status := metav1.Status{Status: metav1.StatusFailure, Code: int32(response.StatusCode), Message: string(data)} //nolint:gosec // an HTTP status
		if err := json.Unmarshal(data, &status); err != nil {
			return nil, fmt.Errorf("read %s %s: %s", s.Kind, name, data)
		}
		return nil, &apierrors.StatusError{ErrStatus: status}
	}
	return data, nil
}

func (k stored) entry(namespace, name string) HistoryEntry {
	return HistoryEntry{Group: k.Group, Version: k.Version, Resource: k.GroupVersionResource.Resource, Namespace: namespace, Name: name}
}
