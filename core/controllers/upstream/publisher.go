package upstream

import (
	"context"
	"fmt"
	"sync"

	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/certificates/rootcacertpublisher"
)

// publisher keeps the ConfigMap kube-root-ca.crt of every namespace. Upstream's
// controller is given the certificates once: when they change, another takes its place.
type publisher struct {
	options Options
	first   *publishing
}

// publishing is one controller of upstream, with what it has registered.
type publishing struct {
	controller *rootcacertpublisher.Publisher
	changed    <-chan struct{}
	maps       *handlers
	spaces     *handlers
}

func newPublisher(o Options) (*publisher, error) {
	p := &publisher{options: o}
	var err error
	p.first, err = p.start()
	return p, err
}

func (p *publisher) start() (*publishing, error) {
	core := p.options.Informers.Core().V1()
	out := &publishing{maps: &handlers{SharedIndexInformer: core.ConfigMaps().Informer()}, spaces: &handlers{SharedIndexInformer: core.Namespaces().Informer()}}
	if p.options.Changed != nil {
		out.changed = p.options.Changed() // before what it tells of is read
	}
	var err error
	out.controller, err = rootcacertpublisher.NewPublisher(configMaps{core.ConfigMaps(), out.maps}, namespaces{core.Namespaces(), out.spaces}, p.options.Client, p.options.Trust())
	return out, err
}

func (p *publisher) run(ctx context.Context) {
	for now := p.first; ctx.Err() == nil; {
		running, stop := context.WithCancel(ctx)
		var ended sync.WaitGroup
		ended.Go(func() { now.controller.Run(running, workers) })
		select {
		case <-ctx.Done():
		case <-now.changed:
		}
		stop()
		ended.Wait()
		if ctx.Err() != nil {
			return
		}
		now.maps.remove()
		now.spaces.remove()
		next, err := p.start()
		if err != nil { // upstream's constructor has none to return yet
			klog.FromContext(ctx).Error(err, "root certificates are not published")
			return
		}
		now = next
	}
}

// handlers remembers what is registered with an informer.
type handlers struct {
	cache.SharedIndexInformer
	all []cache.ResourceEventHandlerRegistration
}

func (h *handlers) AddEventHandler(handler cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	r, err := h.SharedIndexInformer.AddEventHandler(handler)
	if err != nil {
		return nil, fmt.Errorf("follow: %w", err)
	}
	h.all = append(h.all, r)
	return r, nil
}

func (h *handlers) remove() {
	for _, r := range h.all {
		_ = h.RemoveEventHandler(r) // fails when the informer has ended, and with it the handlers
	}
}

type configMaps struct {
	coreinformers.ConfigMapInformer
	handlers *handlers
}

func (c configMaps) Informer() cache.SharedIndexInformer { return c.handlers }

type namespaces struct {
	coreinformers.NamespaceInformer
	handlers *handlers
}

func (n namespaces) Informer() cache.SharedIndexInformer { return n.handlers }
