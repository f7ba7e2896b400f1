// Package agent is the node agent: it registers a node, takes the pods bound to
// it, runs them on a CRI backend and reports what became of them — the
// kubelet's duties in a small package that a process can hold a thousand times.
//
//	a, err := agent.New(agent.Options{NodeName: "n1", Client: client, Backend: backend, Pods: dispatcher})
//	err = a.Run(ctx) // blocks
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/record"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/runtime/agent/cgroup"
	"github.com/quaymaster/quaymaster/runtime/agent/eviction"
	"github.com/quaymaster/quaymaster/runtime/agent/node"
	"github.com/quaymaster/quaymaster/runtime/agent/pleg"
	"github.com/quaymaster/quaymaster/runtime/agent/server"
	"github.com/quaymaster/quaymaster/runtime/agent/stats"
	"github.com/quaymaster/quaymaster/runtime/agent/trouble"
	"github.com/quaymaster/quaymaster/runtime/agent/volume"
	"github.com/quaymaster/quaymaster/runtime/cri"
)

// PodWriter is the part of the API that an agent uses for every pod. Where the
// API server is in the process, a direct one saves most of the cost.
type PodWriter interface {
	// UpdateStatus writes the pod's status at its resource version and returns the object as stored.
	UpdateStatus(ctx context.Context, pod *v1.Pod) (*v1.Pod, error)
	Delete(ctx context.Context, namespace, name string, opts metav1.DeleteOptions) error
}

// Options of New. NodeName, Client, Backend and Pods are needed.
type Options struct {
	NodeName string
	Client   kubernetes.Interface
	Backend  cri.Backend
	Pods     PodSource

	Labels        map[string]string // beside the well-known ones
	Annotations   map[string]string
	Taints        []v1.Taint
	Unschedulable bool
	Unregistered  bool             // others make the Node; the agent waits for it and keeps its status and lease
	Capacity      v1.ResourceList  // nil = 4 CPUs, 8 GiB, 110 pods
	Reserved      v1.ResourceList  // what pods do not get of it
	Addresses     []v1.NodeAddress // nil = the node's name as host name
	Port          int32            // of the kubelet API, told in the Node's status
	Version       string           // as the Node shows it; "" = v0.0.0

	// Dir holds logs and volumes: DIR/log as upstream's /var/log/pods, DIR/pods.
	// "" = no logs and no volumes: for simulated nodes only.
	Dir         string
	SkipVolumes bool                      // for a backend that looks at no mounts
	Containers  *Containers               // nil = containers are not processes of this machine's
	Measured    bool                      // the node is this machine, and tells what it uses; Containers says so too
	Services    corelisters.ServiceLister // for containers' variables; nil = none
	// ServicesSynced says that Services knows them all; no container is made before. nil = it always does.
	ServicesSynced func() bool
	PodWriter      PodWriter            // nil = Client
	Joined         func()               // called once the Node is registered; may be nil
	Recorder       record.EventRecorder // nil = no events
	Clock          Clock                // nil = real
	Logger         *slog.Logger         // nil = discard
}

// Containers says how pods are treated whose containers are the machine's own
// processes: they have control groups, name servers, an /etc/hosts, and probes.
type Containers struct {
	// Cgroups makes a group for each pod; nil leaves that to the runtime.
	Cgroups *cgroup.Manager
	// ClusterDNS are the name servers of pods with dnsPolicy ClusterFirst; none = the machine's.
	ClusterDNS []string
	// ClusterDomain is "cluster.local" if it is empty.
	ClusterDomain string
	// LogSize is how many bytes a container's log has at most, LogFiles how many such
	// files it leaves; 0 = upstream's 10 MiB and 5.
	LogSize  int64
	LogFiles int
	// Eviction are the bounds past which pods have to go; none = no pod is evicted.
	Eviction []eviction.Threshold
	// ImageHigh is how full the images' disk may be, in per cent, before images that no container uses go, and ImageLow
	// how full it is then to be; 0 = upstream's 85 and 80.
	ImageHigh, ImageLow int
}

func (c *Containers) clusterDomain() string {
	if c.ClusterDomain == "" {
		return "cluster.local"
	}
	return c.ClusterDomain
}

// Clock is what an agent needs of one.
type Clock = clock.WithDelayedExecution

