// Package proxy leads what is sent to services to pods, on one node: cluster addresses, node ports, addresses of load
// balancers and external ones, with session affinity and traffic policies.
//
// The rules of nftables are made by upstream's kube-proxy, whose tables ("kube-proxy") they are in; here is what feeds
// it from informers. Rules stay when the process ends, so that pods go on to reach services meanwhile.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	upstream "k8s.io/kubernetes/pkg/proxy"
	"k8s.io/kubernetes/pkg/proxy/apis"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"
	"k8s.io/kubernetes/pkg/proxy/nftables"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"
)

const (
	// syncEvery is how soon rules that could not be written are tried again; changes are written after minSync.
	syncEvery = 30 * time.Second
	minSync   = time.Second
	// masqueradeBit of packets' marks is kube-proxy's.
	masqueradeBit = 14
)

// Options of New. All are needed but the logger.
type Options struct {
	NodeName string
	// Address is the node's own: node ports are served there.
	Address net.IP
	Logger  *slog.Logger // nil = discard
}

// Missing says what a machine lacks for New, "" for nothing.
func Missing() string {
	if os.Geteuid() != 0 {
		return "rules of nftables need root"
	}
	if _, err := exec.LookPath("nft"); err != nil {
		return "there is no nft: apt-get install nftables"
	}
	return ""
}

// Proxy is a process's one: upstream's loop ends with the process.
type Proxy struct {
	provider upstream.Provider
	loop     sync.Once

	mu       sync.Mutex
	services map[string]*v1.Service // as the provider has them
	slices   map[string]*discoveryv1.EndpointSlice
	cidrs    map[string]*networkingv1.ServiceCIDR
	zoneOf   *string
	ready    bool // services and slices are known: the provider has been told
}

// New makes a proxy. It touches no rules until it follows informers.
func New(opts Options) (*Proxy, error) {
	if why := Missing(); why != "" {
		return nil, errors.New("a service proxy: " + why)
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Proxy{services: map[string]*v1.Service{}, slices: map[string]*discoveryv1.EndpointSlice{}, cidrs: map[string]*networkingv1.ServiceCIDR{}}
	ctx := klog.NewContext(context.Background(), logr.FromSlogHandler(opts.Logger.Handler()))
	recorder := logged{opts.Logger}
	health := healthcheck.NewProxyHealthServer("", 2*syncEvery, nil)
	own := opts.Address.String() + "/32"
	family := v1.IPv4Protocol
	if opts.Address.To4() == nil {
		own, family = opts.Address.String()+"/128", v1.IPv6Protocol
	}
	local := proxyutil.NewNoOpLocalDetector()
	var err error
	if other := otherFamily(family); usable(other) {
		p.provider, err = nftables.NewDualStackProxier(ctx, syncEvery, minSync, false, masqueradeBit,
			map[v1.IPFamily]proxyutil.LocalTrafficDetector{v1.IPv4Protocol: local, v1.IPv6Protocol: local},
			opts.NodeName, map[v1.IPFamily]net.IP{family: opts.Address, other: loopback(other)}, recorder, health, []string{own}, false)
	} else {
		p.provider, err = nftables.NewProxier(ctx, family, syncEvery, minSync, false, masqueradeBit, local, opts.NodeName, opts.Address, recorder, health, []string{own}, false)
	}
	if err != nil {
		return nil, fmt.Errorf("make the service proxy: %w", err)
	}
	return p, nil
}

func otherFamily(f v1.IPFamily) v1.IPFamily {
	if f == v1.IPv4Protocol {
		return v1.IPv6Protocol
	}
	return v1.IPv4Protocol
}

// loopback is where node ports of a family are that the node has no address of.
func loopback(f v1.IPFamily) net.IP {
	if f == v1.IPv6Protocol {
		return net.IPv6loopback
	}
	return net.IPv4(127, 0, 0, 1)
}

// usable tells whether the kernel has a family.
func usable(f v1.IPFamily) bool {
	if f == v1.IPv4Protocol {
		return true
	}
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		return false
	}
	off, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	return err == nil && strings.TrimSpace(string(off)) == "0"
}

