// Package remote runs an agent in a process of its own: it joins the cluster,
// serves the kubelet API over TLS and runs the node.
package remote

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/runtime/agent"
	"github.com/quaymaster/quaymaster/runtime/agent/drain"
	"github.com/quaymaster/quaymaster/runtime/agent/join"
	"github.com/quaymaster/quaymaster/runtime/agent/server"
	"github.com/quaymaster/quaymaster/runtime/agent/static"
	"github.com/quaymaster/quaymaster/runtime/cri"
	"github.com/quaymaster/quaymaster/runtime/dns"
	"github.com/quaymaster/quaymaster/runtime/proxy"
)

// Options of Run. Server, NodeName, Dir, Backend and Listener are needed; Token
// at the first start.
type Options struct {
	Server, Token string
	NodeName      string
	Dir           string // credentials in it, logs and volumes below it
	Backend       cri.Backend
	// Listener is where the kubelet API is served; the API server must reach its
	// address, or Address with its port where it listens on all addresses.
	Listener net.Listener
	Address  net.IP // nil = the listener's

	Labels map[string]string
	Taints []v1.Taint
	// Unregistered leaves it to others to make the Node object; labels and taints are theirs, too.
	Unregistered bool
	Capacity     v1.ResourceList // nil = agent.DefaultCapacity
	Reserved     v1.ResourceList // what pods do not get of it
	Version      string
	// Manifests is a folder, and ManifestURL a URL, of static pods; "" = none.
	Manifests, ManifestURL string
	// Health, if not nil, is where /healthz is served to anybody, without TLS.
	Health net.Listener
	// ReadOnly, if not nil, is where health, pods, statistics and metrics are served to anybody, without TLS.
	ReadOnly net.Listener
	// Containers is for a backend whose containers are this machine's processes.
	Containers *agent.Containers
	// Shutdown, if not nil, tells when the machine is about to go: pods end then within ShutdownGrace, of which
	// ShutdownCritical is critical pods'; and Run returns.
	Shutdown                        <-chan struct{}
	ShutdownGrace, ShutdownCritical time.Duration
	// PodCIDRs, if not nil, is told the node's ranges of pod addresses as often as its Node object has others.
	PodCIDRs func([]string) error
	// Switch, if not nil, has the node change its runtime when its Node object says so.
	Switch *Switch
	// Proxy, if not nil, leads what is sent to services to pods. One process has one.
	Proxy *proxy.Proxy
	// DNS, if not nil, is a server of the cluster's names; its Informers are set here.
	DNS *dns.Options
	// Events are of the node itself, such as of its backends' processes; nil = none.
	Events <-chan Event
	// Joined, if set, is called once the cluster has taken the node in.
	Joined func()
	Clock  agent.Clock  // of the node's and pods' periods; nil = real
	Logger *slog.Logger // nil = discard
}

// Switch is what a change of the runtime needs.
type Switch struct {
	Runtime string // the present one's name
	// Check says whether the node could run another.
	Check func(runtime string) error
}

// Switched is Run's error when nothing of the present runtime runs any more and the node is to have another.
type Switched struct{ To string }

func (s *Switched) Error() string { return "the node's runtime is to be " + s.To }

// emptyTime is how long pods that were not evicted have to end before the runtime is changed.
const emptyTime = 5 * time.Minute

// Event is one of the Node object's.
type Event struct {
	Type, Reason, Message string // Type is v1.EventTypeNormal or Warning
}

