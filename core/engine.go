// Package core is the engine as a library: New puts store, API server,
// controllers, scheduler, policies and nodes together, and nothing else does.
//
//	e, err := core.New(core.Options{}) // in memory, no port
//	if err != nil { … }
//	if err := e.Start(ctx); err != nil { … }
//	defer e.Close(ctx)
//	<-e.Ready()
//	pods, err := e.Client().CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
//
// Engines share nothing: a process may hold many. An engine reads no flags and
// no environment, handles no signals and never ends the process.
package core

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/quaymaster/quaymaster/core/api"
)

// ErrClosed is what an engine ends with when it was closed before it was ready.
var ErrClosed = errors.New("the engine has been closed")

// Engine is one Quaymaster. Its methods are safe for concurrent use.
type Engine struct {
	parts *parts
	ready chan struct{}
	done  chan struct{} // closed when everything has ended

	mu      sync.Mutex
	started bool
	cancel  context.CancelFunc // nil: nothing runs
	err     error              // of the parts; read after done
}

// New opens the data directory and the port. Nothing runs before Start. An
// engine that was not started must be closed as well.
func New(options Options) (*Engine, error) {
	if err := options.complete(); err != nil {
		return nil, err
	}
	if err := checkGates(); err != nil {
		return nil, err
	}
	p, err := open(&options)
	if err != nil {
		return nil, err
	}
	return &Engine{parts: p, ready: make(chan struct{}), done: make(chan struct{})}, nil
}

// Start puts the parts together, sets them going and returns. It runs until the context
// ends or Close is called.
func (e *Engine) Start(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.started {
		return errors.New("start the engine: it was started, or closed, before")
	}
	e.started = true
	if e.cancel != nil { // a fork, whose server runs
		return e.startFork(ctx)
	}
	err := e.parts.assemble()
	if err == nil {
		err = e.parts.assembleWorkers()
	}
	if err == nil && e.parts.options.Etcd == nil {
		err = e.parts.assembleLeader()
	}
	if err != nil {
		e.err = errors.Join(err, e.parts.close())
		close(e.done)
		return err
	}
	e.parts.wake()
	close(e.parts.workers)
	e.run(ctx)
	return nil
}

// run sets the parts going, until the context ends or one fails.
func (e *Engine) run(ctx context.Context) {
	ctx, e.cancel = context.WithCancel(ctx)
	go func() {
		err := e.parts.run(ctx, func() { close(e.ready) })
		e.cancel()
		e.err = errors.Join(err, e.parts.close())
		close(e.done)
	}()
}

// Ready is closed when requests are answered as they will be from then on: the
// system's own objects exist, policies are loaded, and what authentication, RBAC
// and admission go by has been read. Over many pods that is before Synced: until
// the node authorizer knows of a pod it refuses its node what the pod may see. It stays
// open when the engine ends before that: see Done.
func (e *Engine) Ready() <-chan struct{} { return e.ready }

// Synced is closed when this engine leads, and every controller, the scheduler,
// the nodes of this process and the server have been told of all that was stored
// at the start. None of them acts on less than all of a kind.
func (e *Engine) Synced() <-chan struct{} { return e.parts.synced }

// Leading is closed when this engine runs the controllers and the scheduler. On
// the embedded store it does so from its start; of those that share an etcd one
// does, and another when that one ends.
func (e *Engine) Leading() <-chan struct{} { return e.parts.leading }

// Done is closed when everything has ended. Close tells why.
func (e *Engine) Done() <-chan struct{} { return e.done }

// Close ends the engine, waits until it has ended and returns what failed in
// its life. It may be called many times. The context bounds the wait.
func (e *Engine) Close(ctx context.Context) error {
	e.mu.Lock()
	if e.cancel != nil {
		e.started = true
		e.cancel()
	} else if !e.started {
		e.started = true
		e.err = e.parts.close()
		close(e.done)
	}
	e.mu.Unlock()
	select {
	case <-e.done:
		return e.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the engine to end: %w", context.Cause(ctx))
	}
}

// Client is an administrator's client over the in-memory transport, past which
// it creates pods, unless there is an audit log. It may be used when the engine
// is ready.
func (e *Engine) Client() kubernetes.Interface { return client{e.parts.client, e.parts} }

// API is the same for Quaymaster's own kinds.
func (e *Engine) API() *api.Client { return e.parts.ours }

// RESTConfig is for other clients of this process: dynamic, metadata,
// controller-runtime. Each chooses its encoding, as not all of them know
// protobuf. It must not leave the process: its host is no host.
func (e *Engine) RESTConfig() *rest.Config {
	config := e.parts.config()
	config.ContentConfig = rest.ContentConfig{}
	return config
}

// Metrics of this engine, as /metrics serves them after those that upstream's
// libraries keep for the whole process.
func (e *Engine) Metrics() prometheus.Gatherer { return e.parts.metrics }

// Address of the HTTPS port, nil when none is served.
func (e *Engine) Address() net.Addr {
	if e.parts.listener == nil {
		return nil
	}
	return e.parts.listener.Addr()
}

// Kubeconfig is an administrator's, with a client certificate, for the port.
// Keep it as secret as a password.
func (e *Engine) Kubeconfig() ([]byte, error) { return e.parts.server.Kubeconfig() }

// JoinToken is what an agent on another machine needs to join. It is empty
// before the engine is ready.
func (e *Engine) JoinToken() string { return e.parts.server.JoinToken() }
