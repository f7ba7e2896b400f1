package upstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	coreinformers "k8s.io/client-go/informers/core/v1"
	networkinginformers "k8s.io/client-go/informers/networking/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/controller/servicecidrs"

	"github.com/quaymaster/quaymaster/core/informer"
)

// late makes and runs a controller when the first object of one of its kinds is
// there: until then it costs nothing. It is nil where all of them are left out.
func (o Options) late(name string, newController func(context.Context, Options) (func(context.Context), error), kinds ...cache.SharedIndexInformer) (func(context.Context), error) {
	if !slices.ContainsFunc(kinds, func(i cache.SharedIndexInformer) bool { return !informer.LeftOut(i) }) {
		return nil, nil
	}
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

// held keeps back the handlers that a controller adds while it is made:
// upstream's read in them what they set afterwards, and the informers of one
// that is made late are running. It gives no registrations: they do not ask.
type held struct {
	cache.SharedIndexInformer
	handlers []cache.ResourceEventHandler
}

func hold(informer cache.SharedIndexInformer) *held { return &held{SharedIndexInformer: informer} }

// AddEventHandler implements cache.SharedInformer.
func (h *held) AddEventHandler(handler cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	h.handlers = append(h.handlers, handler)
	return nil, nil
}

// release adds the handlers.
func (h *held) release() error {
	for _, handler := range h.handlers {
		if _, err := h.SharedIndexInformer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	return nil
}

type heldPods struct {
	coreinformers.PodInformer
	*held
}

func (p heldPods) Informer() cache.SharedIndexInformer { return p.held }

type heldServiceCIDRs struct {
	networkinginformers.ServiceCIDRInformer
	*held
}

func (c heldServiceCIDRs) Informer() cache.SharedIndexInformer { return c.held }

type heldIPAddresses struct {
	networkinginformers.IPAddressInformer
	*held
}

func (a heldIPAddresses) Informer() cache.SharedIndexInformer { return a.held }

// newServiceCIDRs makes the controller that says which ranges of service
// addresses are ready, and keeps those in use from being deleted.
func newServiceCIDRs(ctx context.Context, o Options) (func(context.Context), error) {
	networking := o.Informers.Networking().V1()
	cidrs := heldServiceCIDRs{networking.ServiceCIDRs(), hold(networking.ServiceCIDRs().Informer())}
	addresses := heldIPAddresses{networking.IPAddresses(), hold(networking.IPAddresses().Informer())}
	controller := servicecidrs.NewController(ctx, cidrs, addresses, o.Client)
	if err := errors.Join(cidrs.release(), addresses.release()); err != nil {
		return nil, fmt.Errorf("ranges of service addresses: %w", err)
	}
	return with(controller.Run), nil
}
