package apiserver

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/waitgroup"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/generic"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/pkg/capabilities"
	"k8s.io/kubernetes/pkg/registry/core/service/ipallocator"
	"k8s.io/kubernetes/pkg/registry/core/service/portallocator"
	servicestore "k8s.io/kubernetes/pkg/registry/core/service/storage"
	"k8s.io/kubernetes/pkg/serviceaccount"
	"k8s.io/utils/clock"

	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
)

// Options of a server. Storage and Informers are required.
type Options struct {
	// Storage makes the storage of each kind. All of them share one store.
	Storage generic.StorageDecorator
	// Encryption of stored values; nil stores them as they are. The informers must
	// have the same.
	Encryption *Encryption
	// Informers feed admission and authorisation. The server asks for informers
	// in New and never starts them: start the factory after New.
	Informers informers.SharedInformerFactory
	// Listener is served with TLS; nil means that no port is served. The server
	// closes it at the end of Run.
	Listener net.Listener
	// Dir keeps the keys: it is created with mode 0700, its files have 0600.
	// Empty means that keys live in memory only.
	Dir string
	// Admission plugins come after upstream's webhooks and before its
	// ResourceQuota: all mutate in order, then all validate in order. They are
	// initialised as upstream's are.
	Admission []admission.Interface
	// EnableAdmission and DisableAdmission name plugins of upstream that are in
	// force beyond the default ones, and that are not: see AdmissionPlugins.
	EnableAdmission, DisableAdmission []string
	// NodeTransport reaches the kubelet API of a node of this process without a
	// port, see HandlerTransport. Any other node is reached by TLS at the address
	// and kubelet port of its status.
	NodeTransport func(node string) (http.RoundTripper, bool)
	// Reserve is asked before a pod is bound through the API; nil: nobody is.
	Reserve Reserve
	// Decisions explains where a pod goes, for the virtual resource "decisions" and
	// its subresources. An error of Kubernetes' kinds is passed on; nil
	// without one is a 404.
	Decisions func(ctx context.Context, namespace, pod string, view DecisionView) (*decisionv1alpha1.Decision, error)
	// Paths are served beside the API, such as "/backup". They are authenticated,
	// authorised as non-resource URLs, may take as long as they need and end with
	// the server.
	Paths map[string]http.Handler
	// Audit logs requests; nil logs none. What Direct does is no request.
	Audit *Audit
	// AuthenticationConfig is a file with an AuthenticationConfiguration of
	// apiserver.config.k8s.io: OpenID Connect issuers whose tokens are accepted. It
	// is read again when it changes; a broken one changes nothing.
	AuthenticationConfig string
	// Without names kinds that are not served, as "horizontalpodautoscalers.autoscaling":
	// they have no path, no discovery and no OpenAPI. Kinds that the server itself needs
	// are refused. Have the factory of Informers leave them out too (informer.Factory.LeaveOut).
	Without []string
	// Metrics of the engine, served at /metrics after those that upstream's
	// libraries keep for the whole process. May be nil.
	Metrics prometheus.Gatherer
	// Components are asked how they are for the (deprecated) ComponentStatuses, by
	// name, such as "scheduler": nil is well. The store is one, as "etcd-0".
	Components map[string]func() error
	// Version is appended to the Kubernetes version as build metadata: "v1.36.3+quaymaster-VERSION".
	Version string
	// RequestTimeout bounds requests that are neither watches nor streams, the body
	// on its way here and the answer on its way back included; 0 is upstream's
	// default, one minute. Clients of this process are bound by it as well.
	RequestTimeout time.Duration
	// StallTimeout is how long the client of a watch or a stream may leave 64 KiB
	// unread before it is cut off; 0 is one minute. It is for the port only.
	StallTimeout time.Duration
	// DrainTimeout bounds how long requests that are neither watches nor streams
	// may take after the end of Run's context; 0 is 5 seconds.
	DrainTimeout time.Duration
	// Clock for certificates and tokens; the real one by default.
	Clock clock.PassiveClock
	// Logger may be nil.
	Logger *slog.Logger
}

// ErrClosed is what in-memory clients get when Run has ended.
var ErrClosed = errors.New("the API server has been closed")

