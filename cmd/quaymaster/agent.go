package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/core/api"
	"github.com/quaymaster/quaymaster/core/resident"
	"github.com/quaymaster/quaymaster/runtime/agent"
	"github.com/quaymaster/quaymaster/runtime/agent/cgroup"
	"github.com/quaymaster/quaymaster/runtime/agent/eviction"
	"github.com/quaymaster/quaymaster/runtime/agent/imagegc"
	"github.com/quaymaster/quaymaster/runtime/agent/remote"
	"github.com/quaymaster/quaymaster/runtime/cni"
	"github.com/quaymaster/quaymaster/runtime/cni/gate"
	"github.com/quaymaster/quaymaster/runtime/cri"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd"
	"github.com/quaymaster/quaymaster/runtime/plugin"
	"github.com/quaymaster/quaymaster/runtime/proxy"
)

type agentFlags struct {
	server, token, name, data, listen, runtime, address                                         string
	labels                                                                                      map[string]string
	taints                                                                                      []string
	verbose, register                                                                           bool
	clusterDNS                                                                                  []string
	clusterDomain, cgroupRoot, manifests, manifestURL, health, readOnly, eviction, evictionSoft string
	runtimeChecksum, network, networkChecksum, cniConf, registries                              string
	podCIDR, cniBin                                                                             []string
	evictionGrace, shutdown, shutdownCritical                                                   time.Duration
	podPIDs, maxPods                                                                            int64
	imageHigh, imageLow                                                                         int
	serviceProxy, dnsListen                                                                     string
	dnsForward                                                                                  []string

	proxy *proxy.Proxy // one for all runs
}

