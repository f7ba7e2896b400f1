package remote

import (
	"context"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// watchRanges tells of the node's ranges of pod addresses, which the cluster gives it after it has joined, until ctx ends.
// What cannot be taken is tried again when the Node changes, and now and then.
func watchRanges(ctx context.Context, wg *sync.WaitGroup, client kubernetes.Interface, opts Options) error {
	nodes := coreinformers.NewFilteredNodeInformer(client, time.Minute, cache.Indexers{}, func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, opts.NodeName).String()
	})
	var told []string
	look := func(o any) {
		node, ok := o.(*v1.Node)
		if !ok || node.Name != opts.NodeName || len(node.Spec.PodCIDRs) == 0 || slices.Equal(node.Spec.PodCIDRs, told) {
			return
		}
		if err := opts.PodCIDRs(node.Spec.PodCIDRs); err != nil {
			opts.Logger.Error("take the node's ranges of pod addresses", "ranges", node.Spec.PodCIDRs, "err", err)
			return
		}
		told = node.Spec.PodCIDRs
	}
	if _, err := nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: look, UpdateFunc: func(_, o any) { look(o) }}); err != nil {
		return err
	}
	wg.Go(func() { nodes.RunWithContext(ctx) })
	return nil
}
