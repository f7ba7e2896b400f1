package core

import (
	"context"
	"net/http"

	"golang.org/x/sync/errgroup"

	"github.com/quaymaster/quaymaster/core/apiserver"
	"github.com/quaymaster/quaymaster/runtime/agent"
	"github.com/quaymaster/quaymaster/runtime/agent/fleet"
)

// nodes are those of this process. Their pods come from the shared informer and
// their kubelet API is reached without a port.
type nodes struct {
	options *Options
	pods    *agent.Dispatcher // nil: no nodes
	fleet   *fleet.Fleet      // nil: none is simulated
}

// transport reaches the kubelet API of a node of this process.
func (n *nodes) transport(name string) (http.RoundTripper, bool) {
	if n.fleet == nil {
		return nil, false
	}
	handler, ok := n.fleet.Handler(name)
	if !ok {
		return nil, false
	}
	return apiserver.HandlerTransport(handler), true
}

func (n *nodes) assemble(p *parts) (err error) {
	if len(n.options.Nodes) == 0 {
		return nil
	}
	log := n.options.Logger.With("part", "nodes")
	if n.pods, err = agent.NewDispatcher(p.informers.Core().V1().Pods().Informer()); err != nil {
		return err
	}
	if n.fleet, err = fleet.New(fleet.Options{
		Client: p.client, Pods: n.pods, PodWriter: directPods{p.server.Direct(nil)},
		Dir: n.options.dir("nodes"), Version: n.options.Version, Clock: n.options.Clock, Logger: log,
	}); err != nil {
		return err
	}
	for _, node := range n.options.Nodes {
		if node.Runtime == RuntimeSimulated {
			if err := n.fleet.Add(fleet.Node{Name: node.Name, Labels: node.Labels, Taints: node.Taints, Capacity: node.Capacity}); err != nil {
				return err
			}
		}
	}
	return nil
}

// run runs the nodes until the context ends.
func (n *nodes) run(ctx context.Context) error {
	if n.pods == nil {
		return nil
	}
	defer n.pods.Close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.fleet.Run(ctx) })
	return group.Wait()
}