func newAgent() *cobra.Command {
	var flags agentFlags
	command := &cobra.Command{
		Use:   "agent",
		Short: "Run a node and join it to a server",
		Long: `Agent runs one node until it is interrupted. At its first start it joins with
the server's token, which is in DIR/join-token there; later starts use the
certificate that it was given. The container runtime is a process of its own.`,
		Example: "  quaymaster agent --server https://10.0.0.1:6443 --token \"$(cat join-token)\" --name node01",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return flags.run(cmd) },
	}
	hostname, _ := os.Hostname() // without one --name has no default and is asked for
	f := command.Flags()
	f.StringVar(&flags.server, "server", "", "URL of the API server")
	f.StringVar(&flags.token, "token", "", "join token, for the first start")
	f.StringVar(&flags.name, "name", strings.ToLower(hostname), "name of the node")
	f.StringVar(&flags.data, "data", "", "directory of certificates, logs, volumes and images (default: quaymaster-NAME)")
	f.StringVar(&flags.listen, "listen", "127.0.0.1:0", "address of the kubelet API, which the server must reach; port 0 picks a free one")
	f.StringVar(&flags.runtime, "runtime", "auto", "containerd; cri: another CRI runtime, at --runtime-address; oci: runc alone, without a daemon; wasm: WebAssembly programs; sim: pods that only seem to run; auto: the first of these that is there; or the absolute path of a backend's program")
	f.StringVar(&flags.runtimeChecksum, "runtime-checksum", "", "checksum that the program at --runtime must have, sha256:HEX")
	f.StringVar(&flags.address, "runtime-address", "", "socket of the container runtime, unix:///PATH (default for containerd: "+containerd.DefaultAddress+")")
	f.StringVar(&flags.manifests, "manifests", "", "directory of static pods: manifests that run without the server")
	f.StringVar(&flags.manifestURL, "manifest-url", "", "URL of a manifest of static pods")
	f.StringVar(&flags.health, "health-listen", "", "address of /healthz without TLS, like 127.0.0.1:10248 (default: none)")
	f.StringVar(&flags.network, "network", networkAuto, "network of pods: cni: standard plugins, run by a backend of the node; runtime: the container runtime's own affair; auto: cni with --pod-cidr, else runtime; or the absolute path of a backend's program")
	f.StringVar(&flags.networkChecksum, "network-checksum", "", "checksum that the program at --network must have, sha256:HEX")
	f.StringVar(&flags.registries, "registry-dir", "/etc/containerd/certs.d", "folder with mirrors and certificates of registries, REGISTRY/hosts.toml in it as containerd reads them, for --runtime oci")
	f.StringSliceVar(&flags.podCIDR, "pod-cidr", nil, "ranges of the node's pods, like 10.244.1.0/24, one of each IP family: makes their network where --cni-conf-dir has none (default with --network cni: what the server gives the node of --cluster-cidr)")
	f.StringVar(&flags.cniConf, "cni-conf-dir", "", "folder of network configurations (default: containerd's, else /etc/cni/net.d)")
	f.StringSliceVar(&flags.cniBin, "cni-bin-dir", nil, "folders of network plugins (default: /opt/cni/bin and /usr/lib/cni)")
	f.StringVar(&flags.serviceProxy, "service-proxy", proxyNone, "what leads from services' addresses to pods on this node: nftables: rules of the kernel; none: nothing, or another program")
	f.StringVar(&flags.dnsListen, "dns-listen", "", "address of a server of the cluster's names, which pods must reach, like 10.0.0.2:53 (default: none)")
	f.StringSliceVar(&flags.dnsForward, "dns-forward", nil, "servers that it asks for all other names (default: the machine's)")
	f.StringSliceVar(&flags.clusterDNS, "cluster-dns", nil, "name servers of pods that want the cluster's (default: --dns-listen's, else the machine's)")
	f.DurationVar(&flags.shutdown, "shutdown-grace-period", 0, "how long pods have to end when the machine is about to go, as systemd says, which waits for them, or SIGPWR (0: neither is heeded)")
	f.DurationVar(&flags.shutdownCritical, "shutdown-grace-period-critical-pods", 0, "how much of it is left for critical pods, which end last")
	f.StringVar(&flags.readOnly, "read-only-listen", "", "address of health, pods, statistics and metrics without TLS and for anybody, like 127.0.0.1:10255 (default: none)")
	f.StringVar(&flags.clusterDomain, "cluster-domain", "cluster.local", "domain of the cluster's services")
	f.StringVar(&flags.cgroupRoot, "cgroup-root", "/", "control group below which the pods' are; two nodes of one machine need two")
	f.StringVar(&flags.eviction, "eviction-hard", "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%", "bounds past which pods of containers have to go (none: never)")
	f.StringVar(&flags.evictionSoft, "eviction-soft", "", "bounds that must be crossed for --eviction-soft-grace")
	f.DurationVar(&flags.evictionGrace, "eviction-soft-grace", 2*time.Minute, "how long a soft bound must be crossed")
	f.IntVar(&flags.imageHigh, "image-gc-high-threshold", imagegc.High, "per cent of the images' disk above which images that no container uses go (100: none goes)")
	f.IntVar(&flags.imageLow, "image-gc-low-threshold", imagegc.Low, "per cent of it down to which they go")
	f.Int64Var(&flags.podPIDs, "pod-max-pids", 0, "how many processes a pod may have (0: no limit)")
	f.Int64Var(&flags.maxPods, "max-pods", 110, "how many pods the node has room for")
	f.BoolVar(&flags.register, "register-node", true, "make the Node object, with --label and --taint; =false: wait until somebody else has made it, and keep its status alone")
	f.StringToStringVar(&flags.labels, "label", nil, "label of the node, key=value; may be repeated")
	f.StringArrayVar(&flags.taints, "taint", nil, "taint of the node, key[=value]:effect; may be repeated")
	f.BoolVarP(&flags.verbose, "verbose", "v", false, "log what the parts do, to standard error")
	return command
}

// run is once, again whenever the node's runtime has changed.
func (f *agentFlags) run(cmd *cobra.Command) error {
	if f.imageLow < 0 || f.imageHigh > 100 || f.imageLow >= f.imageHigh {
		return fmt.Errorf("--image-gc-low-threshold %d and --image-gc-high-threshold %d: want 0 to 100, and the first below the second", f.imageLow, f.imageHigh)
	}
	flags := *f
	if err := flags.services(logger(cmd, f.verbose)); err != nil {
		return err
	}
	for {
		once := flags // each run fills in what depends on the runtime
		err := once.once(cmd)
		var switched *remote.Switched
		if !errors.As(err, &switched) {
			return err
		}
		if err := saveRuntime(flags.dir(), switched.To); err != nil {
			return err
		}
		cmd.SetOut(cmd.ErrOrStderr()) // who read that the node is ready may read no more
	}
}

