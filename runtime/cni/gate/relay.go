package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"google.golang.org/grpc/status"

	"github.com/quaymaster/quaymaster/runtime/cni"
	"github.com/quaymaster/quaymaster/sdk/backend/network"
)

// File is the name of the relay's configuration: the first by name is a runtime's.
const File = "00-quaymaster.conflist"

// relayTime bounds what a plugin waits for: longer than the network's own bound.
const relayTime = 3 * time.Minute

// relayConf is what the relay is given on its standard input.
type relayConf struct {
	types.PluginConf
	Socket        string `json:"socket"`
	RuntimeConfig struct {
		PortMappings []struct {
			HostPort      int32  `json:"hostPort"`
			ContainerPort int32  `json:"containerPort"`
			Protocol      string `json:"protocol"`
			HostIP        string `json:"hostIP"`
		} `json:"portMappings"`
		Bandwidth *struct {
			IngressRate  uint64 `json:"ingressRate"`
			IngressBurst uint64 `json:"ingressBurst"`
			EgressRate   uint64 `json:"egressRate"`
			EgressBurst  uint64 `json:"egressBurst"`
		} `json:"bandwidth"`
	} `json:"runtimeConfig"`
}

// RunRelay is the whole of a CNI plugin that passes its call on to a gate, by
// environment, standard input and output: the body of a program named cni.RelayType.
// It ends the process where the call fails.
func RunRelay() {
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add: relayAdd,
		Del: func(args *skel.CmdArgs) error {
			return relay(args, func(ctx context.Context, n network.NetworkClient, a *network.Attachment) error {
				_, err := n.Del(ctx, &network.DelRequest{Attachment: a})
				return err
			})
		},
		Check: func(args *skel.CmdArgs) error {
			return relay(args, func(ctx context.Context, n network.NetworkClient, a *network.Attachment) error {
				_, err := n.Check(ctx, &network.CheckRequest{Attachment: a})
				return err
			})
		},
		GC: func(*skel.CmdArgs) error { return nil }, // the gate sees to it
		Status: func(args *skel.CmdArgs) error {
			return relay(args, func(ctx context.Context, n network.NetworkClient, _ *network.Attachment) error {
				st, err := n.Status(ctx, &network.StatusRequest{})
				if err == nil && !st.Ready {
					return types.NewError(types.ErrTryAgainLater, st.Reason, st.Message)
				}
				return err
			})
		},
	}, version.All, "quaymaster's relay to the node's network")
}

func relayAdd(args *skel.CmdArgs) error {
	var conf relayConf
	if err := json.Unmarshal(args.StdinData, &conf); err != nil {
		return err
	}
	var result *types100.Result
	err := relay(args, func(ctx context.Context, n network.NetworkClient, a *network.Attachment) error {
		r, err := n.Add(ctx, &network.AddRequest{Attachment: a})
		if err != nil {
			return err
		}
		result, err = resultOf(r, a)
		return err
	})
	if err != nil {
		return err
	}
	return types.PrintResult(result, conf.CNIVersion)
}

func resultOf(r *network.AddResponse, a *network.Attachment) (*types100.Result, error) {
	out := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, Interfaces: []*types100.Interface{{Name: a.Interface, Mac: r.Mac, Sandbox: a.Netns}}}
	for _, have := range r.Addresses {
		ip, ipnet, err := net.ParseCIDR(have.Address)
		if err != nil {
			return nil, fmt.Errorf("the network's answer: %w", err)
		}
		ipnet.IP = ip
		out.IPs = append(out.IPs, &types100.IPConfig{Interface: types100.Int(0), Address: *ipnet, Gateway: net.ParseIP(have.Gateway)})
	}
	return out, nil
}

// relay makes one call for the attachment that a plugin's arguments name.
func relay(args *skel.CmdArgs, call func(context.Context, network.NetworkClient, *network.Attachment) error) error {
	var conf relayConf
	if err := json.Unmarshal(args.StdinData, &conf); err != nil {
		return fmt.Errorf("the relay's configuration: %w", err)
	}
	if conf.Socket == "" {
		return errors.New("the relay's configuration names no socket")
	}
	a := &network.Attachment{ContainerId: args.ContainerID, Interface: args.IfName, Netns: args.Netns}
	for pair := range strings.SplitSeq(args.Args, ";") {
		switch name, value, _ := strings.Cut(pair, "="); name {
		case "K8S_POD_NAMESPACE":
			a.PodNamespace = value
		case "K8S_POD_NAME":
			a.PodName = value
		case "K8S_POD_UID":
			a.PodUid = value
		}
	}
	for _, p := range conf.RuntimeConfig.PortMappings {
		a.PortMappings = append(a.PortMappings, &network.PortMapping{HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: p.Protocol, HostIp: p.HostIP})
	}
	if b := conf.RuntimeConfig.Bandwidth; b != nil {
		a.Bandwidth = &network.Bandwidth{IngressRate: b.IngressRate, IngressBurst: b.IngressBurst, EgressRate: b.EgressRate, EgressBurst: b.EgressBurst}
	}
	n, conn, err := Dial(conf.Socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), relayTime)
	defer cancel()
	err = call(ctx, n, a)
	if s, ok := status.FromError(err); ok && err != nil {
		return types.NewError(types.ErrTryAgainLater, s.Message(), "")
	}
	return err
}

// InstallOptions of Install. All are needed.
type InstallOptions struct {
	ConfDir, BinDir string // where the runtime looks
	Program         string // that calls RunRelay where it is started as cni.RelayType
	Socket          string
}

// Install makes a container runtime attach its pods through a gate: a configuration before all others in its folder, and the
// relay among its plugins.
func Install(opts InstallOptions) error {
	if _, err := os.Stat(filepath.Join(opts.BinDir, "loopback")); err != nil {
		return fmt.Errorf("the container runtime needs the network plugin loopback in %s: install containernetworking-plugins", opts.BinDir)
	}
	plugin := filepath.Join(opts.BinDir, cni.RelayType)
	if have, err := os.Readlink(plugin); err != nil || have != opts.Program {
		fresh := fmt.Sprintf("%s.%d", plugin, os.Getpid())
		_ = os.Remove(fresh)
		if err := errors.Join(os.Symlink(opts.Program, fresh), os.Rename(fresh, plugin)); err != nil {
			return fmt.Errorf("the relay in %s: %w", opts.BinDir, err)
		}
	}
	type m = map[string]any
	text, err := json.MarshalIndent(m{"cniVersion": "0.4.0", "name": "quaymaster", "plugins": []m{
		{"type": cni.RelayType, "socket": opts.Socket, "capabilities": m{"portMappings": true, "bandwidth": true}},
	}}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(opts.ConfDir, 0o755); err != nil {
		return fmt.Errorf("the relay's configuration: %w", err)
	}
	f, err := os.CreateTemp(opts.ConfDir, ".quaymaster-*") // runtimes read whatever has the right ending
	if err != nil {
		return fmt.Errorf("the relay's configuration: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(text, '\n'))
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(opts.ConfDir, File))
	}
	if err != nil {
		return fmt.Errorf("the relay's configuration: %w", err)
	}
	return nil
}
