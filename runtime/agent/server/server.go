// Package server is the kubelet API of a node over HTTP: /containerLogs, /exec,
// /attach, /portForward, /run, /pods, /runningpods, /stats/summary, /metrics,
// /metrics/resource, /metrics/cadvisor and /healthz; and a TLS listener that lets in only the API server and
// whom the cluster authorises.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/go-logr/logr"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-client/pkg/logs"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/runtime/agent/stats"
	"github.com/quaymaster/quaymaster/runtime/cri"
)

// Host is what the handler serves: an agent.
type Host interface {
	// ListPods returns the node's pods with their newest status; running only
	// those with a running container.
	ListPods(running bool) []v1.Pod
	// FindPod returns a pod of the node, or nil.
	FindPod(namespace, name string) *v1.Pod
	// Instances returns what the runtime has of a pod's container, the newest first.
	Instances(pod *v1.Pod, container string) []*runtimeapi.ContainerStatus
	// ContainerStatus asks the runtime.
	ContainerStatus(ctx context.Context, id string) (*runtimeapi.ContainerStatusResponse, error)
	// Health is nil while the node can run pods.
	Health() error
	// Backend is the container runtime, for streams.
	Backend() cri.Backend
	// Stats tells what is used; nil = nobody knows.
	Stats() *stats.Collector
	// Counts is what the agent counts of its own work.
	Counts() stats.Agent
}

// NewHandler serves a host's kubelet API without asking who calls.
func NewHandler(host Host, c clock.PassiveClock) http.Handler {
	h := &handler{host: host, clock: c}
	mux := h.readOnly()
	h.streams(mux)
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", h.containerLogs)
	return mux
}

// NewReadOnlyHandler serves what upstream's read-only port does: health, pods, statistics and metrics, and no logs.
func NewReadOnlyHandler(host Host) http.Handler { return (&handler{host: host}).readOnly() }

func (h *handler) readOnly() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", h.healthz)
	mux.HandleFunc("GET /pods", func(w http.ResponseWriter, _ *http.Request) { h.pods(w, false) })
	mux.HandleFunc("GET /runningpods/", func(w http.ResponseWriter, _ *http.Request) { h.pods(w, true) })
	mux.HandleFunc("GET /runningpods", func(w http.ResponseWriter, _ *http.Request) { h.pods(w, true) })
	mux.HandleFunc("GET /stats/summary", h.summary)
	mux.HandleFunc("GET /metrics/resource", h.resources)
	mux.HandleFunc("GET /metrics/cadvisor", h.cadvisor)
	mux.HandleFunc("GET /metrics", h.metrics)
	return mux
}

type handler struct {
	host  Host
	clock clock.PassiveClock
}

func (h *handler) healthz(w http.ResponseWriter, _ *http.Request) {
	if err := h.host.Health(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = io.WriteString(w, "ok")
}

func (h *handler) pods(w http.ResponseWriter, running bool) {
	list := &v1.PodList{Items: h.host.ListPods(running)}
	data, err := runtime.Encode(scheme.Codecs.LegacyCodec(v1.SchemeGroupVersion), list)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(data)
}

// summary answers with what the node and its pods use.
func (h *handler) summary(w http.ResponseWriter, r *http.Request) {
	if h.host.Stats() == nil {
		http.Error(w, "this node does not measure what its pods use", http.StatusNotImplemented)
		return
	}
	only := r.URL.Query().Get("only_cpu_and_memory")
	s, err := h.host.Stats().Summary(r.Context(), only == "true" || only == "1")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s)
}

const metricsType = "text/plain; version=0.0.4; charset=utf-8"