// Server is one API server. Several in one process share nothing.
type Server struct {
	options Options
	log     *slog.Logger
	clock   clock.PassiveClock
	pki     *pki

	generic       *genericapiserver.GenericAPIServer
	front         *genericapiserver.GenericAPIServer // whose handler sees requests first: the aggregator's, or generic
	authenticator authenticator.Request
	authorizer    authorizer.Authorizer
	rules         authorizer.RuleResolver
	outsiders     *outsiders // nil: tokens of no other issuers are accepted
	tokens        serviceaccount.TokenGenerator
	tokenKeys     serviceaccount.PublicKeysGetter
	audiences     authenticator.Audiences
	admission     admission.Interface
	requestInfo   apirequest.RequestInfoResolver
	registries    *registries
	client        kubernetes.Interface
	mapper        meta.ResettableRESTMapper

	stored     storages
	ordinaries *ordinaries
	auditing

	custom     *custom
	aggregator *aggregator // nil: left out
	webhooks   *webhooks

	kubelets          *kubelets
	usage             *usage
	proxy             *http.Transport
	addresses         *addresses // nil: left out
	inMemoryAddresses *ipallocator.Range
	ports             *portallocator.PortAllocator
	services          *servicestore.REST

	ready     chan struct{}
	closing   context.Context // ends with Run's context: watches and logs with it
	close     context.CancelFunc
	aborted   context.Context // ends what did not finish in time
	abort     context.CancelFunc
	temporary string // a folder to remove in the end; ""
	joinToken string // its first three parts
	running   sync.Mutex
	judged    waitgroup.SafeWaitGroup // requests in the admission chain
}

// New assembles a server. It writes nothing but keys; in-memory clients may be
// made at once and used when Run has been called.
func New(options Options) (*Server, error) {
	if options.Storage == nil || options.Informers == nil {
		return nil, errors.New("assemble the API server: Storage and Informers are required")
	}
	capabilities.Setup(true, 0) // of the process: PodSecurity says which namespaces may have privileged pods
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	if options.Clock == nil {
		options.Clock = clock.RealClock{}
	}
	options.RequestTimeout = cmp.Or(options.RequestTimeout, defaultRequestTimeout)
	options.StallTimeout = cmp.Or(options.StallTimeout, defaultStallTimeout)
	options.DrainTimeout = cmp.Or(options.DrainTimeout, defaultDrainTimeout)
	s := &Server{
		options: options,
		log:     options.Logger,
		clock:   options.Clock,
		ready:   make(chan struct{}),
		// Pods and services are reached by address, whose certificates are whatever they made: as upstream, nobody is verified.
		proxy: &http.Transport{IdleConnTimeout: 90 * time.Second, MaxIdleConnsPerHost: 4, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}},
	}
	if err := s.checkWithout(); err != nil {
		return nil, fmt.Errorf("assemble the API server: %w", err)
	}
	s.ordinaries = &ordinaries{server: s, kinds: map[path]*ordinary{}}
	s.closing, s.close = context.WithCancel(context.Background())
	s.aborted, s.abort = context.WithCancel(context.Background())
	var err error
	if s.pki, err = loadPKI(options.Dir, options.Clock); err != nil {
		return nil, err
	}
	if s.client, err = kubernetes.NewForConfig(s.loopback()); err != nil {
		return nil, fmt.Errorf("assemble the API server: loopback client: %w", err)
	}
	s.mapper = newMapper(s.client.Discovery())
	s.kubelets = newKubelets(s)
	s.usage = &usage{server: s}
	if err := s.newAuthorization(); err != nil {
		return nil, fmt.Errorf("assemble the API server: %w", err)
	}
	if err := s.newAuthentication(); err != nil {
		return nil, fmt.Errorf("assemble the API server: %w", err)
	}
	if s.webhooks, err = newWebhooks(s); err != nil {
		return nil, fmt.Errorf("assemble the API server: %w", err)
	}
	if err := s.newAdmission(); err != nil {
		return nil, fmt.Errorf("assemble the API server: %w", err)
	}
	if err := s.newAudit(); err != nil {
		return nil, fmt.Errorf("assemble the API server: %w", err)
	}
	if err := s.install(); err != nil {
		return nil, fmt.Errorf("assemble the API server: %w", errors.Join(err, s.closeAudit()))
	}
	return s, nil
}

// Ready is closed when the system's own objects exist and requests are served.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// CAPEM is the certificate of the server's authority, PEM. After it come those of
// before that are still trusted.
func (s *Server) CAPEM() []byte { return s.pki.trustPEM() }

// Handler serves the API. Requests are authenticated by what they carry.
func (s *Server) Handler() http.Handler { return s.front.Handler }