// Run joins and runs the node until ctx ends. The node's containers go on.
func Run(ctx context.Context, opts Options) error {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	addr, ok := opts.Listener.Addr().(*net.TCPAddr)
	if !ok {
		return fmt.Errorf("the kubelet API needs a TCP listener, not %s", opts.Listener.Addr().Network())
	}
	if opts.Address == nil {
		opts.Address = addr.IP
	}
	if opts.Address.IsUnspecified() {
		return errors.New("the node's address is needed where the kubelet API listens on all addresses")
	}
	creds, err := join.Join(ctx, join.Options{Server: opts.Server, Token: opts.Token, NodeName: opts.NodeName, Dir: opts.Dir})
	if err != nil {
		return err
	}
	creds.Config.ContentType = "application/vnd.kubernetes.protobuf"
	creds.Config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	told := rest.CopyConfig(creds.Config)
	told.QPS, told.Burst = 50, 100 // a kubelet's for events, which must not hold up what follows
	creds.Config.QPS, creds.Config.Burst = 200, 400
	client, err := kubernetes.NewForConfig(creds.Config)
	if err != nil {
		return err
	}
	tell, err := kubernetes.NewForConfig(told)
	if err != nil {
		return err
	}
	names, ips := []string{opts.NodeName}, []net.IP{opts.Address}
	var serving atomic.Pointer[tls.Certificate]
	first, err := creds.Serving(ctx, client, names, ips)
	if err != nil {
		return err
	}
	serving.Store(first)
	informer := agent.NodePods(client, opts.NodeName)
	pods, err := agent.NewDispatcher(informer)
	if err != nil {
		return err
	}
	var source agent.PodSource = pods
	writer := agent.ClientWriter(client)
	var manifests *static.Source
	if opts.Manifests != "" || opts.ManifestURL != "" {
		manifests = static.New(static.Options{
			NodeName: opts.NodeName, Client: client, Dir: opts.Manifests, URL: opts.ManifestURL, Pods: pods, Writer: writer, Logger: opts.Logger,
		})
		source, writer = manifests, manifests
	}
	shared := informers.NewSharedInformerFactory(client, 0)
	services := shared.Core().V1().Services()
	servicesSynced := services.Informer().HasSynced
	var clusterNames *dns.Server
	if opts.DNS != nil {
		settings := *opts.DNS
		settings.Informers = shared
		if clusterNames, err = dns.New(settings); err != nil {
			return err
		}
		defer clusterNames.Close()
	}
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&typedv1.EventSinkImpl{Interface: tell.CoreV1().Events("")})
	recorder := events.NewRecorder(scheme.Scheme, v1.EventSource{Component: "kubelet", Host: opts.NodeName})
	a, err := agent.New(agent.Options{
		NodeName: opts.NodeName, Client: client, Backend: opts.Backend, Pods: source, PodWriter: writer, Labels: opts.Labels, Taints: opts.Taints, Unregistered: opts.Unregistered, Capacity: opts.Capacity, Reserved: opts.Reserved,
		Containers: opts.Containers, Services: services.Lister(), ServicesSynced: servicesSynced,
		Addresses: []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: opts.Address.String()}, {Type: v1.NodeHostName, Address: opts.NodeName}},
		Port:      int32(addr.Port), Version: opts.Version, Dir: opts.Dir, Joined: opts.Joined, Logger: opts.Logger,
		Recorder: recorder, Clock: opts.Clock,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, 7)
	wg.Go(func() { informer.RunWithContext(ctx) })
	if opts.Proxy != nil {
		own := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, opts.NodeName).String()
		}))
		follow, err := opts.Proxy.Follow(shared, own)
		if err != nil {
			return err
		}
		own.StartWithContext(ctx)
		defer own.Shutdown()
		wg.Go(func() { follow(ctx) })
	}
	if clusterNames != nil {
		wg.Go(func() {
			defer cancel()
			errs[6] = clusterNames.Run(ctx)
		})
	}
	shared.StartWithContext(ctx)
	defer shared.Shutdown()
	wg.Go(func() {
		defer cancel()
		errs[0] = server.Serve(ctx, server.ServeOptions{
			NodeName: opts.NodeName, Listener: opts.Listener, Certificate: func() (*tls.Certificate, error) { return serving.Load(), nil },
			ClientCA: creds.ClientCA, Client: client, Handler: a.Handler(), Logger: opts.Logger,
		})
	})
	wg.Go(func() {
		defer cancel()
		errs[1] = a.Run(ctx)
	})
	wg.Go(func() {
		creds.Keep(ctx, join.KeepOptions{Client: client, Names: names, IPs: ips, Serving: serving.Store, Clock: clock.RealClock{}, Logger: opts.Logger})
	})
	wg.Go(func() {
		node := &v1.ObjectReference{Kind: "Node", Name: opts.NodeName, UID: types.UID(opts.NodeName)} // as upstream's kubelet has it
		for {
			select {
			case <-ctx.Done():
				return
			case e := <-opts.Events:
				recorder.Event(node, e.Type, e.Reason, e.Message)
			}
		}
	})
	if manifests != nil {
		wg.Go(func() {
			defer cancel()
			errs[2] = manifests.Run(ctx)
		})
	}
	if opts.PodCIDRs != nil {
		if err := watchRanges(ctx, &wg, client, opts); err != nil {
			return err
		}
	}
	if opts.Switch != nil {
		wg.Go(func() {
			to, err := drain.Run(ctx, drain.Options{
				Client: client, NodeName: opts.NodeName, Runtime: opts.Switch.Runtime, Check: opts.Switch.Check, Logger: opts.Logger,
				Empty: func(ctx context.Context) error { return a.Empty(ctx, emptyTime) },
				Event: func(kind, reason, message string) {
					recorder.Event(&v1.ObjectReference{Kind: "Node", Name: opts.NodeName, UID: types.UID(opts.NodeName)}, kind, reason, message)
				},
			})
			if to != "" || err != nil {
				if errs[5] = err; err == nil {
					errs[5] = &Switched{To: to}
				}
				cancel()
			}
		})
	}
	if opts.Health != nil {
		wg.Go(func() {
			defer cancel()
			errs[3] = server.ServeHealth(ctx, opts.Health, a)
		})
	}
	if opts.Shutdown != nil {
		wg.Go(func() {
			select {
			case <-opts.Shutdown:
				a.Shutdown(ctx, opts.ShutdownGrace, opts.ShutdownCritical)
				cancel()
			case <-ctx.Done():
			}
		})
	}
	if opts.ReadOnly != nil {
		wg.Go(func() {
			defer cancel()
			errs[4] = server.ServeReadOnly(ctx, opts.ReadOnly, a)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
