package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/remote"
	"github.com/quaymaster/quaymaster/runtime/cni"
	"github.com/quaymaster/quaymaster/runtime/cni/gate"
	"github.com/quaymaster/quaymaster/runtime/cri"
	"github.com/quaymaster/quaymaster/runtime/plugin"
	"github.com/quaymaster/quaymaster/sdk/backend"
)

// Names of --network.
const (
	networkAuto    = "auto"
	networkRuntime = "runtime"
	networkCNI     = "cni"
)

// newNetworkBackend is the process of the network of CNI plugins.
func newNetworkBackend() *cobra.Command {
	var opts cni.Options
	var ranges []string
	command := &cobra.Command{
		Use:    "network",
		Hidden: true,
		Args:   noArgs,
		RunE: func(*cobra.Command, []string) error {
			var err error
			if opts.PodCIDRs, err = parseRanges("--pod-cidr", ranges); err != nil {
				return err
			}
			opts.Logger = backend.Logger(slog.LevelInfo)
			s, err := cni.New(opts)
			if err != nil {
				return err
			}
			return small(func() error { return backend.ServeNetwork(s) })
		},
	}
	f := command.Flags()
	f.StringVar(&opts.StateDir, "state", "", "folder of its state")
	f.StringVar(&opts.ConfDir, "conf-dir", "", "folder of network configurations")
	f.StringSliceVar(&opts.BinDirs, "bin-dir", nil, "folders of plugins")
	f.StringVar(&opts.Bridge, "bridge", "", "interface of the built-in network")
	f.StringSliceVar(&ranges, "pod-cidr", nil, "ranges of the node's pods")
	f.StringVar(&opts.PodCIDRFile, "pod-cidr-file", "", "file that has them, or will have")
	return command
}

// parseRanges reads the networks of a flag.
func parseRanges(flag string, texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%s %q: say a network like 10.244.0.0/16", flag, text)
		}
		out = append(out, p)
	}
	return out, nil
}

// nodeNetwork is the network of a node's pods: its process, and the gate to it.
type nodeNetwork struct {
	supervisor *plugin.Supervisor
	gate       *gate.Gate
}

// networkSocketDir is where a node's gate listens: private, short and one a node.
func networkSocketDir(data string) (string, error) {
	abs, err := filepath.Abs(data)
	if err != nil {
		return "", err
	}
	return filepath.Join("/run/quaymaster", fmt.Sprintf("%.12x", sha256.Sum256([]byte(abs)))), nil
}

// wantsNetwork tells whether the node has a network of its own, and checks the flags.
func (f *agentFlags) wantsNetwork(r nodeRuntime) (bool, error) {
	if _, err := parseRanges("--pod-cidr", f.podCIDR); err != nil {
		return false, err
	}
	switch f.network {
	case networkAuto, "":
		if len(f.podCIDR) == 0 || r.containers {
			return len(f.podCIDR) > 0, nil
		}
	case networkRuntime:
		if len(f.podCIDR) > 0 {
			return false, errors.New("--pod-cidr is for the node's own network; with --network runtime the container runtime has another")
		}
		return false, nil
	default:
		if f.network != networkCNI && !filepath.IsAbs(f.network) {
			return false, fmt.Errorf("--network %q: it is auto, cni, runtime or the absolute path of a backend's program", f.network)
		}
		if r.containers {
			return true, nil
		}
	}
	return false, fmt.Errorf("--network and --pod-cidr are for containers; the runtime is %s", r.name)
}

