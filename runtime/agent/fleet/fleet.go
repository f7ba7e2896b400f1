// Package fleet runs many simulated nodes in one process: an agent over a
// simulated backend each, on one API client and one informer of pods.
//
//	f, err := fleet.New(fleet.Options{Client: client, Pods: dispatcher})
//	err = f.Add(fleet.Node{Name: "node01"})
//	err = f.Run(ctx) // blocks; nodes may be added and removed meanwhile
package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/runtime/agent"
	"github.com/quaymaster/quaymaster/runtime/cri/sim"
)

// Options of New. Client and Pods are needed.
type Options struct {
	Client    kubernetes.Interface
	Pods      agent.PodSource
	PodWriter agent.PodWriter      // nil = Client
	Recorder  record.EventRecorder // nil = no pod events, which are most of a pod's cost
	Dir       string               // of logs: DIR/NODE; "" = no logs
	Version   string               // as the Nodes show it
	// PodCIDR is divided into a /24 a node, in the order of adding; the zero value is 10.0.0.0/8.
	PodCIDR netip.Prefix
	// Inject makes steps of pods fail: see sim.Options.
	Inject func(step, pod, name string) error
	Clock  agent.Clock  // nil = real
	Logger *slog.Logger // nil = discard
}

// Node describes one simulated node.
type Node struct {
	Name          string
	Labels        map[string]string // beside the well-known ones
	Annotations   map[string]string
	Taints        []v1.Taint
	Unschedulable bool
	Capacity      v1.ResourceList // nil = agent.DefaultCapacity
}

// Fleet is a set of simulated nodes.
type Fleet struct {
	opts Options

	mu    sync.Mutex
	ctx   context.Context // of Run; nil before
	ended bool
	nodes map[string]*member
	next  netip.Addr
	wg    sync.WaitGroup
}

type member struct {
	agent  *agent.Agent
	cancel context.CancelFunc
	done   chan struct{}
}

// New returns a fleet without nodes.
func New(opts Options) (*Fleet, error) {
	if opts.Client == nil || opts.Pods == nil {
		return nil, errors.New("a fleet needs a client and a pod source")
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	if !opts.PodCIDR.IsValid() {
		opts.PodCIDR = netip.MustParsePrefix("10.0.0.0/8")
	}
	if !opts.PodCIDR.Addr().Is4() || opts.PodCIDR.Bits() > 24 {
		return nil, fmt.Errorf("pod range %s: want an IPv4 prefix of at most 24 bits", opts.PodCIDR)
	}
	return &Fleet{opts: opts, nodes: map[string]*member{}, next: opts.PodCIDR.Masked().Addr()}, nil
}

// Add adds a node; where the fleet runs already, the node starts at once.
func (f *Fleet) Add(n Node) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return errors.New("the fleet has ended")
	}
	if f.nodes[n.Name] != nil {
		return fmt.Errorf("the fleet has a node %q already", n.Name)
	}
	if !f.opts.PodCIDR.Contains(f.next) {
		return fmt.Errorf("no addresses left in %s for node %q", f.opts.PodCIDR, n.Name)
	}
	backend, err := sim.New(sim.Options{PodCIDR: netip.PrefixFrom(f.next, 24), Inject: f.opts.Inject, Clock: f.opts.Clock})
	if err != nil {
		return err
	}
	address := f.next.Next() // the range's first host is the node itself
	dir := ""
	if f.opts.Dir != "" {
		dir = filepath.Join(f.opts.Dir, n.Name)
	}
	a, err := agent.New(agent.Options{
		NodeName: n.Name, Client: f.opts.Client, Backend: backend, Pods: f.opts.Pods, Labels: n.Labels, Annotations: n.Annotations, Taints: n.Taints,
		Unschedulable: n.Unschedulable, Capacity: n.Capacity, Version: f.opts.Version, Dir: dir, SkipVolumes: true,
		Addresses: []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: address.String()}, {Type: v1.NodeHostName, Address: n.Name}},
		PodWriter: f.opts.PodWriter, Recorder: f.opts.Recorder, Clock: f.opts.Clock, Logger: f.opts.Logger,
	})
	if err != nil {
		return err
	}
	b := f.next.As4()
	if b[2]++; b[2] == 0 {
		b[1]++
	}
	f.next = netip.AddrFrom4(b)
	m := &member{agent: a}
	f.nodes[n.Name] = m
	if f.ctx != nil {
		f.start(m)
	}
	return nil
}

// AddMany adds n nodes like the template, named by prefix and a number from 0
// with as many digits as the last one needs.
func (f *Fleet) AddMany(n int, prefix string, template Node) error {
	digits := len(fmt.Sprint(max(n-1, 0)))
	for i := range n {
		template.Name = fmt.Sprintf("%s%0*d", prefix, digits, i)
		if err := f.Add(template); err != nil {
			return err
		}
	}
	return nil
}

// start runs a node. The lock is held.
func (f *Fleet) start(m *member) {
	ctx, cancel := context.WithCancel(f.ctx)
	m.cancel, m.done = cancel, make(chan struct{})
	f.wg.Go(func() {
		defer close(m.done)
		defer cancel()
		if err := m.agent.Run(ctx); err != nil && ctx.Err() == nil {
			f.opts.Logger.Error("a simulated node stopped", "node", m.agent.NodeName(), "err", err)
		}
	})
}

// Remove stops a node as if its machine went off: the Node object stays, and
// the control plane finds out by its lease.
func (f *Fleet) Remove(name string) error {
	f.mu.Lock()
	m := f.nodes[name]
	delete(f.nodes, name)
	f.mu.Unlock()
	if m == nil {
		return fmt.Errorf("the fleet has no node %q", name)
	}
	if m.cancel != nil {
		m.cancel()
		<-m.done
	}
	return nil
}

// Run runs all nodes until ctx ends and all of them have stopped. A fleet runs once.
func (f *Fleet) Run(ctx context.Context) error {
	f.mu.Lock()
	if f.ctx != nil {
		f.mu.Unlock()
		return errors.New("the fleet runs already")
	}
	f.ctx = ctx
	for _, m := range f.nodes {
		f.start(m)
	}
	f.mu.Unlock()
	<-ctx.Done()
	f.mu.Lock()
	f.ended = true // no node is added after this
	f.mu.Unlock()
	f.wg.Wait()
	return nil
}

// Handler returns a node's kubelet API, for an API server in the same process.
func (f *Fleet) Handler(node string) (http.Handler, bool) {
	a := f.Agent(node)
	if a == nil {
		return nil, false
	}
	return a.Handler(), true
}

// Agent returns a node's, or nil.
func (f *Fleet) Agent(node string) *agent.Agent {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.nodes[node]; m != nil {
		return m.agent
	}
	return nil
}
