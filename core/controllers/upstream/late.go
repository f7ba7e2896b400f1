package upstream

import (
	"context"
	"fmt"
	"sync"

	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/tools/cache"
)

// late makes and runs a controller when the first object of one of its kinds is
// there: until then it costs nothing.
func (o Options) late(name string, newController func(context.Context, Options) (func(context.Context), error), kinds ...cache.SharedIndexInformer) (func(context.Context), error) {
	seen := make(chan struct{})
	first := sync.OnceFunc(func() { close(seen) })
	registrations := make([]cache.ResourceEventHandlerRegistration, len(kinds))
	for i, objects := range kinds {
		var err error
		if registrations[i], err = objects.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { first() }}); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return func(ctx context.Context) {
		select {
		case <-seen:
			for i, objects := range kinds {
				_ = objects.RemoveEventHandler(registrations[i]) // an error means that the informer has ended
			}
		case <-ctx.Done():
			return
		}
		run, err := newController(ctx, o)
		if err != nil {
			utilruntime.HandleErrorWithContext(ctx, err, "The controller cannot be started", "controller", name)
			return
		}
		run(ctx)
	}, nil
}

// heldPods keeps back the handlers that a controller adds while it is made:
// upstream's disruption controller reads in them what it sets afterwards, and
// the informers of one that is made late are running.
type heldPods struct {
	coreinformers.PodInformer
	held []cache.ResourceEventHandler
}

func (p *heldPods) Informer() cache.SharedIndexInformer {
	return heldInformer{p.PodInformer.Informer(), p}
}

// release adds the handlers.
func (p *heldPods) release() error {
	for _, handler := range p.held {
		if _, err := p.PodInformer.Informer().AddEventHandler(handler); err != nil {
			return err
		}
	}
	return nil
}

type heldInformer struct {
	cache.SharedIndexInformer
	pods *heldPods
}

// AddEventHandler gives no registration: the controller does not ask for one.
func (i heldInformer) AddEventHandler(handler cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	i.pods.held = append(i.pods.held, handler)
	return nil, nil
}
