package upstream

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/controller/nodeipam/ipam"
)

// NodeRanges say where the ranges of nodes' pod addresses come from.
type NodeRanges struct {
	// Cluster are what they are parts of, one of each IP family at most.
	Cluster []netip.Prefix
	// Sizes are the bits of a node's range, of each of these.
	Sizes []int
	// Services are ranges that no node may get a part of.
	Services []netip.Prefix
}

// Default sizes of nodes' ranges, as upstream has them.
const (
	NodeSizeIPv4 = 24
	NodeSizeIPv6 = 64
)

// maxNodeBits is how many bits upstream's allocator may tell nodes apart by.
const maxNodeBits = 16

// Check says what is wrong with the ranges.
func (r NodeRanges) Check() error {
	if len(r.Cluster) > 2 || len(r.Cluster) == 2 && r.Cluster[0].Addr().Is4() == r.Cluster[1].Addr().Is4() {
		return fmt.Errorf("%v: there may be one range of each IP family", r.Cluster)
	}
	for i, p := range r.Cluster {
		if p != p.Masked() {
			return fmt.Errorf("%s has bits set beyond its size: it is %s", p, p.Masked())
		}
		if size := r.Sizes[i]; size < p.Bits() || size > p.Addr().BitLen()-2 {
			return fmt.Errorf("%s has no parts of /%d for nodes: say one from /%d to /%d", p, size, p.Bits(), min(p.Bits()+maxNodeBits, p.Addr().BitLen()-2))
		} else if size-p.Bits() > maxNodeBits {
			return fmt.Errorf("%s has too many parts of /%d: the size may differ from the range's by %d", p, size, maxNodeBits)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// newNodeRanges makes upstream's allocator, when the first node is there.
func newNodeRanges(ctx context.Context, o Options) (func(context.Context), error) {
	nodes := o.Informers.Core().V1().Nodes()
	if !cache.WaitForCacheSync(ctx.Done(), nodes.Informer().HasSynced) { // so that what nodes have is known
		return func(context.Context) {}, nil
	}
	list, err := nodes.Lister().List(labels.Everything())
	if err != nil {
		return nil, err
	}
	params := ipam.CIDRAllocatorParams{NodeCIDRMaskSizes: o.NodeRanges.Sizes}
	for _, p := range o.NodeRanges.Cluster {
		params.ClusterCIDRs = append(params.ClusterCIDRs, ipNet(p))
	}
	for i, p := range o.NodeRanges.Services {
		switch i {
		case 0:
			params.ServiceCIDR = ipNet(p)
		case 1:
			params.SecondaryServiceCIDR = ipNet(p)
		}
	}
	known := &corev1.NodeList{}
	for _, node := range list {
		// Upstream's allocator does not begin where a node has a range of somewhere else; what it cannot give away nobody loses.
		if o.NodeRanges.has(node) {
			known.Items = append(known.Items, *node)
		} else if len(node.Spec.PodCIDRs) > 0 {
			utilruntime.HandleErrorWithContext(ctx, nil, "A node's pod addresses are not of the cluster's ranges", "node", node.Name, "podCIDRs", node.Spec.PodCIDRs, "ranges", o.NodeRanges.Cluster)
		}
	}
	allocator, err := ipam.NewCIDRRangeAllocator(ctx, o.Client, nodes, params, known)
	if err != nil {
		return nil, err
	}
	return allocator.Run, nil
}

// has tells whether all of a node's ranges are of the cluster's, each of its own.
func (r NodeRanges) has(node *corev1.Node) bool {
	if len(node.Spec.PodCIDRs) == 0 || len(node.Spec.PodCIDRs) > len(r.Cluster) {
		return false
	}
	for i, text := range node.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(text); err != nil || !r.Cluster[i].Overlaps(p) {
			return false
		}
	}
	return true
}