// dir is the node's directory.
func (f *agentFlags) dir() string {
	if f.data != "" {
		return f.data
	}
	return "quaymaster-" + f.name
}

func (f *agentFlags) once(cmd *cobra.Command) (err error) {
	if f.shutdownCritical > f.shutdown {
		return errors.New("--shutdown-grace-period-critical-pods is a part of --shutdown-grace-period and cannot be longer")
	}
	if f.server == "" || f.name == "" {
		return errors.New("an agent needs --server and --name")
	}
	taints, err := parseTaints(f.taints)
	if err != nil {
		return err
	}
	dir := f.dir()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	log := logger(cmd, f.verbose)
	executable, err := os.Executable()
	if err != nil {
		return err
	}
	name, address, err := savedRuntime(dir, f.runtime, f.address)
	if err != nil {
		return err
	}
	runtime, err := chooseRuntime(cmd.Context(), executable, name, address, dir)
	if err != nil {
		return err
	}
	if runtime.taken != "" {
		fmt.Fprintln(cmd.OutOrStdout(), "runtime:", runtime.taken)
	}
	if f.maxPods < 1 {
		return fmt.Errorf("--max-pods %d: a node has room for one pod at least", f.maxPods)
	}
	runtime.capacity[corev1.ResourcePods] = *quantity.NewQuantity(f.maxPods, quantity.DecimalSI)
	listener, err := net.Listen("tcp", f.listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w; choose another --listen", f.listen, err)
	}
	defer listener.Close()
	var health net.Listener
	if f.health != "" {
		if health, err = net.Listen("tcp", f.health); err != nil {
			return fmt.Errorf("listen on %s: %w; choose another --health-listen", f.health, err)
		}
		defer health.Close()
	}
	var readOnly net.Listener
	if f.readOnly != "" {
		if readOnly, err = net.Listen("tcp", f.readOnly); err != nil {
			return fmt.Errorf("listen on %s: %w; choose another --read-only-listen", f.readOnly, err)
		}
		defer readOnly.Close()
	}
	withNetwork, err := f.wantsNetwork(runtime)
	if err != nil {
		return err
	}
	checksum, err := plugin.ParseChecksum(f.runtimeChecksum)
	if err != nil {
		return fmt.Errorf("--runtime-checksum: %w", err)
	}
	if checksum != nil && !filepath.IsAbs(runtime.name) {
		return errors.New("--runtime-checksum is for --runtime with the path of a program")
	}
	if runtime.name == runtimeOCI {
		runtime.command = append(runtime.command, "--registry-dir", f.registries)
		if withNetwork {
			socketDir, err := networkSocketDir(dir)
			if err != nil {
				return err
			}
			runtime.command = append(runtime.command, "--network", gate.Socket(socketDir))
		} else {
			fmt.Fprintln(cmd.OutOrStdout(), "network: none; pods have a loopback interface only: say --pod-cidr, or --network cni")
		}
	}
	events := make(chan remote.Event, 100)
	supervisor, err := plugin.Start(plugin.Options{
		Command: runtime.command, Checksum: checksum, Patient: true, Logger: log.With("part", "backend"),
		Changed: func(s plugin.State) { told(events, "the runtime's backend "+runtime.name, s) },
	})
	if err != nil {
		return fmt.Errorf("start the %s backend: %w", runtime.name, err)
	}
	defer func() { err = errors.Join(err, supervisor.Close()) }()
	backend := supervisor.Backend()
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	if withNetwork {
		f.takeFolders(ctx, backend)
		n, err := f.openNetwork(executable, dir, cmd.OutOrStdout(), events, log)
		if err != nil {
			return err
		}
		defer func() { _ = n.supervisor.Close() }()
		done := make(chan error, 1)
		runtimes := backend
		go func() { done <- n.gate.Run(ctx, runtimes) }()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				log.Error("the network's socket", "err", err)
			}
		}()
		if runtime.name != runtimeOCI { // which calls the gate itself
			if err := f.installRelay(executable, dir); err != nil {
				return fmt.Errorf("--network: %w", err)
			}
		}
		backend = n.gate.Backend(backend)
	}
	var containers *agent.Containers
	if runtime.containers {
		if containers, err = f.containers(ctx, backend, runtime.capacity, log); err != nil {
			return err
		}
	}
	going, mayGo := powerFails(ctx, f.shutdown, log)
	defer mayGo()
	return remote.Run(ctx, remote.Options{
		Shutdown: going, ShutdownGrace: f.shutdown, ShutdownCritical: f.shutdownCritical,
		Server: f.server, Token: f.token, NodeName: f.name, Dir: dir,
		Proxy: f.proxy, DNS: f.names(log),
		Backend: backend, Events: events, Listener: listener, Health: health, ReadOnly: readOnly, Manifests: f.manifests, ManifestURL: f.manifestURL,
		Switch: &remote.Switch{Runtime: runtime.asked, Check: func(to string) error {
			name, address, err := parseRuntime(to)
			if err == nil {
				_, err = chooseRuntime(ctx, executable, name, address, dir)
			}
			return err
		}},
		PodCIDRs: func(ranges []string) error {
			if !withNetwork || len(f.podCIDR) > 0 {
				return nil
			}
			return cni.WriteRanges(podCIDRFile(dir), ranges)
		},
		Labels: runtime.withLabels(f.labels), Taints: taints, Unregistered: !f.register, Capacity: runtime.capacity, Containers: containers, Version: api.Version(version),
		Joined: func() {
			fmt.Fprintf(cmd.OutOrStdout(), "ready: node %s has joined %s\n", f.name, f.server)
			go resident.Node(ctx)
		},
		Logger: log,
	})
}

