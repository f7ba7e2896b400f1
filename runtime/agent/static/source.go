package static

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/runtime/agent"
)

// Period is how often manifests are read although nothing seems to have changed, and mirrors looked at after a failure.
const Period = 20 * time.Second

// Options of New. NodeName, Client, Pods and Writer are needed, and Dir or URL.
type Options struct {
	NodeName string
	Client   kubernetes.Interface // for mirrors
	Dir, URL string
	Pods     agent.PodSource // the API's
	Writer   agent.PodWriter // of the API's pods
	Clock    clock.Clock     // nil = real
	Logger   *slog.Logger    // nil = discard
}

// Source adds static pods to those of the API, of which it takes the mirrors away. It is
// an agent's PodSource and PodWriter.
type Source struct {
	opts Options
	wake chan struct{} // mirrors are to be looked at

	mu      sync.Mutex
	handler agent.PodHandler
	read    bool                 // manifests were read once
	running map[string]*v1.Pod   // by name: what the agent has, with its newest status
	wanted  map[string]*v1.Pod   // by name: what manifests ask for
	mirrors map[string]*v1.Pod   // by name: what the API has
	fromDir map[string][]*v1.Pod // by file
	fromURL []*v1.Pod
}

// New returns a source that reads nothing before Run.
func New(opts Options) *Source {
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Source{opts: opts, wake: make(chan struct{}, 1), running: map[string]*v1.Pod{}, wanted: map[string]*v1.Pod{},
		mirrors: map[string]*v1.Pod{}, fromDir: map[string][]*v1.Pod{}}
}

func key(p *v1.Pod) string { return p.Namespace + "/" + p.Name }

// static tells whether a pod is one of ours, not the API's.
func static(p *v1.Pod) bool {
	return p.Annotations[annotationSource] != "" && p.Annotations[annotationMirror] == ""
}

// HasSynced tells whether the API's pods and the manifests are known.
func (s *Source) HasSynced() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.read && s.opts.Pods.HasSynced()
}

// Subscribe implements agent.PodSource.
func (s *Source) Subscribe(node string, h agent.PodHandler) func() {
	s.mu.Lock()
	s.handler = h
	for _, p := range s.running {
		h.PodSet(p)
	}
	s.mu.Unlock()
	stop := s.opts.Pods.Subscribe(node, apiPods{s, h})
	return func() {
		stop()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.handler = nil
	}
}

// apiPods takes the API's pods and keeps back mirrors.
type apiPods struct {
	s *Source
	h agent.PodHandler
}

func (a apiPods) PodSet(p *v1.Pod) {
	if p.Annotations[annotationMirror] == "" {
		a.h.PodSet(p)
		return
	}
	a.s.mu.Lock()
	a.s.mirrors[key(p)] = p
	a.s.mu.Unlock()
	a.s.look()
}

func (a apiPods) PodGone(p *v1.Pod) {
	if p.Annotations[annotationMirror] == "" {
		a.h.PodGone(p)
		return
	}
	a.s.mu.Lock()
	if old := a.s.mirrors[key(p)]; old != nil && old.UID == p.UID {
		delete(a.s.mirrors, key(p))
	}
	a.s.mu.Unlock()
	a.s.look()
}

// look asks for a look at the mirrors.
func (s *Source) look() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// UpdateStatus implements agent.PodWriter: the status of a static pod is shown by its mirror, in time.
func (s *Source) UpdateStatus(ctx context.Context, pod *v1.Pod) (*v1.Pod, error) {
	if !static(pod) {
		return s.opts.Writer.UpdateStatus(ctx, pod)
	}
	s.mu.Lock()
	if old := s.running[key(pod)]; old != nil && old.UID == pod.UID {
		if old.DeletionTimestamp != nil && pod.DeletionTimestamp == nil { // the agent has not heard of it yet
			pod = pod.DeepCopy()
			pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = old.DeletionTimestamp, old.DeletionGracePeriodSeconds
		}
		s.running[key(pod)] = pod
	}
	s.mu.Unlock()
	s.look()
	return pod, nil
}

