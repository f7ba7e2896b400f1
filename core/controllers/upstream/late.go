package upstream

import (
	"context"
	"fmt"
	"sync"

	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/tools/cache"
)

// late makes and runs a controller when the first of its objects is there:
// until then it costs nothing.
func (o Options) late(name string, objects cache.SharedIndexInformer, newController func(context.Context, Options) (func(context.Context), error)) (func(context.Context), error) {
	seen := make(chan struct{})
	first := sync.OnceFunc(func() { close(seen) })
	registration, err := objects.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { first() }})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return func(ctx context.Context) {
		select {
		case <-seen:
			_ = objects.RemoveEventHandler(registration) // an error means that the informer has ended
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
