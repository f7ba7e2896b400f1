package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/klog/v2"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/resident"
)

// serverFlags are those of `up` and `server`.
type serverFlags struct {
	data, listen, policies string
	history                time.Duration
	historyShare           float64
	storeKey, featureGates string
	etcd                   core.Etcd
	verbose                bool
	api                    core.API
	audit                  core.Audit

	clusterCIDR                          []string
	maskSize, maskSizeIPv4, maskSizeIPv6 int
}

func (f *serverFlags) add(command *cobra.Command) {
	flags := command.Flags()
	flags.StringVar(&f.data, "data", "quaymaster-data", "directory of the store, keys and kubeconfig")
	flags.StringVar(&f.listen, "listen", "127.0.0.1:6443", "address of the HTTPS port; port 0 picks a free one")
	flags.StringSliceVar(&f.clusterCIDR, "cluster-cidr", nil, "ranges of pod addresses, like 10.244.0.0/16, one of each IP family: each node gets a part (default: none, nodes say --pod-cidr)")
	flags.IntVar(&f.maskSize, "node-cidr-mask-size", 0, "bits of a node's part where --cluster-cidr is one range (default 24, of IPv6 64)")
	flags.IntVar(&f.maskSizeIPv4, "node-cidr-mask-size-ipv4", 0, "bits of a node's IPv4 part (default 24)")
	flags.IntVar(&f.maskSizeIPv6, "node-cidr-mask-size-ipv6", 0, "bits of a node's IPv6 part (default 64)")
	flags.StringVar(&f.policies, "policies", "", "directory watched for Policy and SchedulerProfile files")
	flags.DurationVar(&f.history, "history", 72*time.Hour, "how long superseded states of objects stay readable: to history, diff, undelete, forks and backup --since")
	flags.Float64Var(&f.historyShare, "history-share", 0.1, "the most of the disk's room that they take, as a part of what they and free space make together")
	flags.StringVar(&f.audit.Policy, "audit-policy-file", "", "file with a Policy of audit.k8s.io/v1: which requests are logged")
	flags.StringVar(&f.audit.Log, "audit-log-path", "", "file that takes the audit events, a JSON object a line")
	flags.StringVar(&f.api.AuthenticationConfig, "authentication-config", "", "file with an AuthenticationConfiguration: OpenID Connect issuers whose tokens are accepted; read again when it changes")
	flags.StringSliceVar(&f.api.WatchCache, "watch-cache", nil, "resources with upstream's watch cache, as widgets.example.com: for those that a hundred clients watch whole")
	flags.StringSliceVar(&f.api.EnableAdmission, "enable-admission-plugins", nil, "upstream's admission plugins that are off by default: "+strings.Join(core.MoreAdmissionPlugins(), ", "))
	flags.StringSliceVar(&f.api.DisableAdmission, "disable-admission-plugins", nil, "admission plugins that are not to be in force")
	flags.StringVar(&f.featureGates, "feature-gates", "", "upstream's feature gates of its API libraries and of the workload API, as CBORServingAndStorage=true; those of its kubelet, scheduler and controllers have no effect")
	flags.StringVar(&f.storeKey, "store-key", "", "file with the key that the store is encrypted with; made with a new store (see quaymaster store)")
	flags.StringSliceVar(&f.etcd.Endpoints, "etcd-servers", nil, "keep the objects in this etcd (https://HOST:2379,…) and not below --data; several servers may share one, and one of them leads")
	flags.StringVar(&f.etcd.CAFile, "etcd-cafile", "", "authority of etcd's certificates (PEM)")
	flags.StringVar(&f.etcd.CertFile, "etcd-certfile", "", "certificate to show to etcd (PEM)")
	flags.StringVar(&f.etcd.KeyFile, "etcd-keyfile", "", "its key (PEM)")
	flags.StringVar(&f.etcd.Prefix, "etcd-prefix", "", "prefix of all keys, for clusters that share an etcd")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "log what the parts do, to standard error")
}

func (f *serverFlags) options(cmd *cobra.Command) (core.Options, error) {
	options := core.Options{DataDir: f.data, Listen: f.listen, PolicyDir: f.policies, History: f.history, HistoryShare: f.historyShare, StoreKey: f.storeKey, StoreOpening: steps(cmd, f.data), API: f.api, Version: version, Logger: logger(cmd, f.verbose)}
	if f.featureGates != "" { // of the whole process, as upstream has them
		if err := utilfeature.DefaultMutableFeatureGate.Set(f.featureGates); err != nil {
			return options, fmt.Errorf("--feature-gates: %w", err)
		}
	}
	if f.audit != (core.Audit{}) {
		options.API.Audit = &f.audit
	}
	if len(f.etcd.Endpoints) > 0 {
		options.Etcd = &f.etcd
		if !cmd.Flags().Changed("history") {
			options.History = 0 // etcd's compaction is not days apart
		}
	} else if f.etcd.CAFile+f.etcd.CertFile+f.etcd.KeyFile+f.etcd.Prefix != "" {
		return options, errors.New("--etcd-cafile, --etcd-certfile, --etcd-keyfile and --etcd-prefix belong to --etcd-servers, which is missing")
	}
	if err := f.ranges(&options); err != nil {
		return options, err
	}
	if f.policies != "" {
		if info, err := os.Stat(f.policies); err != nil {
			return options, fmt.Errorf("--policies: %w", err)
		} else if !info.IsDir() {
			return options, fmt.Errorf("--policies: %s is not a directory", f.policies)
		}
	}
	return options, nil
}