// Delete implements agent.PodWriter: the agent has ended a static pod whose manifest is gone or another one.
func (s *Source) Delete(ctx context.Context, namespace, name string, opts metav1.DeleteOptions) error {
	s.mu.Lock()
	p := s.running[namespace+"/"+name]
	if p == nil || opts.Preconditions == nil || opts.Preconditions.UID == nil || *opts.Preconditions.UID != p.UID {
		s.mu.Unlock()
		return s.opts.Writer.Delete(ctx, namespace, name, opts)
	}
	delete(s.running, key(p))
	if s.handler != nil {
		s.handler.PodGone(p)
	}
	s.apply()
	s.mu.Unlock()
	s.look()
	return nil
}

// apply hands over what manifests ask for: a pod whose manifest changed ends before
// the new one begins. The lock is held.
func (s *Source) apply() {
	for name, p := range s.running {
		want := s.wanted[name]
		if want != nil && want.UID == p.UID || p.DeletionTimestamp != nil {
			continue
		}
		ending := p.DeepCopy()
		grace := ptr.Deref(p.Spec.TerminationGracePeriodSeconds, v1.DefaultTerminationGracePeriodSeconds)
		end := metav1.NewTime(s.opts.Clock.Now().Add(time.Duration(grace) * time.Second))
		ending.DeletionTimestamp, ending.DeletionGracePeriodSeconds = &end, &grace
		s.running[name] = ending
		if s.handler != nil {
			s.handler.PodSet(ending)
		}
	}
	for name, want := range s.wanted {
		if s.running[name] == nil {
			s.running[name] = want
			if s.handler != nil {
				s.handler.PodSet(want)
			}
		}
	}
}

// Run reads manifests and keeps mirrors until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	var changes chan fsnotify.Event
	if s.opts.Dir != "" {
		if err := os.MkdirAll(s.opts.Dir, 0o750); err != nil {
			return fmt.Errorf("the folder of manifests: %w", err)
		}
		watcher, err := fsnotify.NewWatcher()
		if err != nil {
			return fmt.Errorf("watch %s: %w", s.opts.Dir, err)
		}
		defer watcher.Close()
		if err := watcher.Add(s.opts.Dir); err != nil {
			return fmt.Errorf("watch %s: %w", s.opts.Dir, err)
		}
		changes = watcher.Events
	}
	timer := s.opts.Clock.NewTimer(Period)
	defer timer.Stop()
	s.manifests(ctx)
	for {
		s.keepMirrors(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-changes:
			s.manifests(ctx)
		case <-timer.C():
			timer.Reset(Period)
			s.manifests(ctx)
		}
	}
}

// manifests reads all of them. What cannot be read or is malformed leaves things as they were.
func (s *Source) manifests(ctx context.Context) {
	if s.opts.Dir != "" {
		if files, err := s.readDir(); err != nil {
			s.opts.Logger.Error("static pods: read the folder of manifests", "err", err)
		} else {
			s.fromDir = files
		}
	}
	if s.opts.URL != "" {
		if pods, err := s.readURL(ctx); err != nil {
			s.opts.Logger.Error("static pods: read the manifest's URL", "err", err)
		} else {
			s.fromURL = pods
		}
	}
	wanted := map[string]*v1.Pod{}
	for _, file := range slices.Sorted(maps.Keys(s.fromDir)) {
		for _, p := range s.fromDir[file] {
			if _, twice := wanted[key(p)]; twice {
				s.opts.Logger.Error("static pods: two manifests for one pod; the first counts", "pod", key(p), "file", file)
				continue
			}
			wanted[key(p)] = p
		}
	}
	for _, p := range s.fromURL {
		if _, twice := wanted[key(p)]; !twice {
			wanted[key(p)] = p
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted, s.read = wanted, true
	s.apply()
}

func (s *Source) readDir() (map[string][]*v1.Pod, error) {
	entries, err := os.ReadDir(s.opts.Dir)
	if err != nil {
		return nil, err
	}
	out := map[string][]*v1.Pod{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || e.IsDir() {
			continue
		}
		path := filepath.Join(s.opts.Dir, e.Name())
		var pods []*v1.Pod
		data, err := readAll(path)
		if err == nil {
			pods, err = Parse(data, s.opts.NodeName, "file")
		}
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			s.opts.Logger.Error("static pods: a manifest is left out", "file", path, "err", err)
			pods = s.fromDir[path] // as it was when it could be read
		}
		out[path] = pods
	}
	return out, nil
}

func readAll(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // a pipe that nobody writes to would hold up all manifests
		return nil, errors.New("it is no regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxManifest+1))
}

func (s *Source) readURL(ctx context.Context) ([]*v1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, Period/2)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.opts.URL, nil)
	if err != nil {
		return nil, err
	}
	r, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", s.opts.URL, r.Status)
	}
	data, err := io.ReadAll(io.LimitReader(r.Body, maxManifest+1))
	if err != nil {
		return nil, err
	}
	if len(data) == 0 {
		return nil, fmt.Errorf("%s answers with nothing", s.opts.URL)
	}
	return Parse(data, s.opts.NodeName, "http")
}

