package core

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	policyadmission "github.com/quaymaster/quaymaster/core/admission"
	"github.com/quaymaster/quaymaster/core/api"
	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/core/apiserver"
	"github.com/quaymaster/quaymaster/core/controllers"
	"github.com/quaymaster/quaymaster/core/controllers/kinds"
	"github.com/quaymaster/quaymaster/core/controllers/policy"
	"github.com/quaymaster/quaymaster/core/controllers/upstream"
	"github.com/quaymaster/quaymaster/core/informer"
	"github.com/quaymaster/quaymaster/core/scheduler"
	"github.com/quaymaster/quaymaster/core/storage"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/rego"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

// parts of an engine, in the order in which they are made.
type parts struct {
	options     *Options
	transport   *late
	metrics     *prometheus.Registry // of this engine, served at /metrics: parts register theirs here
	store       store
	embedded    *storage.Store // the same, nil on a real etcd
	workers     chan struct{}  // closed when what uses the server may run
	leading     chan struct{}  // closed when this engine leads: controllers and scheduler are there
	settled     chan struct{}  // closed when what requests depend on is known: pods may be read
	settle      func()         // does that, once
	synced      chan struct{}  // closed when they, the nodes and the server know what is stored
	life        context.Context
	end         context.CancelFunc    // with close: forks end as well
	awake       chan struct{}         // closed when the informers may run
	wake        func()                // does that, once
	encryption  *apiserver.Encryption // nil: values are stored as they are
	listener    net.Listener
	client      kubernetes.Interface
	ours        *api.Client
	informers   *informer.Factory
	obeyed      []cache.SharedIndexInformer // what requests depend on
	wasm        *wasm.Engine
	policies    *policies.Host
	server      *apiserver.Server
	scheduler   *scheduler.Scheduler
	controllers *controllers.Controllers
	upstream    *upstream.Controllers
	kinds       *kinds.Dynamic
	loader      *policy.Controller
	directory   *policy.Syncer // nil: no directory
	recorder    *recorder      // of the policy controllers
	nodes       *nodes
}

// open takes what another process may have, the directory and the port, and
// makes the clients. After an error nothing is left open.
func open(options *Options) (_ *parts, err error) {
	return openOn(options, (*parts).openStore)
}

// openOn does the same on a store that is opened by a function.
func openOn(options *Options, openStore func(*parts) error) (_ *parts, err error) {
	p := &parts{options: options, transport: &late{}, metrics: prometheus.NewRegistry(), workers: make(chan struct{}), leading: make(chan struct{}), synced: make(chan struct{}), awake: make(chan struct{})}
	p.settled = make(chan struct{})
	p.settle = sync.OnceFunc(func() { close(p.settled) })
	p.wake = sync.OnceFunc(func() { close(p.awake) })
	p.life, p.end = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if err = openStore(p); err != nil {
		return nil, err
	}
	if p.embedded != nil {
		p.metrics.MustRegister(p.embedded)
	}
	if options.Listen != "" {
		if p.listener, err = net.Listen("tcp", options.Listen); err != nil {
			return nil, fmt.Errorf("listen on %s: %w; choose another address or end what uses it", options.Listen, err)
		}
	}
	if p.client, err = kubernetes.NewForConfig(p.config()); err != nil {
		return nil, err
	}
	p.ours, err = api.NewClient(p.config())
	return p, err
}

// config of in-memory clients in the name of an administrator. They work once
// the server is assembled.
func (p *parts) config() *rest.Config {
	const protobuf = "application/vnd.kubernetes.protobuf"
	return &rest.Config{
		Host:          "http://quaymaster.internal", // never resolved
		Transport:     p.transport,
		QPS:           -1, // nothing to protect: the server shares the process
		ContentConfig: rest.ContentConfig{ContentType: protobuf, AcceptContentTypes: protobuf + ",application/json"},
		// Such as that Endpoints are deprecated: the controllers know what they write.
		WarningHandler: rest.NoWarnings{},
	}
}

