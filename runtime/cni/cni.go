// Package cni is the network of a node's pods by standard CNI plugins: the first
// configuration by name of a folder, or a built-in one from the node's range of
// addresses, run through libcni. It serves package sdk/backend/network, as the
// process of a backend that may die at any time.
//
// What it has attached is in a journal before a plugin runs, so that nothing is
// lost of an Add that was cut short: GC takes back, by the plugins and then by
// itself, all that attachments hold which exist no more.
package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quaymaster/quaymaster/sdk/backend/network"
)

// Options of New. StateDir is needed.
type Options struct {
	// StateDir keeps the journal, libcni's cache and the built-in network's addresses.
	StateDir string
	// ConfDir has the configurations, BinDirs the plugins; "" = /etc/cni/net.d, nil = BinDirs().
	ConfDir string
	BinDirs []string
	// PodCIDRs are the node's ranges, one of each IP family: the built-in network is used
	// where ConfDir has none. IPv4 of at most 29 bits, IPv6 of at most 125.
	PodCIDRs []netip.Prefix
	// PodCIDRFile, if PodCIDRs are none, has them, one a line, as soon as the node has been given them; "" = none.
	PodCIDRFile string
	Bridge      string        // the built-in network's interface; "" = qm0
	Timeout     time.Duration // of a whole chain of plugins; 0 = 1 min
	Logger      *slog.Logger  // nil = discard
}

// Service is a network.NetworkServer over CNI plugins.
type Service struct {
	network.UnimplementedNetworkServer
	opts    Options
	builtIn []byte // its configuration; nil = none, or in a file
	exec    *pluginExec
	cni     *libcni.CNIConfig
	log     *slog.Logger

	collecting sync.RWMutex // held for writing by GC
	mu         sync.Mutex
	busy       map[string]chan struct{} // by attachment: closed at the end of the call that has it
}