// keepMirrors makes the API show what runs here.
func (s *Source) keepMirrors(ctx context.Context) {
	if !s.opts.Pods.HasSynced() {
		return
	}
	s.mu.Lock()
	running, mirrors := maps.Clone(s.running), maps.Clone(s.mirrors)
	s.mu.Unlock()
	for name, m := range mirrors {
		p := running[name]
		if p != nil && p.DeletionTimestamp == nil && m.DeletionTimestamp == nil && m.Annotations[annotationMirror] == string(p.UID) {
			continue
		}
		err := s.opts.Client.CoreV1().Pods(m.Namespace).Delete(ctx, m.Name, metav1.DeleteOptions{
			GracePeriodSeconds: ptr.To(int64(0)), Preconditions: &metav1.Preconditions{UID: ptr.To(m.UID)},
		})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			s.opts.Logger.Warn("static pods: delete a mirror", "pod", name, "err", err)
		}
	}
	for name, p := range running {
		if p.DeletionTimestamp != nil {
			continue
		}
		if err := s.keepMirror(ctx, p, mirrors[name]); err != nil && ctx.Err() == nil {
			s.opts.Logger.Warn("static pods: keep the mirror", "pod", name, "err", err)
		}
	}
}

func (s *Source) keepMirror(ctx context.Context, p, m *v1.Pod) error {
	pods := s.opts.Client.CoreV1().Pods(p.Namespace)
	if m == nil {
		node, err := s.opts.Client.CoreV1().Nodes().Get(ctx, s.opts.NodeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		made, err := pods.Create(ctx, mirror(p, node.UID), metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil // the source tells of it, or it is nobody's mirror
		}
		if err != nil {
			return fmt.Errorf("failed creating a mirror pod: %w", err)
		}
		s.mu.Lock()
		s.mirrors[key(p)] = made
		s.mu.Unlock()
		m = made
	}
	if m.DeletionTimestamp != nil || m.Annotations[annotationMirror] != string(p.UID) || apiequality.Semantic.DeepEqual(m.Status, p.Status) || p.Status.StartTime == nil {
		return nil
	}
	next := m.DeepCopy()
	qos := m.Status.QOSClass
	next.Status = *p.Status.DeepCopy()
	next.Status.QOSClass = qos
	if apiequality.Semantic.DeepEqual(m.Status, next.Status) {
		return nil
	}
	written, err := s.opts.Writer.UpdateStatus(ctx, next)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // a newer one is on its way
	}
	if err != nil {
		return fmt.Errorf("update the mirror's status: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if have := s.mirrors[key(p)]; have != nil && have.UID == written.UID {
		s.mirrors[key(p)] = written
	}
	return nil
}

// mirror is what the API shows of a static pod.
func mirror(p *v1.Pod, node types.UID) *v1.Pod {
	m := p.DeepCopy()
	m.UID, m.ResourceVersion, m.Status = "", "", v1.PodStatus{}
	m.Annotations[annotationMirror] = string(p.UID)
	m.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: "v1", Kind: "Node", Name: p.Spec.NodeName, UID: node, Controller: ptr.To(true),
	}}
	return m
}
