package upstream

import (
	"context"
	"fmt"
	"sync"

	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
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