// assemble makes the server and what it needs, and runs nothing.
func (p *parts) assemble() (err error) {
	options, log := p.options, p.options.Logger
	if p.informers, err = informer.New(p.store.Etcd(), p.client, apiserver.Resources()); err != nil {
		return err
	}
	for _, name := range options.API.Without {
		p.informers.LeaveOut(schema.ParseGroupResource(name))
	}
	if p.encryption != nil {
		p.informers.Transformers = p.encryption
	}
	p.informers.Later(schema.GroupResource{Resource: "pods"}, p.settled)
	p.wasm = wasm.New(wasm.Options{Logger: log.With("part", "wasm"), Clock: options.Clock})
	p.policies = policies.NewHost(policies.Options{
		Engines: map[policyv1alpha1.EngineType]policies.Engine{
			policyv1alpha1.EngineWasm: p.wasm,
			policyv1alpha1.EngineRego: rego.New(rego.Options{Sandbox: p.wasm}),
		},
		Reads: reads{p.informers, p.store}, Metrics: p.metrics, Clock: options.Clock, Logger: log.With("part", "policies"),
	})
	p.nodes = &nodes{options: options}
	if p.server, err = apiserver.New(apiserver.Options{
		Storage:    p.store.StorageDecorator(p.cached),
		Encryption: p.encryption,
		Informers:  p.informers,
		Listener:   p.listener,
		Dir:        options.dir("pki"),
		Admission:  []admission.Interface{policyadmission.New(p.policies, p.informers.Core().V1().Namespaces().Lister())},
		NodeTransport: func(node string) (http.RoundTripper, bool) {
			select {
			case <-p.workers:
				return p.nodes.transport(node)
			default: // a fork that has not been started has none
				return nil, false
			}
		},
		Reserve: p.reserve,
		Decisions: func(ctx context.Context, namespace, pod string, view apiserver.DecisionView) (*decisionv1alpha1.Decision, error) {
			select {
			case <-p.leading:
				return p.explain(ctx, namespace, pod, view)
			default:
				return nil, apierrors.NewServiceUnavailable("no scheduler runs in this engine: ask the one that leads; a fork has none until it is started")
			}
		},
		Paths: map[string]http.Handler{BackupPath: http.HandlerFunc(p.backup), HistoryPath: http.HandlerFunc(p.history), RotateKeyPath: http.HandlerFunc(p.rotateKey),
			CertificatesPath: http.HandlerFunc(p.certificates), RotateCertificatesPath: http.HandlerFunc(p.rotateCertificates), AuthoritiesPath: http.HandlerFunc(p.authorities)},
		Metrics: p.metrics,
		Components: map[string]func() error{
			"controller-manager": p.works, "scheduler": p.works,
		},
		Audit: options.API.Audit, AuthenticationConfig: options.API.AuthenticationConfig, Without: options.API.Without,
		EnableAdmission: options.API.EnableAdmission, DisableAdmission: options.API.DisableAdmission,
		Version: options.Version,
		Clock:   options.Clock,
		Logger:  log.With("part", "apiserver"),
	}); err != nil {
		return err
	}
	// Pods may be many, and of what answers a request only the node authorizer needs
	// them, which refuses what it does not know of yet.
	pods := p.informers.Core().V1().Pods().Informer()
	p.obeyed = slices.DeleteFunc(p.informers.Made(), func(i cache.SharedIndexInformer) bool { return i == pods })
	p.transport.set(p.server.RESTConfig(nil).Transport)
	return nil
}

