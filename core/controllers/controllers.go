// Package controllers runs the loops that bring the cluster to what its objects
// ask for: one package a controller, each a pure planner and a thin loop on
// shared informers.
package controllers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/core/controllers/cronjob"
	"github.com/quaymaster/quaymaster/core/controllers/daemonset"
	"github.com/quaymaster/quaymaster/core/controllers/deployment"
	"github.com/quaymaster/quaymaster/core/controllers/endpoints"
	"github.com/quaymaster/quaymaster/core/controllers/eviction"
	"github.com/quaymaster/quaymaster/core/controllers/garbage"
	"github.com/quaymaster/quaymaster/core/controllers/job"
	"github.com/quaymaster/quaymaster/core/controllers/kinds"
	"github.com/quaymaster/quaymaster/core/controllers/loop"
	"github.com/quaymaster/quaymaster/core/controllers/namespace"
	"github.com/quaymaster/quaymaster/core/controllers/nodelifecycle"
	"github.com/quaymaster/quaymaster/core/controllers/podgc"
	"github.com/quaymaster/quaymaster/core/controllers/pods"
	"github.com/quaymaster/quaymaster/core/controllers/replicaset"
	"github.com/quaymaster/quaymaster/core/controllers/statefulset"
)

// Options are what the controllers work with. Client and Informers must be
// given; Kinds and Metadata too, unless the controllers that work on all kinds
// are left out.
type Options struct {
	Client kubernetes.Interface
	// Informers are started and stopped by the caller: New asks for what it
	// needs, so start them after New.
	Informers informers.SharedInformerFactory
	// Kinds are all that is served, with Metadata to delete any of it.
	Kinds    kinds.Source
	Metadata metadata.Interface
	// Pods creates and deletes pods; nil goes through Client.
	Pods pods.Control
	// Events takes the events; nil goes through Client.
	Events record.EventSink
	// Without are names of controllers that are not run; see Names.
	Without []string
	Clock   clock.WithTicker // nil is the real one
	Logger  *slog.Logger     // nil discards
}

// table is every controller, by the name upstream has for it, and the kind without which
// there is nothing for it to do; "" for one that looks after many kinds.
var table = []struct {
	name string
	kind string
	make func(Options, loop.Env) (loop.Controller, error)
}{
	{"deployment", "deployments.apps", func(_ Options, env loop.Env) (loop.Controller, error) { return deployment.New(env) }},
	{"replicaset", "replicasets.apps", func(o Options, env loop.Env) (loop.Controller, error) { return replicaset.New(env, o.Pods) }},
	{"job", "jobs.batch", func(o Options, env loop.Env) (loop.Controller, error) { return job.New(env, o.Pods) }},
	{"cronjob", "cronjobs.batch", func(_ Options, env loop.Env) (loop.Controller, error) { return cronjob.New(env) }},
	{"statefulset", "statefulsets.apps", func(o Options, env loop.Env) (loop.Controller, error) { return statefulset.New(env, o.Pods) }},
	{"daemonset", "daemonsets.apps", func(o Options, env loop.Env) (loop.Controller, error) { return daemonset.New(env, o.Pods) }},
	{"replicationcontroller", "replicationcontrollers", func(o Options, env loop.Env) (loop.Controller, error) {
		return replicaset.NewReplicationController(env, o.Pods)
	}},
	{"endpointslice", "services", func(_ Options, env loop.Env) (loop.Controller, error) { return endpoints.New(env) }},
	{"garbagecollector", "", func(o Options, env loop.Env) (loop.Controller, error) {
		return garbage.New(env, o.Kinds, o.Metadata, o.Pods)
	}},
	{"namespace", "namespaces", func(o Options, env loop.Env) (loop.Controller, error) {
		return namespace.New(env, o.Kinds, o.Metadata)
	}},
	{"nodelifecycle", "nodes", func(_ Options, env loop.Env) (loop.Controller, error) { return nodelifecycle.New(env) }},
	{"tainteviction", "pods", func(o Options, env loop.Env) (loop.Controller, error) { return eviction.New(env, o.Pods) }},
	{"podgc", "pods", func(o Options, env loop.Env) (loop.Controller, error) { return podgc.New(env, o.Pods) }},
}

// Names returns the names of all controllers.
func Names() []string {
	names := make([]string, len(table))
	for i, t := range table {
		names[i] = t.name
	}
	return names
}

// Of returns the names of the controllers of kinds, which are named as "jobs.batch".
func Of(kinds ...string) (names []string) {
	for _, t := range table {
		if t.kind != "" && slices.Contains(kinds, t.kind) {
			names = append(names, t.name)
		}
	}
	return names
}

// Controllers are the loops of one engine.
type Controllers struct {
	options   Options
	loops     map[string]loop.Controller
	recorders []*recorder
}

// New prepares the controllers and asks the informer factory for what they
// need. It starts nothing.
func New(o Options) (*Controllers, error) {
	if o.Client == nil || o.Informers == nil {
		return nil, errors.New("controllers: no client or no informers")
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Pods == nil {
		o.Pods = pods.Through(o.Client)
	}
	if o.Events == nil {
		o.Events = &typedcorev1.EventSinkImpl{Interface: o.Client.CoreV1().Events("")}
	}
	for _, name := range o.Without {
		if !slices.Contains(Names(), name) {
			return nil, fmt.Errorf("controllers: no controller %q; there are %v", name, Names())
		}
	}
	for _, name := range []string{"garbagecollector", "namespace"} {
		if !slices.Contains(o.Without, name) && (o.Kinds == nil || o.Metadata == nil) {
			return nil, fmt.Errorf("controllers: %s needs the served kinds and a metadata client", name)
		}
	}
	c := &Controllers{options: o, loops: make(map[string]loop.Controller)}
	env := loop.Env{Client: o.Client, Informers: o.Informers, Clock: o.Clock, Logger: o.Logger, Recorder: c.recorder}
	for _, t := range table {
		if slices.Contains(o.Without, t.name) {
			continue
		}
		made, err := t.make(o, env)
		if err != nil {
			return nil, fmt.Errorf("controllers: %s: %w", t.name, err)
		}
		c.loops[t.name] = made
	}
	return c, nil
}

// Run runs all controllers until the context ends or one fails, and returns
// when all have ended. It returns nil for the end of the context. It may be
// called once.
func (c *Controllers) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(c.options.Events)
	for _, r := range c.recorders {
		r.connect(events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: r.component}))
	}
	var running sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for name, l := range c.loops {
		running.Go(func() {
			if err := l.Run(ctx); err != nil {
				mu.Lock()
				errs = append(errs, fmt.Errorf("controllers: %s: %w", name, err))
				mu.Unlock()
				cancel()
			}
		})
	}
	running.Wait()
	return errors.Join(errs...)
}

func (c *Controllers) recorder(component string) record.EventRecorder {
	r := &recorder{component: component}
	c.recorders = append(c.recorders, r)
	return r
}