// New returns a service; it makes nothing of the node's before the first Add.
func New(opts Options) (*Service, error) {
	if opts.StateDir == "" {
		return nil, errors.New("the network needs a folder for its state")
	}
	if opts.ConfDir == "" {
		opts.ConfDir = "/etc/cni/net.d"
	}
	if opts.BinDirs == nil {
		opts.BinDirs = BinDirs()
	}
	if opts.Bridge == "" {
		opts.Bridge = "qm0"
	}
	if opts.Timeout == 0 {
		opts.Timeout = time.Minute
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	dir, err := filepath.Abs(opts.StateDir)
	if err != nil {
		return nil, err
	}
	opts.StateDir = dir
	s := &Service{opts: opts, exec: &pluginExec{}, log: opts.Logger, busy: map[string]chan struct{}{}}
	if len(opts.PodCIDRs) > 0 {
		if s.builtIn, err = s.conflist(opts.PodCIDRs); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(s.journalDir(), 0o700); err != nil {
		return nil, fmt.Errorf("the network's journal: %w", err)
	}
	s.cni = libcni.NewCNIConfigWithCacheDir(opts.BinDirs, filepath.Join(dir, "cache"), s.exec)
	return s, nil
}

// Status is ready when there is a configuration whose plugins are there and, from CNI 1.1 on, ready themselves.
func (s *Service) Status(ctx context.Context, _ *network.StatusRequest) (*network.StatusResponse, error) {
	list, origin, err := s.current()
	switch {
	case errors.Is(err, errNone):
		return &network.StatusResponse{Reason: "NoNetworkConfiguration", Message: err.Error()}, nil
	case err != nil:
		return &network.StatusResponse{Reason: "BadNetworkConfiguration", Message: err.Error()}, nil
	}
	out := &network.StatusResponse{Network: s.describe(list, origin)}
	if missing := s.missing(list); len(missing) > 0 {
		out.Reason = "NetworkPluginsMissing"
		out.Message = fmt.Sprintf("network %s (%s): the plugins %s are not in %s: install containernetworking-plugins, or the network's own",
			list.Name, origin, strings.Join(missing, ", "), strings.Join(s.opts.BinDirs, " or "))
		return out, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	if err := s.cni.GetStatusNetworkList(ctx, list); err != nil {
		out.Reason, out.Message = "NetworkPluginNotReady", fmt.Sprintf("network %s (%s): %v", list.Name, origin, err)
		return out, nil
	}
	out.Ready = true
	return out, nil
}

// key names an attachment in the journal: a file's name.
func key(a *network.Attachment) (string, error) {
	for _, part := range []string{a.GetContainerId(), a.GetInterface()} {
		if part == "" || strings.ContainsFunc(part, func(r rune) bool {
			return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && !strings.ContainsRune("-._", r)
		}) {
			return "", status.Errorf(codes.InvalidArgument, "an attachment needs a container's ID and an interface, not %q and %q", a.GetContainerId(), a.GetInterface())
		}
	}
	return a.ContainerId + "@" + a.Interface, nil
}

// take makes the calls for one attachment come one after another.
func (s *Service) take(ctx context.Context, key string) (release func(), err error) {
	for {
		s.mu.Lock()
		busy := s.busy[key]
		if busy == nil {
			done := make(chan struct{})
			s.busy[key] = done
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.busy, key)
				s.mu.Unlock()
				close(done)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
}

func runtimeConf(a *network.Attachment) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{ContainerID: a.ContainerId, NetNS: a.Netns, IfName: a.Interface, CapabilityArgs: map[string]any{}}
	rt.Args = [][2]string{{"IgnoreUnknown", "1"}}
	for _, arg := range [][2]string{
		{"K8S_POD_NAMESPACE", a.PodNamespace}, {"K8S_POD_NAME", a.PodName}, {"K8S_POD_INFRA_CONTAINER_ID", a.ContainerId}, {"K8S_POD_UID", a.PodUid},
	} {
		if arg[1] != "" {
			rt.Args = append(rt.Args, arg)
		}
	}
	var ports []map[string]any
	for _, p := range a.PortMappings {
		if p.HostPort <= 0 {
			continue
		}
		protocol := strings.ToLower(p.Protocol)
		if protocol == "" {
			protocol = "tcp"
		}
		ports = append(ports, map[string]any{"hostPort": p.HostPort, "containerPort": p.ContainerPort, "protocol": protocol, "hostIP": p.HostIp})
	}
	if ports != nil {
		rt.CapabilityArgs["portMappings"] = ports
	}
	if b := a.Bandwidth; b != nil {
		rt.CapabilityArgs["bandwidth"] = map[string]uint64{
			"ingressRate": b.IngressRate, "ingressBurst": b.IngressBurst, "egressRate": b.EgressRate, "egressBurst": b.EgressBurst,
		}
	}
	return rt
}

// Add attaches a pod to the current network, and takes back what a failure left.
func (s *Service) Add(ctx context.Context, in *network.AddRequest) (*network.AddResponse, error) {
	a := in.GetAttachment()
	k, err := key(a)
	if err != nil {
		return nil, err
	}
	if a.Netns == "" {
		return nil, status.Errorf(codes.InvalidArgument, "attach %s: the network namespace is not said", k)
	}
	s.collecting.RLock()
	defer s.collecting.RUnlock()
	release, err := s.take(ctx, k)
	if err != nil {
		return nil, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	rt := runtimeConf(a)
	if e, err := s.entry(k); err == nil {
		if r := s.cached(e); r != nil && e.Attachment.Netns == a.Netns {
			return response(r, a.Netns)
		}
		if err := s.release(ctx, k, e); err != nil { // an Add that was cut short
			return nil, status.Errorf(codes.Internal, "attach %s: take back what an earlier attempt left: %v", k, err)
		}
	}
	list, origin, err := s.current()
	if err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "attach pod %s/%s: %v", a.PodNamespace, a.PodName, err)
	}
	if missing := s.missing(list); len(missing) > 0 {
		return nil, status.Errorf(codes.FailedPrecondition, "attach pod %s/%s: network %s (%s): the plugins %s are not in %s",
			a.PodNamespace, a.PodName, list.Name, origin, strings.Join(missing, ", "), strings.Join(s.opts.BinDirs, " or "))
	}
	e := &entry{Attachment: a, Config: list.Bytes}
	if err := s.write(k, e); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	result, err := s.cni.AddNetworkList(ctx, list, rt)
	if err == nil {
		return response(result, a.Netns)
	}
	code := codes.Internal
	if ctx.Err() != nil {
		code, err = codes.DeadlineExceeded, fmt.Errorf("the plugins did not end within %v: %w", s.opts.Timeout, err)
	}
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.Timeout)
	defer cancel()
	if undo := s.release(after, k, e); undo != nil {
		s.log.Warn("an attachment that failed is not taken back yet", "attachment", k, "err", undo)
	}
	return nil, status.Errorf(code, "attach pod %s/%s to network %s: %v", a.PodNamespace, a.PodName, list.Name, err)
}

// response picks the addresses of the pod's side.
func response(r types.Result, netns string) (*network.AddResponse, error) {
	result, err := types100.NewResultFromResult(r)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "the plugins' result: %v", err)
	}
	out := &network.AddResponse{}
	inside := func(i *int) bool {
		return i == nil || *i >= 0 && *i < len(result.Interfaces) && result.Interfaces[*i].Sandbox != ""
	}
	for _, ip := range result.IPs {
		if !inside(ip.Interface) {
			continue
		}
		a := &network.Address{Address: ip.Address.String()}
		if ip.Gateway != nil {
			a.Gateway = ip.Gateway.String()
		}
		out.Addresses = append(out.Addresses, a)
	}
	for _, i := range result.Interfaces {
		if i.Sandbox == netns && i.Mac != "" {
			out.Mac = i.Mac
		}
	}
	return out, nil
}