// Follow has the proxy do as the informers say, which must be started afterwards; those of nodes know the node alone.
// What it returns runs until its context ends: the rules stay, and another Follow takes over with what has changed.
func (p *Proxy) Follow(cluster, node informers.SharedInformerFactory) (run func(context.Context), err error) {
	services := cluster.Core().V1().Services().Informer()
	slices := cluster.Discovery().V1().EndpointSlices().Informer()
	cidrs := cluster.Networking().V1().ServiceCIDRs().Informer()
	var synced []cache.InformerSynced
	for _, w := range []struct {
		informer cache.SharedIndexInformer
		changed  func(object any, gone bool)
	}{
		{services, func(o any, gone bool) { p.service(o.(*v1.Service), gone) }},
		{slices, func(o any, gone bool) { p.slice(o.(*discoveryv1.EndpointSlice), gone) }},
		{cidrs, func(o any, gone bool) { p.cidr(o.(*networkingv1.ServiceCIDR), gone) }},
		{node.Core().V1().Nodes().Informer(), func(o any, gone bool) { p.zone(o.(*v1.Node)) }},
	} {
		registration, err := w.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { w.changed(o, false) },
			UpdateFunc: func(_, o any) { w.changed(o, false) },
			DeleteFunc: func(o any) {
				if last, ok := o.(cache.DeletedFinalStateUnknown); ok {
					o = last.Obj
				}
				w.changed(o, true)
			},
		})
		if err != nil {
			return nil, fmt.Errorf("follow what the service proxy needs: %w", err)
		}
		synced = append(synced, registration.HasSynced)
	}
	return func(ctx context.Context) {
		if !cache.WaitForCacheSync(ctx.Done(), synced...) {
			return // the context has ended
		}
		p.settle(services.GetIndexer(), slices.GetIndexer(), cidrs.GetIndexer())
		p.loop.Do(func() { go p.provider.SyncLoop() })
		<-ctx.Done()
	}, nil
}

// settle takes away what went while nobody followed.
func (p *Proxy) settle(services, slices, cidrs cache.KeyGetter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, s := range p.services {
		if gone(services, key) {
			delete(p.services, key)
			p.provider.OnServiceDelete(s)
		}
	}
	for key, s := range p.slices {
		if gone(slices, key) {
			delete(p.slices, key)
			p.provider.OnEndpointSliceDelete(s)
		}
	}
	for key := range p.cidrs {
		if gone(cidrs, key) {
			delete(p.cidrs, key)
			p.tellCIDRs()
		}
	}
	if !p.ready {
		p.ready = true
		p.provider.OnServiceSynced()
		p.provider.OnEndpointSlicesSynced()
	}
}

func gone(in cache.KeyGetter, key string) bool {
	_, there, err := in.GetByKey(key)
	return err == nil && !there
}

func key(o metav1.Object) string { return cache.MetaObjectToName(o).String() }

// service is one that was changed. Those of another proxy are not ours.
func (p *Proxy) service(s *v1.Service, gone bool) {
	_, others := s.Labels[apis.LabelServiceProxyName]
	p.mu.Lock()
	defer p.mu.Unlock()
	changed(p.services, s, gone || others, p.provider.OnServiceAdd, p.provider.OnServiceUpdate, p.provider.OnServiceDelete)
}

// slice is one that was changed. Those of headless services lead nowhere by rules.
func (p *Proxy) slice(s *discoveryv1.EndpointSlice, gone bool) {
	_, headless := s.Labels[v1.IsHeadlessService]
	p.mu.Lock()
	defer p.mu.Unlock()
	changed(p.slices, s, gone || headless, p.provider.OnEndpointSliceAdd, p.provider.OnEndpointSliceUpdate, p.provider.OnEndpointSliceDelete)
}

// changed brings what is known of a kind up to date with one object, and tells what came of it.
func changed[T metav1.Object](known map[string]T, o T, gone bool, add func(T), update func(old, now T), remove func(T)) {
	old, had := known[key(o)]
	switch {
	case gone:
		if had {
			delete(known, key(o))
			remove(old)
		}
		return
	case had:
		update(old, o)
	default:
		add(o)
	}
	known[key(o)] = o
}

// cidr is a range of services that was changed.
func (p *Proxy) cidr(c *networkingv1.ServiceCIDR, gone bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if delete(p.cidrs, key(c)); !gone {
		p.cidrs[key(c)] = c
	}
	p.tellCIDRs()
}

func (p *Proxy) tellCIDRs() {
	var all []string
	for _, c := range p.cidrs {
		all = append(all, c.Spec.CIDRs...)
	}
	p.provider.OnServiceCIDRsChanged(all)
}

// zone is the node's own, for services that keep to one.
func (p *Proxy) zone(n *v1.Node) {
	labels := map[string]string{}
	zone, ok := n.Labels[v1.LabelTopologyZone]
	if ok {
		labels[v1.LabelTopologyZone] = zone
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.zoneOf != nil && *p.zoneOf == zone {
		return
	}
	p.zoneOf = &zone
	p.provider.OnTopologyChange(labels)
}

// logged has what upstream would make events: that a port of a load balancer's health check is taken.
type logged struct{ *slog.Logger }

func (l logged) Eventf(regarding, _ runtime.Object, kind, reason, _, note string, args ...any) {
	l.Warn(fmt.Sprintf(note, args...), "type", kind, "reason", reason, "about", regarding)
}