// assembleWorkers makes what uses the server, in every engine: policies, nodes.
func (p *parts) assembleWorkers() error {
	options, log := p.options, p.options.Logger
	p.recorder = newRecorder(p.client, "policy-controller")
	configMaps := p.informers.Core().V1().ConfigMaps()
	revisions := p.informers.Apps().V1().ControllerRevisions()
	configMaps.Informer() // asked for now, so that they start with the others
	revisions.Informer()
	p.loader = policy.New(policy.Options{
		Client: p.ours, Policies: p.informers.Policies(), ConfigMaps: configMaps, Host: p.policies,
		Kube: p.client, Revisions: revisions,
		Dir: options.PolicyDir, Recorder: p.recorder, Clock: options.Clock, Logger: log.With("part", "policies"),
	})
	if options.PolicyDir != "" {
		p.directory = policy.NewSyncer(policy.SyncerOptions{Dir: options.PolicyDir, Client: p.ours, Recorder: p.recorder, Logger: log.With("part", "policies")})
	}
	return p.nodes.assemble(p)
}

// assembleLeader makes what only one engine over the same objects may run:
// controllers and scheduler. They follow the informers from then on.
func (p *parts) assembleLeader() (err error) {
	options, log := p.options, p.options.Logger
	if err = p.assembleControllers(); err != nil {
		return err
	}
	var podGroups cache.SharedIndexInformer
	if apiserver.SchedulesPodGroups(options.API.Without...) {
		podGroups = p.informers.Scheduling().V1alpha2().PodGroups().Informer()
	}
	if p.scheduler, err = scheduler.New(scheduler.Options{
		Client: p.client, Informers: p.informers, Profiles: p.informers.Profiles(), PodGroups: podGroups, Policies: p.policies,
		Committer: binder{p.store}, Unjudged: p.unjudged, Metrics: p.metrics, Seed: options.Seed, Clock: options.Clock, Logger: log.With("part", "scheduler"),
	}); err != nil {
		return err
	}
	close(p.leading)
	return nil
}

func (p *parts) assembleControllers() (err error) {
	options, log := p.options, p.options.Logger
	meta, err := metadata.NewForConfig(p.config())
	if err != nil {
		return err
	}
	definitions := p.server.CustomResourceDefinitions()
	served := []kinds.Kind{{
		GroupVersionResource: apiextensionsv1.SchemeGroupVersion.WithResource("customresourcedefinitions"),
		Kind:                 "CustomResourceDefinition", Informer: definitions,
	}}
	for _, r := range apiserver.Resources(p.options.API.Without...) {
		kind := kinds.Kind{GroupVersionResource: r.GroupVersionResource, Kind: r.Kind, Namespaced: r.Namespaced}
		if r.Resource != "events" { // nothing owns one, they end by themselves, and there are many: none is kept in memory
			generic, err := p.informers.ForResource(r.GroupVersionResource)
			if err != nil {
				return err
			}
			kind.Informer = generic.Informer()
		}
		served = append(served, kind)
	}
	p.kinds = kinds.NewDynamic(served, definitions, meta)
	if services := p.server.APIServices(); services != nil {
		p.kinds.Elsewhere(services, p.client.Discovery())
	}
	if p.controllers, err = controllers.New(controllers.Options{
		Client: p.client, Informers: p.informers, Kinds: p.kinds, Metadata: meta, Without: controllers.Of(p.options.API.Without...),
		Pods: p.podControl(), Clock: options.Clock, Logger: log.With("part", "controllers"),
	}); err != nil {
		return err
	}
	p.upstream, err = upstream.New(upstream.Options{
		Client: p.client, Config: p.config(), Informers: p.informers, Kinds: p.kinds, NodeRanges: options.nodeRanges(), Clock: options.Clock,
		Authority: p.server.Authority, Trust: p.server.CAPEM, Changed: p.server.CredentialsChanged,
	})
	return err
}