// containers is how this machine's processes are held: in control groups of the agent's making, or in
// slices of systemd's where the runtime leaves them to it.
func (f *agentFlags) containers(ctx context.Context, backend cri.Backend, capacity corev1.ResourceList, log *slog.Logger) (*agent.Containers, error) {
	out := &agent.Containers{ClusterDNS: f.clusterDNS, ClusterDomain: f.clusterDomain, ImageHigh: f.imageHigh, ImageLow: f.imageLow}
	hard, err := eviction.Parse(f.eviction)
	if err != nil {
		return nil, fmt.Errorf("--eviction-hard: %w", err)
	}
	soft, err := eviction.Parse(f.evictionSoft)
	if err != nil {
		return nil, fmt.Errorf("--eviction-soft: %w", err)
	}
	for _, t := range soft {
		t.Grace = max(f.evictionGrace, time.Second)
		hard = append(hard, t)
	}
	out.Eviction = hard
	groups := cgroup.Options{Root: f.cgroupRoot, Allocatable: capacity, PodPIDs: f.podPIDs}
	config, err := backend.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{})
	if err == nil && config.GetLinux().GetCgroupDriver() == runtimeapi.CgroupDriver_SYSTEMD {
		if groups.Slices, err = systemdSlices(ctx); err != nil {
			log.Warn("the container runtime leaves control groups to systemd, which does not answer: pods have the limits of their containers and no others", "err", err)
			return out, nil
		}
	}
	out.Cgroups, err = cgroup.New(groups)
	return out, err
}

// parseTaints reads key[=value]:effect, as kubectl taint does.
func parseTaints(texts []string) ([]corev1.Taint, error) {
	var taints []corev1.Taint
	for _, text := range texts {
		pair, effect, ok := strings.Cut(text, ":")
		key, value, _ := strings.Cut(pair, "=")
		taint := corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffect(effect)}
		switch taint.Effect {
		case corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute:
		default:
			ok = false
		}
		if !ok || key == "" {
			return nil, fmt.Errorf("--taint %q: say key=value:NoSchedule, :PreferNoSchedule or :NoExecute", text)
		}
		taints = append(taints, taint)
	}
	return taints, nil
}
