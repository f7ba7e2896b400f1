package core

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// Fork gives an engine that begins with the state of this one at a moment, the
// present when it is zero, and goes its own way: neither sees what the other
// writes. It is in memory, reads from this engine's store what it has not
// changed itself, and leaves nothing behind. Close it when it is done; it also
// ends with ctx and with this engine.
//
// Its client may be used at once. Nothing works in it until its Start: no
// controller, no scheduler, no node, no policy. Then it is like any engine, on
// the clock, nodes and seed of its options. A fork has no DataDir, and a port
// only with Listen; its keys are its own, so that credentials of this engine
// mean nothing to it.
func (e *Engine) Fork(ctx context.Context, moment Moment, options Options) (*Engine, error) {
	if options.DataDir != "" {
		return nil, fmt.Errorf("fork: option DataDir: %q: a fork is in memory; back it up to keep it", options.DataDir)
	}
	of := e.parts
	if of.embedded == nil {
		return nil, fmt.Errorf("fork: %w", ErrNoHistory)
	}
	if options.Etcd != nil {
		return nil, errors.New("fork: option Etcd: a fork is in memory")
	}
	if options.Clock == nil {
		options.Clock = of.options.Clock
	}
	if options.Version == "" {
		options.Version = of.options.Version
	}
	if err := options.complete(); err != nil {
		return nil, err
	}
	revision := of.embedded.Revision()
	if moment != (Moment{}) {
		var err error
		if revision, err = of.resolve(moment); err != nil {
			return nil, fmt.Errorf("fork: %w", err)
		}
	}
	p, err := openOn(&options, func(p *parts) error {
		view, err := of.embedded.Fork(revision, options.Clock)
		if err == nil {
			p.store, p.embedded, p.encryption = view, view, of.encryption.ForFork()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	p.settle() // it is never ready before its Start
	if err := p.assemble(); err != nil {
		return nil, errors.Join(err, p.close())
	}
	f := &Engine{parts: p, ready: make(chan struct{}), done: make(chan struct{})}
	p.transport.set(waking{p.server.RESTConfig(nil).Transport, p.wake})
	if options.Listen != "" {
		p.wake()
	}
	f.run(ctx)
	context.AfterFunc(of.life, f.cancel)
	select {
	case <-p.server.Ready():
		return f, nil
	case <-f.done:
		return nil, errors.Join(fmt.Errorf("fork: %w", ErrClosed), f.err)
	}
}

// startFork runs what works in an engine.
func (e *Engine) startFork(ctx context.Context) error {
	err := e.parts.assembleWorkers()
	if err == nil {
		err = e.parts.assembleLeader()
	}
	if err != nil {
		e.cancel()
		return err
	}
	context.AfterFunc(ctx, e.cancel)
	e.parts.wake()
	close(e.parts.workers)
	return nil
}

// waking starts the informers with the first request that is not a read:
// admission needs them. Reads of an administrator need none, and over a hundred
// thousand objects none costs seconds less.
type waking struct {
	http.RoundTripper
	wake func()
}

func (w waking) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodGet {
		w.wake()
	}
	return w.RoundTripper.RoundTrip(r)
}

// Revision of the last change in the engine's store.
func (e *Engine) Revision() int64 { return e.parts.store.Revision() }
