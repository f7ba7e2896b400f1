package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/examples/hello"
	"github.com/quaymaster/quaymaster/runtime/cni"
	"github.com/quaymaster/quaymaster/runtime/cri/conformance"
	"github.com/quaymaster/quaymaster/runtime/cri/sim"
	"github.com/quaymaster/quaymaster/runtime/cri/wasm"
	"github.com/quaymaster/quaymaster/runtime/plugin"
	"github.com/quaymaster/quaymaster/sdk/backend"
	"github.com/quaymaster/quaymaster/sdk/backend/verify"
)

type verifyFlags struct {
	kind, checksum, address, image, missing, run, exit, line string
	podCIDR                                                  []string
	verbose                                                  bool
	timeout                                                  time.Duration
}

func newBackendVerify() *cobra.Command {
	var f verifyFlags
	command := &cobra.Command{
		Use:   "verify NAME|PATH [ARGUMENT…]",
		Short: "Check that a backend does what an agent expects",
		Long: `Verify starts a backend as an agent does, in a process of its own, and asks it for
all that an agent will. NAME is one of ours: sim, wasm, oci, containerd, cri or network;
PATH is anybody's program. A network is verified in network namespaces that are made
for it and needs root; a container runtime needs images.`,
		Example: `  quaymaster backend verify wasm
  quaymaster backend verify network --pod-cidr 10.99.0.0/24
  quaymaster backend verify ./my-network --kind network
  quaymaster backend verify containerd --image registry.example/busybox:1`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return f.verify(cmd, args) },
	}
	flags := command.Flags()
	flags.SetInterspersed(true)
	flags.StringVar(&f.kind, "kind", "cri", "what the program at PATH is: cri or network")
	flags.StringVar(&f.checksum, "checksum", "", "checksum that the program must have, sha256:HEX")
	flags.StringVar(&f.address, "address", "", "socket of the container runtime, unix:///PATH, for containerd and cri")
	flags.StringVar(&f.image, "image", "", "image that can be pulled, with a shell")
	flags.StringVar(&f.missing, "missing-image", "", "image that cannot be pulled, as it does not exist")
	flags.StringVar(&f.run, "run", "sleep 100000", "shell command that runs until it is stopped")
	flags.StringVar(&f.exit, "exit", "echo a line; exit %d", "shell command that writes --line and ends with code %d")
	flags.StringVar(&f.line, "line", "a line", "line that --exit writes")
	flags.StringSliceVar(&f.podCIDR, "pod-cidr", []string{"10.213.77.0/24"}, "range of pods for network")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "show what the backend logs, on standard error")
	flags.DurationVar(&f.timeout, "timeout", 10*time.Minute, "time for all of it")
	return command
}

func (f *verifyFlags) verify(cmd *cobra.Command, args []string) (err error) {
	executable, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "qmv")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	opts := plugin.Options{Kind: backend.Runtime, Logger: logger(cmd, f.verbose)}
	if opts.Checksum, err = plugin.ParseChecksum(f.checksum); err != nil {
		return fmt.Errorf("--checksum: %w", err)
	}
	target := conformance.Target{Image: f.image, Missing: f.missing, Line: f.line, Runs: f.runs, Exits: f.exits}
	after := func() error { return nil }
	switch name := args[0]; name {
	case "network":
		opts.Kind = backend.Network
		opts.Command = []string{executable, "backend", "network", "--state", filepath.Join(dir, "state"), "--conf-dir", filepath.Join(dir, "net.d"), "--bridge", "qmverify0"}
		for _, r := range f.podCIDR {
			opts.Command = append(opts.Command, "--pod-cidr", r)
		}
		after = func() error { return cni.RemoveBridge("qmverify0") }
	case runtimeSim:
		opts.Command = []string{executable, "backend", "sim"}
		simTarget(&target)
	case runtimeWasm:
		opts.Command = []string{executable, "backend", "wasm", dir, "--", executable, "backend", "wasm-shim"}
		if err := wasmTarget(&target, dir); err != nil {
			return err
		}
	case runtimeContainerd, runtimeCRI, runtimeOCI:
		r, err := chooseRuntime(cmd.Context(), executable, name, f.address, dir)
		if err != nil {
			return err
		}
		opts.Command = r.command
	default:
		if !strings.Contains(name, string(filepath.Separator)) {
			return fmt.Errorf("no backend of ours is called %q: say containerd, cri, network, oci, sim, wasm or the path of a program", name)
		}
		switch f.kind {
		case "network":
			opts.Kind = backend.Network
		case "cri":
		default:
			return fmt.Errorf("--kind %q: it is cri or network", f.kind)
		}
		path, err := filepath.Abs(name)
		if err != nil {
			return err
		}
		opts.Command = append([]string{path}, args[1:]...)
	}
	if opts.Kind == backend.Runtime && target.Image == "" {
		return errors.New("a container runtime is verified with an image: say --image, one with a shell that it can pull")
	}
	s, err := plugin.Start(opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close(), after()) }()
	ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
	defer cancel()
	return runSuite(ctx, cmd.OutOrStdout(), opts.Kind, s, target)
}

func runSuite(ctx context.Context, out io.Writer, kind backend.Kind, s *plugin.Supervisor, target conformance.Target) error {
	if kind == backend.Network {
		return verify.Report(ctx, out, func(t verify.T) {
			verify.Network(t, verify.NetworkTarget{
				Network: s.Network(), NewNamespace: cni.NewNamespace, RemoveNamespace: cni.RemoveNamespace, Run: cni.RunInNamespace,
			})
		})
	}
	target.Backend = s.Backend()
	return verify.Report(ctx, out, func(t verify.T) { conformance.Verify(t, target) })
}

func (f *verifyFlags) runs(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
	c.Command = []string{"sh", "-c", f.run}
}

func (f *verifyFlags) exits(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, code int) {
	c.Command = []string{"sh", "-c", strings.ReplaceAll(f.exit, "%d", strconv.Itoa(code))}
}

func simTarget(t *conformance.Target) {
	t.Image, t.Line = "registry.example/app:1", "a line"
	t.Runs = func(*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig) {}
	t.Exits = func(pod *runtimeapi.PodSandboxConfig, _ *runtimeapi.ContainerConfig, code int) {
		pod.Annotations[sim.AnnotationPrefix+"run-for"] = "1ms"
		pod.Annotations[sim.AnnotationPrefix+"exit-code"] = strconv.Itoa(code)
		pod.Annotations[sim.AnnotationPrefix+"log"] = "a line"
	}
}

func wasmTarget(t *conformance.Target, dir string) error {
	images, err := wasm.OpenImages(filepath.Join(dir, "images"))
	if err != nil {
		return err
	}
	if _, err := images.Import("hello", strings.NewReader(string(hello.Program))); err != nil {
		return err
	}
	t.Image, t.Missing, t.Line = "docker.io/library/hello:latest", "registry.example/none:1", "hello from hello"
	t.Runs = func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
		c.Args = []string{"--sleep", "600000"}
	}
	t.Exits = func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, code int) {
		c.Args = []string{"--exit", strconv.Itoa(code)}
	}
	return nil
}
