package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
)

// process is one of ours, with its log.
type process struct {
	*exec.Cmd
	log *os.File
}

// launch starts one and waits until it says that it is ready.
func launch(ctx context.Context, log string, command *exec.Cmd) (*process, error) {
	file, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	p := &process{Cmd: command, log: file}
	p.Stderr = file
	said, err := p.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if err := p.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", command, err), file.Close())
	}
	ready := make(chan error, 1)
	go func() {
		lines := bufio.NewScanner(said)
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "ready: ") {
				ready <- nil
			}
		}
		ready <- errors.New("it ended")
	}()
	select {
	case err = <-ready:
	case <-time.After(2 * time.Minute):
		err = errors.New("it is not ready after two minutes")
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		p.stop()
		told, _ := os.ReadFile(log) // for the message only
		return nil, fmt.Errorf("start %s: %w\n%s", command, err, told)
	}
	return p, nil
}

// stop ends it, by force if it takes more than half a minute.
func (p *process) stop() {
	force := time.AfterFunc(30*time.Second, func() { _ = p.Process.Kill() })
	defer force.Stop()
	_ = p.Process.Signal(syscall.SIGTERM) // it may have ended
	_ = p.Wait()                          // its log has what failed
	_ = p.log.Close()
}

// cluster is an engine and what runs its pods.
type cluster struct {
	kubeconfig string
	parts      []func() // that end it, the last first
}

func (c *cluster) stop() {
	for i := len(c.parts) - 1; i >= 0; i-- {
		c.parts[i]()
	}
}

// history is short because a test waits until a list has been compacted away.
const history = "2m"

// simulated runs an engine with simulated nodes.
func simulated(ctx context.Context, b binaries, dir string, nodes int) (*cluster, error) {
	data := filepath.Join(dir, "data")
	p, err := launch(ctx, filepath.Join(dir, "engine.log"), exec.Command(b.quaymaster, "up", "--data", data, "--listen", address()+":0",
		"--runtime", "sim", "--nodes", fmt.Sprint(nodes), "--history", history))
	if err != nil {
		return nil, err
	}
	c := &cluster{kubeconfig: filepath.Join(data, "kubeconfig"), parts: []func(){p.stop}}
	apply := exec.CommandContext(ctx, b.kubectl, "--kubeconfig="+c.kubeconfig, "apply", "-f", "-")
	apply.Stdin = bytes.NewReader(missing)
	if out, err := apply.CombinedOutput(); err != nil {
		c.stop()
		return nil, fmt.Errorf("tell simulated nodes of images that do not exist: %w: %s", err, out)
	}
	return c, nil
}

// missing makes pods with images that do not exist fail as they would on a real node.
//
//go:embed missing.yaml
var missing []byte

// real runs an engine, a containerd and an agent on it, in namespaces of this process.
func real(ctx context.Context, b binaries, dir string) (_ *cluster, err error) {
	if why := containerdtest.Missing(); why != "" {
		return nil, errors.New(why)
	}
	c := &cluster{kubeconfig: filepath.Join(dir, "data", "kubeconfig")}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	mirror, err := serveImages(ctx, b)
	if err != nil {
		return nil, err
	}
	short, err := os.MkdirTemp("", "ctd") // a socket's path has at most 107 bytes
	if err != nil {
		return nil, err
	}
	daemon, err := containerdtest.Launch(short, "http://"+mirror)
	if err != nil {
		return nil, err
	}
	cgroups := fmt.Sprintf("conformance%d", os.Getpid()) + filepath.Base(short)
	c.parts = append(c.parts, func() {
		if err := containerdtest.RemoveCgroups(cgroups); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}, func() {
		_ = os.WriteFile(filepath.Join(dir, "containerd.log"), []byte(daemon.Log()), 0o600)
		if err := daemon.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "end containerd:", err)
		}
	})
	if err := daemon.SetNetwork(daemon.Bridge("10.88.0.0/16")); err != nil {
		return nil, err
	}
	// A machine has a default route, or what it sends to a service's address would not come as far as the rules for it.
	if _, err := output(ctx, "/", "ip", "route", "add", "default", "dev", "lo", "src", containerdtest.NodeIP); err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	engine, err := launch(ctx, filepath.Join(dir, "engine.log"), exec.Command(b.quaymaster, "server", "--data", data,
		"--listen", containerdtest.NodeIP+":6443", "--history", history))
	if err != nil {
		return nil, err
	}
	c.parts = append(c.parts, engine.stop)
	token, err := os.ReadFile(filepath.Join(data, "join-token"))
	if err != nil {
		return nil, err
	}
	agent, err := launch(ctx, filepath.Join(dir, "agent.log"), exec.Command(b.quaymaster, "agent", "--server", "https://"+containerdtest.NodeIP+":6443",
		"--token", strings.TrimSpace(string(token)), "--name", "node1", "--data", filepath.Join(dir, "agent"), "--listen", containerdtest.NodeIP+":10250",
		"--runtime", "containerd", "--runtime-address", daemon.Address(),
		"--service-proxy", "nftables", "--dns-listen", containerdtest.NodeIP+":53",
		"--eviction-hard", "memory.available<50Mi,nodefs.available<1%,imagefs.available<1%", "--image-gc-high-threshold", "100", // the machine may have other uses
		"--cgroup-root", "/"+cgroups))
	if err != nil {
		return nil, err
	}
	c.parts = append(c.parts, agent.stop)
	return c, nil
}
