package core

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/core/apiserver"
	"github.com/quaymaster/quaymaster/core/controllers/upstream"
)

// Options of an engine. The zero value is an engine in memory, without a port,
// without nodes.
type Options struct {
	// DataDir keeps the store, keys and kubeconfig. "" keeps everything in
	// memory and nothing after Close.
	DataDir string
	// Listen is the address of the HTTPS port, "127.0.0.1:6443"; port 0 picks a
	// free one, which Address tells. "" serves no port: only clients in the
	// process reach the engine.
	Listen string
	// API says what the API serves, whom it believes and what it writes down.
	API API
	// PolicyDir is watched for files with Policy and SchedulerProfile objects.
	// "" watches none.
	PolicyDir string
	// History is how long superseded states of objects stay readable: to Engine.At,
	// forks, watches that resume and increments of backups. At most 500,000 are
	// kept. Default three days; without a DataDir five minutes.
	History time.Duration
	// HistoryShare bounds what was written in that time to a part of the space that
	// it and what is free of DataDir's disk make together, so that history gives
	// way as the disk fills. Default 0.1.
	HistoryShare float64
	// StoreKey is the file with the key that DataDir/store is encrypted with, by
	// AES-256: everything in it, where API encryption has single resources. It is
	// made when missing with a new store. "" leaves the store in the clear; see
	// storage.Rewrite to change that.
	StoreKey string
	// StoreOpening is told what New does with the store that may take long, see
	// storage.Options.Opening. It may be nil.
	StoreOpening func(what string, done, total int64)
	// Etcd keeps the objects in a real etcd instead of DataDir, for more than one
	// engine over the same objects; nil is the embedded store. Each of them serves
	// the API and one runs controllers and scheduler, see Engine.Leading. They need
	// the same keys: copy DataDir/pki of the first. DataDir keeps keys, kubeconfig
	// and node data; History says how often etcd is compacted.
	Etcd *Etcd
	// ClusterCIDRs are where each node gets its range of pod addresses from, written to its
	// spec.podCIDRs: one of each IP family at most. None: nodes get no range.
	ClusterCIDRs []netip.Prefix
	// NodeCIDRMaskSizes are the bits of a node's range, of each of ClusterCIDRs. Default 24 for IPv4, 64 for IPv6.
	NodeCIDRMaskSizes []int
	// Nodes live in the engine's process.
	Nodes []Node
	// Version of the program that embeds the engine, shown by /version.
	Version string
	// Seed of the scheduler's tie-break.
	Seed uint64
	// Clock is the real one by default.
	Clock clock.WithTickerAndDelayedExecution
	// Logger takes the engine's log. nil discards it.
	Logger *slog.Logger
}

// Runtime names what runs the containers of a Node.
type Runtime string

// The runtimes of in-process nodes.
const (
	// RuntimeSimulated reports containers as running and runs nothing.
	RuntimeSimulated Runtime = "sim"
	// RuntimeWasm runs WebAssembly (WASI) programs. It needs a DataDir.
	RuntimeWasm Runtime = "wasm"
)

// Node is a node in the engine's own process, with a full agent.
type Node struct {
	Name    string
	Runtime Runtime // default: RuntimeSimulated
	Labels  map[string]string
	Taints  []corev1.Taint
	// Capacity of a simulated node; nil is agent.DefaultCapacity. For any other
	// node its entries override what the machine has.
	Capacity corev1.ResourceList
}

// Nodes makes n simulated nodes called prefix with a number, from 1.
func Nodes(prefix string, n int) []Node {
	nodes := make([]Node, n)
	for i := range nodes {
		nodes[i].Name = fmt.Sprintf("%s%02d", prefix, i+1)
	}
	return nodes
}

// WasmNode is a node that runs WebAssembly programs in the engine's process. Its
// taint keeps other pods away: tolerate kubernetes.io/arch=wasm to run there.
func WasmNode(name string) Node {
	return Node{Name: name, Runtime: RuntimeWasm,
		Taints: []corev1.Taint{{Key: corev1.LabelArchStable, Value: "wasm", Effect: corev1.TaintEffectNoSchedule}}}
}

func (o *Options) complete() error {
	var errs []error
	if o.Listen != "" {
		if _, _, err := net.SplitHostPort(o.Listen); err != nil {
			errs = append(errs, fmt.Errorf("option Listen: %q is not host:port: %w", o.Listen, err))
		}
	}
	if o.History < 0 {
		errs = append(errs, fmt.Errorf("option History: %s is negative", o.History))
	}
	if o.Etcd != nil && len(o.Etcd.Endpoints) == 0 {
		errs = append(errs, errors.New("option Etcd: no endpoint is given"))
	}
	if o.HistoryShare < 0 || o.HistoryShare > 1 {
		errs = append(errs, fmt.Errorf("option HistoryShare: %g is no part: it goes from 0 to 1", o.HistoryShare))
	}
	if err := o.nodeRanges().Check(); err != nil {
		errs = append(errs, fmt.Errorf("option ClusterCIDRs: %w", err))
	}
	seen := map[string]bool{}
	for i := range o.Nodes {
		node := &o.Nodes[i]
		if node.Runtime == "" {
			node.Runtime = RuntimeSimulated
		}
		switch {
		case node.Name == "":
			errs = append(errs, fmt.Errorf("option Nodes[%d]: a node needs a name", i))
		case seen[node.Name]:
			errs = append(errs, fmt.Errorf("option Nodes[%d]: there are two nodes %q", i, node.Name))
		case node.Runtime != RuntimeSimulated && node.Runtime != RuntimeWasm:
			errs = append(errs, fmt.Errorf("option Nodes[%d]: node %q has runtime %q; it must be %q or %q", i, node.Name, node.Runtime, RuntimeSimulated, RuntimeWasm))
		case node.Runtime == RuntimeWasm && o.DataDir == "":
			errs = append(errs, fmt.Errorf("option Nodes[%d]: node %q runs WebAssembly and needs DataDir for images and logs", i, node.Name))
		}
		seen[node.Name] = true
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return errors.Join(errs...)
}

// nodeRanges are those of the options with their defaults.
func (o *Options) nodeRanges() upstream.NodeRanges {
	r := upstream.NodeRanges{Cluster: o.ClusterCIDRs, Services: apiserver.ServiceRanges()}
	for i, p := range o.ClusterCIDRs {
		size := upstream.NodeSizeIPv4
		if p.Addr().Is6() {
			size = upstream.NodeSizeIPv6
		}
		if i < len(o.NodeCIDRMaskSizes) && o.NodeCIDRMaskSizes[i] != 0 {
			size = o.NodeCIDRMaskSizes[i]
		}
		r.Sizes = append(r.Sizes, size)
	}
	return r
}