func (h *handler) metrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", metricsType)
	if err := stats.WriteAgent(w, h.host.Counts()); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func (h *handler) cadvisor(w http.ResponseWriter, _ *http.Request) {
	if h.host.Stats() == nil {
		http.Error(w, "this node does not measure what its pods use", http.StatusNotImplemented)
		return
	}
	w.Header().Set("Content-Type", metricsType)
	if err := h.host.Stats().Containers(w); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func (h *handler) resources(w http.ResponseWriter, r *http.Request) {
	if h.host.Stats() == nil {
		http.Error(w, "this node does not measure what its pods use", http.StatusNotImplemented)
		return
	}
	w.Header().Set("Content-Type", metricsType)
	if err := h.host.Stats().Resources(r.Context(), w); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// logOptions reads a query as the API server sends it, or as people type it (tail).
func logOptions(q url.Values) (*v1.PodLogOptions, error) {
	opts := &v1.PodLogOptions{}
	if tail := q.Get("tail"); tail != "" && tail != "all" && q.Get("tailLines") == "" {
		q.Set("tailLines", tail)
	}
	var errs []error
	for name, field := range map[string]*bool{"follow": &opts.Follow, "previous": &opts.Previous, "timestamps": &opts.Timestamps} {
		if text := q.Get(name); text != "" {
			*field = text != "false" && text != "0" // as upstream converts queries
		}
	}
	for name, field := range map[string]**int64{"tailLines": &opts.TailLines, "limitBytes": &opts.LimitBytes, "sinceSeconds": &opts.SinceSeconds} {
		if text := q.Get(name); text != "" {
			n, err := strconv.ParseInt(text, 10, 64)
			errs = append(errs, err)
			*field = &n
		}
	}
	if text := q.Get("sinceTime"); text != "" {
		at, err := time.Parse(time.RFC3339, text)
		errs = append(errs, err)
		opts.SinceTime = &metav1.Time{Time: at}
	}
	if text := q.Get("stream"); text != "" {
		opts.Stream = &text
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	switch {
	case opts.TailLines != nil && *opts.TailLines < 0:
		return nil, errors.New("tailLines: must be greater than or equal to 0")
	case opts.LimitBytes != nil && *opts.LimitBytes < 1:
		return nil, errors.New("limitBytes: must be greater than 0")
	case opts.SinceSeconds != nil && opts.SinceTime != nil:
		return nil, errors.New("at most one of sinceTime or sinceSeconds may be specified")
	case opts.SinceSeconds != nil && *opts.SinceSeconds < 1:
		return nil, errors.New("sinceSeconds: must be greater than 0")
	case opts.Stream != nil && *opts.Stream != v1.LogStreamAll && *opts.Stream != v1.LogStreamStdout && *opts.Stream != v1.LogStreamStderr:
		return nil, fmt.Errorf("stream: unsupported value: %q", *opts.Stream)
	}
	return opts, nil
}

// containerLogs answers with upstream's texts.
func (h *handler) containerLogs(w http.ResponseWriter, r *http.Request) {
	opts, err := logOptions(r.URL.Query())
	if err != nil {
		http.Error(w, fmt.Sprintf(`{"message": %s}`, strconv.Quote("Invalid request: "+err.Error())), http.StatusUnprocessableEntity)
		return
	}
	name, container := r.PathValue("pod"), r.PathValue("container")
	pod := h.host.FindPod(r.PathValue("namespace"), name)
	if pod == nil {
		http.Error(w, fmt.Sprintf("pod %q does not exist", name), http.StatusNotFound)
		return
	}
	st, ok := containerStatus(pod, container)
	if !ok {
		http.Error(w, fmt.Sprintf("container %q not found in pod %q", container, name), http.StatusNotFound)
		return
	}
	c, err := h.instance(pod, container, opts.Previous, st)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	stream := newFlushWriter(w)
	if c.LogPath == "" {
		return
	}
	if _, err := os.Stat(c.LogPath); errors.Is(err, os.ErrNotExist) {
		return // it has printed nothing
	}
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("Transfer-Encoding", "chunked")
	if opts.Follow && stream.flusher != nil {
		w.WriteHeader(http.StatusOK)
		stream.flusher.Flush()
	}
	stdout, stderr := io.Writer(stream), io.Writer(stream)
	if opts.Stream != nil && *opts.Stream == v1.LogStreamStdout {
		stderr = nil
	} else if opts.Stream != nil && *opts.Stream == v1.LogStreamStderr {
		stdout = nil
	}
	ctx := klog.NewContext(r.Context(), logr.Discard())
	read := &logs.LogOptions{TailLines: opts.TailLines, LimitBytes: opts.LimitBytes, Follow: opts.Follow, Timestamp: opts.Timestamps}
	if opts.SinceSeconds != nil {
		read.Since = h.clock.Now().Add(-time.Duration(*opts.SinceSeconds) * time.Second)
	} else if opts.SinceTime != nil {
		read.Since = opts.SinceTime.Time
	}
	err = logs.ReadLogs(ctx, c.LogPath, c.Id, read, statusOnly{host: h.host}, stdout, stderr)
	if said := stream.end(); err != nil && r.Context().Err() == nil && !said {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func containerStatus(pod *v1.Pod, name string) (v1.ContainerStatus, bool) {
	for _, list := range [][]v1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for _, st := range list {
			if st.Name == name {
				return st, true
			}
		}
	}
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for _, c := range list {
			if c.Name == name {
				return v1.ContainerStatus{Name: name, State: v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: "ContainerCreating"}}}, true
			}
		}
	}
	return v1.ContainerStatus{}, false
}

// instance picks the container whose log is asked for: the newest that was
// started, or the one before.
func (h *handler) instance(pod *v1.Pod, name string, previous bool, st v1.ContainerStatus) (*runtimeapi.ContainerStatus, error) {
	var started []*runtimeapi.ContainerStatus
	for _, c := range h.host.Instances(pod, name) {
		if c.State != runtimeapi.ContainerState_CONTAINER_CREATED {
			started = append(started, c)
		}
	}
	waits := st.State.Waiting != nil
	switch {
	case previous && waits && len(started) > 0: // the newest one is what went before the wait
		return started[0], nil
	case previous && len(started) > 1:
		return started[1], nil
	case previous:
		return nil, fmt.Errorf("previous terminated container %q in pod %q not found", name, pod.Name)
	case len(started) > 0:
		return started[0], nil
	case waits:
		return nil, waiting(name, pod.Name, st.State.Waiting.Reason)
	}
	return nil, fmt.Errorf("container %q in pod %q is not available", name, pod.Name)
}

func waiting(container, pod, reason string) error {
	switch reason {
	case "ErrImagePull":
		return fmt.Errorf("container %q in pod %q is waiting to start: image can't be pulled", container, pod)
	case "ImagePullBackOff":
		return fmt.Errorf("container %q in pod %q is waiting to start: trying and failing to pull image", container, pod)
	}
	return fmt.Errorf("container %q in pod %q is waiting to start: %v", container, pod, reason)
}

// statusOnly is the one call that following a log makes.
type statusOnly struct {
	internalapi.RuntimeService
	host Host
}

func (s statusOnly) ContainerStatus(ctx context.Context, id string, _ bool) (*runtimeapi.ContainerStatusResponse, error) {
	return s.host.ContainerStatus(ctx, id)
}