// Agent runs one node.
type Agent struct {
	opts    Options
	log     *slog.Logger
	pleg    *pleg.Generator
	node    *node.Manager
	volumes *volume.Manager                            // nil = none
	version atomic.Pointer[runtimeapi.VersionResponse] // the backend's; nil = it has not answered yet
	ips     []string                                   // the node's own
	wake    chan struct{}                              // looks at the node's status
	http    http.Handler
	trouble trouble.Log      // of starts
	stats   *stats.Collector // nil = containers are not this machine's

	ctx context.Context // of Run; workers end with it
	wg  sync.WaitGroup  // of pod workers

	starts, startErrors atomic.Uint64

	admission sync.Mutex // one pod at a time is taken to the node
	weighing  sync.Mutex // one sum of what Burstable pods request at a time; taken before mu

	mu        sync.Mutex
	pods      map[types.UID]*pod
	left      map[types.UID]bool // pods that had sandboxes when the agent began; nil = not listed yet
	stopping  bool
	shutdown  bool                          // the machine is about to go
	healthy   error                         // of the runtime, as last asked
	pressures map[v1.NodeConditionType]bool // conditions of what the node runs short of
	features  *v1.NodeFeatures
	handlers  []v1.NodeRuntimeHandler
}

// DefaultCapacity is what a node has that is told nothing.
func DefaultCapacity() v1.ResourceList {
	return v1.ResourceList{
		v1.ResourceCPU: resource.MustParse("4"), v1.ResourceMemory: resource.MustParse("8Gi"), v1.ResourcePods: resource.MustParse("110"),
	}
}

type clientWriter struct{ client kubernetes.Interface }

// ClientWriter writes pods through a client.
func ClientWriter(client kubernetes.Interface) PodWriter { return clientWriter{client} }

func (w clientWriter) UpdateStatus(ctx context.Context, pod *v1.Pod) (*v1.Pod, error) {
	return w.client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
}

func (w clientWriter) Delete(ctx context.Context, namespace, name string, opts metav1.DeleteOptions) error {
	return w.client.CoreV1().Pods(namespace).Delete(ctx, name, opts)
}

// New checks the options; nothing runs before Run.
func New(opts Options) (*Agent, error) {
	if opts.NodeName == "" || opts.Client == nil || opts.Backend == nil || opts.Pods == nil {
		return nil, errors.New("an agent needs a node name, a client, a backend and a pod source")
	}
	if opts.Containers != nil && (opts.Dir == "" || opts.SkipVolumes) {
		return nil, errors.New("a node with containers needs a folder for their logs and volumes")
	}
	if opts.Dir != "" { // a backend's process may have another working directory
		dir, err := filepath.Abs(opts.Dir)
		if err != nil {
			return nil, fmt.Errorf("the agent's folder: %w", err)
		}
		opts.Dir = dir
	}
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.PodWriter == nil {
		opts.PodWriter = clientWriter{opts.Client}
	}
	if opts.Capacity == nil {
		opts.Capacity = DefaultCapacity()
	}
	if opts.Version == "" {
		opts.Version = "v0.0.0"
	}
	if len(opts.Addresses) == 0 {
		opts.Addresses = []v1.NodeAddress{{Type: v1.NodeHostName, Address: opts.NodeName}}
	}
	a := &Agent{opts: opts, log: opts.Logger.With("node", opts.NodeName), pods: map[types.UID]*pod{}, wake: make(chan struct{}, 1)}
	for _, addr := range opts.Addresses {
		if addr.Type == v1.NodeInternalIP {
			a.ips = append(a.ips, addr.Address)
		}
	}
	if opts.Dir != "" && !opts.SkipVolumes {
		a.volumes = volume.New(volume.Options{
			Dir: opts.Dir, Client: opts.Client, NodeName: opts.NodeName, Clock: opts.Clock, Mounts: opts.Containers != nil,
			Resource: func(pod *v1.Pod, ref *v1.ResourceFieldSelector) (string, error) {
				return a.containerResource(pod, &v1.Container{}, ref)
			},
		})
	}
	a.pleg = pleg.New(pleg.Options{Backend: opts.Backend, Changed: a.changed, Relisted: a.relisted, Clock: opts.Clock})
	if opts.Measured || opts.Containers != nil {
		measured := stats.Options{NodeName: opts.NodeName, Pods: func() []v1.Pod { return a.ListPods(false) }, Backend: opts.Backend, Dir: opts.Dir, Clock: opts.Clock}
		if opts.Containers != nil {
			measured.Cgroups = opts.Containers.Cgroups
		}
		a.stats = stats.New(measured)
	}
	a.http = server.NewHandler(a, opts.Clock)
	return a, nil
}

// NodeName returns the node's name.
func (a *Agent) NodeName() string { return a.opts.NodeName }

// Handler serves the kubelet API.
// It authenticates nobody: see package server for a listener that does.
func (a *Agent) Handler() http.Handler { return a.http }