// RESTConfig configures clients of this process: no port, no TLS. The requests
// are those of the user; nil means an administrator in system:masters.
func (s *Server) RESTConfig(who user.Info) *rest.Config {
	if who == nil {
		who = &user.DefaultInfo{Name: "system:admin", Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated}}
	}
	return &rest.Config{
		Host:      "http://" + inMemoryHost,
		Transport: &inMemory{handler: s.handler, user: who, closing: s.closing, aborted: s.aborted},
		QPS:       -1, // nothing to protect: the server shares the process
		ContentConfig: rest.ContentConfig{
			ContentType:        "application/vnd.kubernetes.protobuf",
			AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json",
		},
	}
}

// loopback is what the server itself uses, under upstream's name for it.
func (s *Server) loopback() *rest.Config {
	return s.RESTConfig(&user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated}})
}

// handler is asked at each request: the generic server is made after the first
// clients.
func (s *Server) handler() http.Handler {
	if s.front == nil {
		return nil
	}
	return s.front.Handler
}

// Run serves until the context ends, then lets requests finish, ends watches
// and closes the storages. It returns nil after an orderly end. Call it once.
func (s *Server) Run(ctx context.Context) error {
	if !s.running.TryLock() {
		return errors.New("run the API server: it runs, or has run, already")
	}
	defer s.Close()
	prepared := s.front.PrepareRun()
	hooks, stopHooks := context.WithCancel(ctx)
	var working sync.WaitGroup
	defer working.Wait()
	defer s.custom.Informers.Shutdown()
	defer stopHooks()
	err := s.custom.start(hooks)
	if err == nil && s.aggregator != nil {
		err = s.aggregator.start(hooks)
	}
	if err == nil {
		prepared.RunPostStartHooks(hooks)
		if s.aggregator != nil {
			working.Go(func() { s.aggregator.run(hooks) })
		}
		if s.addresses != nil {
			working.Go(func() { s.addresses.run(hooks) })
		}
	}

	served := make(chan error, 1)
	var http *http.Server
	if s.options.Listener != nil {
		http = s.newHTTPServer()
		go func() { served <- http.ServeTLS(s.options.Listener, "", "") }()
	}
	if err == nil {
		err = s.bootstrap(ctx)
	}
	if err == nil {
		err = s.custom.served(ctx)
	}
	if err == nil && s.aggregator != nil {
		err = s.aggregator.served(ctx)
	}
	if err != nil {
		if ctx.Err() == nil {
			err = fmt.Errorf("run the API server: %w", err)
		} else {
			err = nil
		}
		s.drain(http)
		return err
	}
	close(s.ready)
	working.Go(func() { s.keep(hooks) })
	working.Go(func() { s.keepCredentials(hooks) })
	if s.outsiders != nil {
		working.Go(func() { s.outsiders.follow(hooks) })
	}

	select {
	case <-ctx.Done():
	case err = <-served:
		err = fmt.Errorf("run the API server: %w", err)
	}
	s.drain(http)
	return err
}

// drain refuses new requests and waits for those under way; watches end at once.
func (s *Server) drain(server *http.Server) {
	s.close()
	late := time.AfterFunc(s.options.DrainTimeout, s.abort)
	defer late.Stop()
	if server != nil {
		if server.Shutdown(s.aborted) != nil {
			server.Close() // cuts off whoever did not finish in time
		}
	}
	s.generic.NonLongRunningRequestWaitGroup.Wait()
	s.judged.Wait()
}

// Close frees what New made. Run does so itself: only a server that was never
// run needs it. It may be called again.
func (s *Server) Close() {
	s.close()
	s.abort()
	if s.running.TryLock() { // never run: what upstream started in New ends in its hooks
		s.front.RunPostStartHooks(s.closing)
		if s.aggregator != nil {
			s.aggregator.run(s.closing)
		}
		if s.addresses != nil {
			s.addresses.run(s.closing)
		}
		s.custom.Informers.Shutdown()
	}
	s.front.Destroy()
	if s.temporary != "" {
		if err := os.RemoveAll(s.temporary); err != nil {
			s.log.Error("remove the front proxy's key", "error", err)
		}
	}
	s.proxy.CloseIdleConnections()
	s.kubelets.close()
	if err := s.closeAudit(); err != nil {
		s.log.Error("close the audit log", "error", err)
	}
}

// Authority is the certificate and the key of the cluster's authority, PEM, for
// the controllers that sign certificate requests. A rotation changes them, see
// CredentialsChanged.
func (s *Server) Authority() (certPEM, keyPEM []byte) {
	a := s.pki.cluster.Load()
	return a.certPEM, a.keyPEM
}