// run runs everything until the context ends or a part fails, and calls ready
// once. The informers and the server end last: the others use them to the end.
func (p *parts) run(ctx context.Context, ready func()) error {
	below, endBelow := context.WithCancel(context.WithoutCancel(ctx))
	defer endBelow()
	base, below := errgroup.WithContext(below)
	base.Go(func() error { return p.server.Run(below) })
	base.Go(func() error {
		select {
		case <-p.awake:
			p.informers.StartWithContext(below)
		case <-below.Done():
		}
		<-below.Done()
		p.informers.Shutdown()
		return nil
	})

	above, ctx := errgroup.WithContext(ctx)
	above.Go(func() error { // a server that fails takes the rest along
		select {
		case <-below.Done():
			return context.Cause(below)
		case <-ctx.Done():
			return nil
		}
	})
	above.Go(func() error {
		select {
		case <-p.server.Ready():
		case <-ctx.Done():
			return nil
		}
		select {
		case <-p.workers:
		case <-ctx.Done():
			return nil
		}
		return p.work(ctx, below, ready)
	})
	err := above.Wait()
	endBelow()
	if failed := base.Wait(); failed != nil {
		err = failed // what above saw of it is an echo
	}
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

// work runs what uses the server, until the context ends or a part fails. The
// informers that it asks for run until below ends.
func (p *parts) work(ctx, below context.Context, ready func()) error {
	group, ctx := errgroup.WithContext(ctx)
	p.informers.StartWithContext(below) // a fork's run already, but for those of its workers
	p.recorder.start()
	synced := []<-chan struct{}{p.loader.Synced()}
	if p.options.Etcd == nil && p.directory != nil {
		synced = append(synced, p.directory.Synced())
	}
	group.Go(func() error { return p.loader.Run(ctx) })
	group.Go(func() error { return p.nodes.run(ctx) })
	if p.options.Etcd == nil {
		p.workLeader(ctx, group)
	} else {
		group.Go(func() error {
			return p.lead(ctx, func(ctx context.Context) error {
				if err := p.assembleLeader(); err != nil {
					return err
				}
				p.informers.StartWithContext(below)
				group, ctx := errgroup.WithContext(ctx)
				p.workLeader(ctx, group)
				return group.Wait()
			})
		})
	}
	group.Go(func() error {
		if err := informer.WaitTold(ctx, p.obeyed...); err != nil {
			return nil // the context ended
		}
		for _, part := range synced {
			select {
			case <-part:
			case <-ctx.Done():
				return nil
			}
		}
		ready()
		p.settle()
		select {
		case <-p.leading:
		case <-ctx.Done():
			return nil
		}
		if informer.WaitTold(ctx, p.informers.Made()...) == nil {
			close(p.synced)
		}
		return nil
	})
	return group.Wait()
}

// workLeader runs what assembleLeader made.
func (p *parts) workLeader(ctx context.Context, group *errgroup.Group) {
	run := []func(context.Context) error{p.kinds.Run, p.controllers.Run, p.upstream.Run, p.scheduler.Run}
	if p.directory != nil {
		run = append(run, p.directory.Run)
	}
	for _, part := range run {
		group.Go(func() error { return part(ctx) })
	}
}

// works tells whether what uses the server runs here, or waits for its turn to lead.
func (p *parts) works() error {
	select {
	case <-p.workers:
		return nil
	default:
		return errors.New("it has not been started in this fork")
	}
}

// close frees what assemble opened, users before what they use.
func (p *parts) close() error {
	p.end()
	var errs []error
	if p.nodes != nil {
		errs = append(errs, p.nodes.close())
	}
	if p.recorder != nil {
		p.recorder.stop()
	}
	if p.policies != nil {
		p.policies.Close()
	}
	if p.wasm != nil {
		errs = append(errs, p.wasm.Close())
	}
	if p.server != nil {
		p.server.Close()
	}
	if p.listener != nil {
		if err := p.listener.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	p.encryption.Close()
	if p.store != nil {
		errs = append(errs, p.store.Close())
	}
	return errors.Join(errs...)
}

// dir is a folder of the data directory, "" when everything is in memory.
func (o *Options) dir(name string) string {
	if o.DataDir == "" {
		return ""
	}
	return filepath.Join(o.DataDir, name)
}