// Run runs the node until ctx ends; its pods stay as they are. A backend that
// does not answer makes a node that is not ready, and says why.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	a.ctx = ctx
	var wg sync.WaitGroup
	a.checkRuntime(ctx) // before its version is known, for then pods begin
	if err := a.askVersion(ctx); err != nil {
		if ctx.Err() != nil {
			cancel()
			return nil
		}
		a.log.Warn("the runtime does not answer yet", "err", err)
		wg.Go(func() { a.untilVersion(ctx) })
	}
	a.node = node.New(node.Options{
		Name: a.opts.NodeName, Client: a.opts.Client, Labels: a.opts.Labels, Annotations: a.opts.Annotations, Taints: a.opts.Taints,
		Unschedulable: a.opts.Unschedulable, Unregistered: a.opts.Unregistered, Capacity: a.opts.Capacity, Reserved: a.opts.Reserved, Addresses: a.opts.Addresses, Port: a.opts.Port,
		Info: node.SystemInfo(a.opts.Version), RuntimeVersion: a.runtimeVersion,
		Healthy: func() error { return a.health(ctx) }, Images: a.images, Pressure: a.underPressure, Trouble: func() (trouble.Level, string) { return a.trouble.Level(a.opts.Clock.Now()) }, Features: a.runtimeFeatures,
		Wake: a.wake, Clock: a.opts.Clock, Logger: a.log,
	})
	unsubscribe := a.opts.Pods.Subscribe(a.opts.NodeName, a)
	wg.Go(func() { a.pleg.Run(ctx) })
	if a.volumes != nil {
		wg.Go(func() { a.refresh(ctx) })
	}
	if a.opts.Containers != nil {
		wg.Go(func() { a.rotate(ctx) })
		wg.Go(func() { a.watchPressure(ctx) })
		wg.Go(func() { a.watchOOM(ctx) })
	}
	a.node.Run(ctx, func() {
		if a.opts.Joined != nil {
			a.opts.Joined()
		}
	})
	cancel()
	unsubscribe()
	a.mu.Lock()
	a.stopping = true
	pods := slices.Collect(maps.Values(a.pods))
	a.mu.Unlock()
	for _, p := range pods {
		p.stopTimer()
	}
	wg.Wait()
	a.wg.Wait()
	for _, p := range pods {
		if p.probes != nil {
			p.probes.Stop()
		}
	}
	return nil
}

// askTime bounds each question to the runtime that the node's registration, status and lease wait for.
const askTime = 5 * time.Second

// askVersion asks the backend what it is.
func (a *Agent) askVersion(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	v, err := a.opts.Backend.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return err
	}
	a.version.Store(v)
	return nil
}

// untilVersion asks until the backend answers.
func (a *Agent) untilVersion(ctx context.Context) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		timer := a.opts.Clock.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C():
		}
		a.checkRuntime(ctx)
		if a.askVersion(ctx) == nil {
			select {
			case a.wake <- struct{}{}:
			default:
			}
			return
		}
	}
}

// runtimeVersion is the backend's as a Node shows it; "" = not known yet.
func (a *Agent) runtimeVersion() string {
	v := a.version.Load()
	if v == nil {
		return ""
	}
	return v.RuntimeName + "://" + v.RuntimeVersion
}

// health is the node's: of the runtime and of the generator of pod events.
func (a *Agent) health(ctx context.Context) error {
	a.checkRuntime(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.shutdown {
		return errShuttingDown
	}
	return errors.Join(a.healthy, a.pleg.Healthy())
}

// checkRuntime asks the runtime for its state.
func (a *Agent) checkRuntime(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	r, err := a.opts.Backend.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		err = fmt.Errorf("container runtime is down: %w", err)
	}
	for _, c := range r.GetStatus().GetConditions() {
		if !c.Status && (c.Type == runtimeapi.RuntimeReady || c.Type == runtimeapi.NetworkReady) {
			err = errors.Join(err, fmt.Errorf("container runtime not ready: %s reason:%s message:%s", c.Type, c.Reason, c.Message))
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.healthy = err
	if r == nil {
		return
	}
	a.features, a.handlers = nil, nil
	if f := r.Features; f != nil {
		a.features = &v1.NodeFeatures{SupplementalGroupsPolicy: &f.SupplementalGroupsPolicy}
	}
	for _, h := range r.RuntimeHandlers {
		recursive, users := h.GetFeatures().GetRecursiveReadOnlyMounts(), h.GetFeatures().GetUserNamespaces()
		a.handlers = append(a.handlers, v1.NodeRuntimeHandler{
			Name: h.Name, Features: &v1.NodeRuntimeHandlerFeatures{RecursiveReadOnlyMounts: &recursive, UserNamespaces: &users},
		})
	}
}

// recursiveReadOnly tells whether a handler of the runtime's said that it can make mounts so.
func (a *Agent) recursiveReadOnly(handler string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range a.handlers {
		if h.Name == handler {
			return *h.Features.RecursiveReadOnlyMounts
		}
	}
	return false
}

// runtimeFeatures are what the runtime said that it can.
func (a *Agent) runtimeFeatures() (*v1.NodeFeatures, []v1.NodeRuntimeHandler) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.features, a.handlers
}

// images lists at most fifty images, as upstream does.
func (a *Agent) images(ctx context.Context) ([]v1.ContainerImage, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	r, err := a.opts.Backend.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, err
	}
	return containerImages(r.Images), nil
}