// ranges reads where the nodes' ranges of pod addresses come from.
func (f *serverFlags) ranges(options *core.Options) (err error) {
	if options.ClusterCIDRs, err = parseRanges("--cluster-cidr", f.clusterCIDR); err != nil {
		return err
	}
	if f.maskSize != 0 && len(options.ClusterCIDRs) != 1 {
		return errors.New("--node-cidr-mask-size is for one --cluster-cidr; for two say --node-cidr-mask-size-ipv4 and --node-cidr-mask-size-ipv6")
	}
	for _, p := range options.ClusterCIDRs {
		size := f.maskSizeIPv4
		if p.Addr().Is6() {
			size = f.maskSizeIPv6
		}
		if f.maskSize != 0 {
			size = f.maskSize
		}
		options.NodeCIDRMaskSizes = append(options.NodeCIDRMaskSizes, size)
	}
	return nil
}

// logger writes warnings and errors, or everything, to standard error.
func logger(cmd *cobra.Command, verbose bool) *slog.Logger {
	level := slog.LevelWarn
	if verbose {
		level = slog.LevelInfo
	}
	libraryLevel.Set(level)
	logLibraries()
	return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
}

// libraryLevel is from where on upstream's libraries are heard.
var libraryLevel slog.LevelVar

// logLibraries gives upstream's libraries the one logger of the process that
// they have. They read it without a lock: so it is set once, before they run.
var logLibraries = sync.OnceFunc(func() {
	klog.SetSlogLogger(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: &libraryLevel})))
})

func newUp() *cobra.Command {
	var flags serverFlags
	var nodes int
	var runtime string
	command := &cobra.Command{
		Use:   "up",
		Short: "Run a whole cluster in this process until it is interrupted",
		Long: `Up runs the API server, the store, the controllers, the scheduler, the policies
and the nodes in one process. It prints one line when requests are answered.`,
		Example: "  quaymaster up --data ./data --nodes 3\n  KUBECONFIG=./data/kubeconfig quaymaster kubectl get nodes",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			options, err := flags.options(cmd)
			if err != nil {
				return err
			}
			switch runtime {
			case "auto", "wasm":
				// WebAssembly is the runtime that needs nothing installed: auto adds
				// one such node beside the simulated ones.
				options.Nodes = append(core.Nodes("node", nodes), core.WasmNode("local"))
				if runtime == "wasm" {
					options.Nodes = options.Nodes[nodes:]
				}
			case "sim":
				options.Nodes = core.Nodes("node", nodes)
			default:
				return fmt.Errorf("--runtime %q: it is auto, wasm or sim", runtime)
			}
			return serve(cmd.Context(), cmd, options)
		},
	}
	flags.add(command)
	command.Flags().IntVar(&nodes, "nodes", 1, "how many simulated nodes to run")
	command.Flags().StringVar(&runtime, "runtime", "auto", "wasm: one node that runs WebAssembly; sim: simulated nodes; auto: both")
	return command
}

func newServer() *cobra.Command {
	var flags serverFlags
	command := &cobra.Command{
		Use:   "server",
		Short: "Run the engine without nodes; agents join it",
		Long: `Server runs everything but nodes. It writes DIR/join-token, with which
"quaymaster agent" joins a node from this or another machine.`,
		Example: "  quaymaster server --data ./data --listen 10.0.0.1:6443",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			options, err := flags.options(cmd)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), cmd, options)
		},
	}
	flags.add(command)
	return command
}

// serve runs an engine until the context ends, and writes the files and the line
// that tell of it.
func serve(ctx context.Context, cmd *cobra.Command, options core.Options) (err error) {
	engine, err := core.New(options)
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
		defer cancel()
		err = errors.Join(err, engine.Close(closing))
	}()
	if err := engine.Start(ctx); err != nil {
		return err
	}
	select {
	case <-engine.Ready():
	case <-engine.Done():
		return nil // Close has the reason
	}
	changed := engine.CredentialsChanged()
	path, err := writeFiles(engine, options.DataDir)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(cmd.OutOrStdout(), "ready: https://%s  export KUBECONFIG=%s\n", engine.Address(), path); err != nil {
		return err
	}
	var settled sync.WaitGroup
	defer settled.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	settled.Go(func() { resident.Server(ctx) })
	settled.Go(func() {
		keepFiles(ctx, engine, options.DataDir, changed, func(err error) {
			options.Logger.Error("the kubeconfig and the join token are not up to date", "error", err)
		})
	})
	<-engine.Done()
	return nil
}

// writeSecret writes a file that only its owner may read, in one step.
func writeSecret(path string, content []byte) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, content, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