// Del detaches a pod by the configuration that attached it.
func (s *Service) Del(ctx context.Context, in *network.DelRequest) (*network.DelResponse, error) {
	k, err := key(in.GetAttachment())
	if err != nil {
		return nil, err
	}
	s.collecting.RLock()
	defer s.collecting.RUnlock()
	release, err := s.take(ctx, k)
	if err != nil {
		return nil, err
	}
	defer release()
	e, err := s.entry(k)
	if errors.Is(err, os.ErrNotExist) {
		return &network.DelResponse{}, nil
	}
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	if err := s.release(ctx, k, e); err != nil {
		return nil, status.Errorf(codes.Internal, "detach pod %s/%s: %v", e.Attachment.PodNamespace, e.Attachment.PodName, err)
	}
	return &network.DelResponse{}, nil
}

// Check asks the plugins whether the attachment is as they made it.
func (s *Service) Check(ctx context.Context, in *network.CheckRequest) (*network.CheckResponse, error) {
	k, err := key(in.GetAttachment())
	if err != nil {
		return nil, err
	}
	release, err := s.take(ctx, k)
	if err != nil {
		return nil, err
	}
	defer release()
	e, err := s.entry(k)
	if err != nil {
		return nil, status.Errorf(codes.NotFound, "nothing is attached as %s", k)
	}
	list, err := parse(e.Config)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	rt := runtimeConf(e.Attachment)
	// A plugin for a capability that the pod does not use did nothing, and some fail to see that nothing is right.
	list.Plugins = slices.DeleteFunc(list.Plugins, func(p *libcni.PluginConfig) bool {
		unused := len(p.Network.Capabilities) > 0
		for capability, on := range p.Network.Capabilities {
			if _, used := rt.CapabilityArgs[capability]; on && used {
				unused = false
			}
		}
		return unused
	})
	if err := s.cni.CheckNetworkList(ctx, list, rt); err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "pod %s/%s on network %s: %v", e.Attachment.PodNamespace, e.Attachment.PodName, list.Name, err)
	}
	return &network.CheckResponse{}, nil
}
