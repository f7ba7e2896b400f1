package core

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/quaymaster/quaymaster/core/api"
	"github.com/quaymaster/quaymaster/core/apiserver"
	"github.com/quaymaster/quaymaster/runtime/agent"
	"github.com/quaymaster/quaymaster/runtime/agent/fleet"
	"github.com/quaymaster/quaymaster/runtime/cri/wasm"
)

// nodes are those of this process. Their pods come from the shared informer and
// their kubelet API is reached without a port.
type nodes struct {
	options  *Options
	pods     *agent.Dispatcher // nil: no nodes
	fleet    *fleet.Fleet      // the simulated ones
	agents   map[string]*agent.Agent
	backends []*wasm.Backend
}

// transport reaches the kubelet API of a node of this process.
func (n *nodes) transport(name string) (http.RoundTripper, bool) {
	if a, ok := n.agents[name]; ok {
		return apiserver.HandlerTransport(a.Handler()), true
	}
	if n.fleet != nil {
		if handler, ok := n.fleet.Handler(name); ok {
			return apiserver.HandlerTransport(handler), true
		}
	}
	return nil, false
}

func (n *nodes) assemble(p *parts) (err error) {
	if len(n.options.Nodes) == 0 {
		return nil
	}
	if n.pods, err = agent.NewDispatcher(p.informers.Core().V1().Pods().Informer()); err != nil {
		return err
	}
	writer := p.podWriter()
	n.agents = map[string]*agent.Agent{}
	if n.fleet, err = fleet.New(fleet.Options{
		Client: p.client, Pods: n.pods, PodWriter: writer,
		Dir: n.options.dir("nodes"), Version: api.Version(n.options.Version), Clock: n.options.Clock, Logger: n.options.Logger.With("part", "nodes"),
	}); err != nil {
		return err
	}
	for _, node := range n.options.Nodes {
		switch node.Runtime {
		case RuntimeSimulated:
			err = n.fleet.Add(fleet.Node{Name: node.Name, Labels: node.Labels, Taints: node.Taints, Capacity: node.Capacity})
		case RuntimeWasm:
			err = n.assembleWasm(p, node, writer)
		}
		if err != nil {
			return fmt.Errorf("node %s: %w", node.Name, err)
		}
	}
	return nil
}

// assembleWasm makes a node whose containers are goroutines of this process.
func (n *nodes) assembleWasm(p *parts, node Node, writer agent.PodWriter) error {
	dir := n.options.dir(filepath.Join("nodes", node.Name))
	log := n.options.Logger.With("part", "node", "node", node.Name)
	backend, err := wasm.New(wasm.Options{Dir: filepath.Join(dir, "wasm"), Clock: n.options.Clock, Logger: log})
	if err != nil {
		return err
	}
	n.backends = append(n.backends, backend)
	capacity, err := agent.MachineCapacity()
	if err != nil {
		return err
	}
	maps.Copy(capacity, node.Capacity)
	labels := map[string]string{corev1.LabelArchStable: "wasm", corev1.LabelOSStable: "wasi"}
	maps.Copy(labels, node.Labels)
	a, err := agent.New(agent.Options{
		NodeName: node.Name, Client: p.client, Backend: backend, Pods: n.pods,
		Labels: labels, Taints: node.Taints, Capacity: capacity, Version: api.Version(n.options.Version),
		Dir: dir, Measured: true, PodWriter: writer, Recorder: p.recorder, Clock: n.options.Clock, Logger: log,
	})
	if err != nil {
		return err
	}
	n.agents[node.Name] = a
	return nil
}

// run runs the nodes until the context ends.
func (n *nodes) run(ctx context.Context) error {
	if n.pods == nil {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.fleet.Run(ctx) })
	for _, a := range n.agents {
		group.Go(func() error { return a.Run(ctx) })
	}
	return group.Wait()
}

// close ends what assemble opened.
func (n *nodes) close() error {
	if n.pods != nil {
		n.pods.Close()
	}
	var errs []error
	for _, backend := range n.backends {
		errs = append(errs, backend.Close())
	}
	return errors.Join(errs...)
}