// openNetwork starts the network's process and opens the gate to it.
func (f *agentFlags) openNetwork(executable, data string, out io.Writer, events chan<- remote.Event, log *slog.Logger) (*nodeNetwork, error) {
	opts := plugin.Options{Kind: backend.Network, Patient: true, Logger: log.With("part", "network")}
	name := f.network
	if filepath.IsAbs(name) {
		var err error
		opts.Command = []string{name}
		if opts.Checksum, err = plugin.ParseChecksum(f.networkChecksum); err != nil {
			return nil, fmt.Errorf("--network-checksum: %w", err)
		}
	} else {
		name = networkCNI
		opts.Command = []string{executable, "backend", "network", "--state", filepath.Join(data, "network"), "--conf-dir", f.cniConf}
		for _, dir := range f.cniBin {
			opts.Command = append(opts.Command, "--bin-dir", dir)
		}
		for _, r := range f.podCIDR {
			opts.Command = append(opts.Command, "--pod-cidr", r)
		}
		if len(f.podCIDR) == 0 {
			opts.Command = append(opts.Command, "--pod-cidr-file", podCIDRFile(data))
		}
	}
	n := &nodeNetwork{}
	var opened atomic.Pointer[gate.Gate]
	opts.Changed = func(s plugin.State) {
		told(events, "the network's backend "+name, s)
		if g := opened.Load(); g != nil && s.PID != 0 && s.Starts > 1 {
			g.Collect()
		}
	}
	dir, err := networkSocketDir(data)
	if err != nil {
		return nil, err
	}
	if n.supervisor, err = plugin.Start(opts); err != nil {
		return nil, fmt.Errorf("start the network: %w", err)
	}
	if n.gate, err = gate.Open(gate.Options{Network: n.supervisor.Network(), Dir: dir, Logger: log.With("part", "network")}); err != nil {
		return nil, errors.Join(err, n.supervisor.Close())
	}
	opened.Store(n.gate)
	fmt.Fprintln(out, "network:", name)
	return n, nil
}

// podCIDRFile is where a node keeps the ranges of pod addresses that the cluster gave it.
func podCIDRFile(data string) string { return filepath.Join(data, "network", "pod-cidr") }

// takeFolders fills in where network configurations and plugins are: the runtime's folders come first.
func (f *agentFlags) takeFolders(ctx context.Context, b cri.Backend) {
	conf, bin := cniFolders(ctx, b)
	if f.cniConf == "" {
		f.cniConf = conf
	}
	if len(f.cniBin) == 0 {
		f.cniBin = append([]string{bin}, slices.DeleteFunc(cni.BinDirs(), func(d string) bool { return d == bin })...)
	}
}

// installRelay makes a container runtime that runs CNI plugins itself come to the gate.
func (f *agentFlags) installRelay(executable, data string) error {
	dir, err := networkSocketDir(data)
	if err != nil {
		return err
	}
	return gate.Install(gate.InstallOptions{ConfDir: f.cniConf, BinDir: f.cniBin[0], Program: executable, Socket: gate.Socket(dir)})
}

// cniFolders is where a runtime looks for network configurations and plugins: what containerd says, or the usual.
func cniFolders(ctx context.Context, b cri.Backend) (conf, bin string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var config struct {
		CNI struct {
			NetworkPluginConfDir string   `json:"confDir"`
			NetworkPluginBinDir  string   `json:"binDir"`
			NetworkPluginBinDirs []string `json:"binDirs"`
		} `json:"cni"`
	}
	if st, err := b.Status(ctx, &runtimeapi.StatusRequest{Verbose: true}); err == nil {
		_ = json.Unmarshal([]byte(st.Info["config"]), &config) // other runtimes have none
	}
	conf, bin = config.CNI.NetworkPluginConfDir, config.CNI.NetworkPluginBinDir
	if bin == "" && len(config.CNI.NetworkPluginBinDirs) > 0 {
		bin = config.CNI.NetworkPluginBinDirs[0]
	}
	if conf == "" {
		conf = "/etc/cni/net.d"
	}
	if bin == "" {
		bin = "/opt/cni/bin"
		if dirs := cni.BinDirs(); len(dirs) > 0 {
			bin = dirs[0]
		}
	}
	return conf, bin
}

// told makes an event of what became of a backend's process. Nobody waits for a reader.
func told(events chan<- remote.Event, what string, s plugin.State) {
	e := remote.Event{Type: corev1.EventTypeWarning, Reason: "BackendFailed"}
	switch {
	case s.PID != 0 && s.Starts > 1:
		e = remote.Event{Type: corev1.EventTypeNormal, Reason: "BackendRestarted", Message: what + " was started again"}
	case s.Err == nil:
		return
	case errors.Is(s.Err, plugin.ErrChecksum):
		e.Reason = "BackendChecksumMismatch"
	case errors.Is(s.Err, plugin.ErrHandshake):
		e.Reason = "BackendHandshakeFailed"
	}
	if e.Message == "" {
		e.Message = what + ": " + s.Err.Error()
	}
	select {
	case events <- e:
	default:
	}
}
