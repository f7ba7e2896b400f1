package kubelet

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
)

var (
	rest = flag.Duration("rest", time.Minute, "how long a node is watched at rest, with no pod and with all")
	pods = flag.Int("pods", 100, "pods of a round")
)

// BenchmarkKubelet measures upstream's kubelet, BenchmarkAgent our agent: memory and processor time at rest with no pod and
// with 100 (MiB resident, MiB of it not from files, per cent of a core), how long 100 pods take until all run and until they
// are gone, and the processor time of it. Our agent's is with its backends' processes, which a kubelet has not.
func BenchmarkKubelet(b *testing.B) { measure(b, (*node).kubelet) }

// BenchmarkAgent is described at BenchmarkKubelet.
func BenchmarkAgent(b *testing.B) { measure(b, (*node).agent) }

func measure(b *testing.B, start func(*node, string)) {
	if testing.Short() {
		b.Skip("it builds upstream's kubelet: not with -short")
	}
	containerdtest.Need(b)
	quaymaster := build(b, "../..", "./cmd/quaymaster", "v1.36.3")
	n := newNode(b, quaymaster)
	start(n, quaymaster)
	n.ready()
	n.create(1, "warm") // the image is there
	n.delete("warm")
	sum := map[string]float64{}
	add := func(what string, value float64) { sum[what] += value }
	for round := 0; b.Loop(); round++ {
		n.atRest(add, 0)
		prefix := fmt.Sprint("p", round)
		before := n.used()
		add(fmt.Sprintf("s/%dpods-run", *pods), n.create(*pods, prefix).Seconds())
		add("cpu-ms/pod-run", (n.used()-before).Seconds()*1000/float64(*pods))
		n.atRest(add, *pods)
		before = n.used()
		add(fmt.Sprintf("s/%dpods-gone", *pods), n.delete(prefix).Seconds())
		add("cpu-ms/pod-gone", (n.used()-before).Seconds()*1000/float64(*pods))
	}
	for what, value := range sum {
		b.ReportMetric(value/float64(b.N), what)
	}
}

// kubelet starts upstream's, with its defaults but for what this machine is: control groups of version 1, and a disk
// that others fill.
func (n *node) kubelet(string) {
	n.b.Helper()
	const module = "../conformance" // which has what upstream's programs need
	program := build(n.b, module, "k8s.io/kubernetes/cmd/kubelet", upstreamVersion(n.b, module))
	dir := filepath.Join(n.daemon.Dir, "node") // whose mounts go with the daemon
	for _, hierarchy := range []string{"cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "blkio", "freezer", "hugetlb", "systemd", "unified", ""} {
		at := filepath.Join("/sys/fs/cgroup", hierarchy)
		if _, err := os.Stat(filepath.Join(at, "cgroup.procs")); err != nil {
			continue
		}
		if err := os.Mkdir(filepath.Join(at, n.cgroups), 0o755); err != nil && !os.IsExist(err) {
			n.b.Fatal(err)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.b.Fatal(err)
	}
	config := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %s
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
authorization: {mode: Webhook}
containerRuntimeEndpoint: %s
cgroupDriver: cgroupfs
cgroupRoot: /%s
failCgroupV1: false
failSwapOn: false
evictionHard: {memory.available: "1Mi", nodefs.available: "1Mi", imagefs.available: "1Mi"}
imageGCHighThresholdPercent: 100
maxPods: 250
podLogsDir: %s
volumePluginDir: %s
`, containerdtest.NodeIP, n.daemon.Address(), n.cgroups, filepath.Join(dir, "log"), filepath.Join(dir, "plugins")), 0o600); err != nil {
		n.b.Fatal(err)
	}
	n.side = launch(n.b, program, "--config", config, "--kubeconfig", n.kubeconfig, "--root-dir", filepath.Join(dir, "kubelet"),
		"--cert-dir", filepath.Join(dir, "pki"), "--hostname-override", nodeName, "--node-ip", containerdtest.NodeIP)
}

// agent starts ours, as it would be started on a machine.
func (n *node) agent(quaymaster string) {
	n.b.Helper()
	token, err := os.ReadFile(filepath.Join(n.data, "join-token"))
	if err != nil {
		n.b.Fatal(err)
	}
	n.side = launch(n.b, quaymaster, "agent", "--server", n.server, "--token", strings.TrimSpace(string(token)), "--name", nodeName,
		"--data", filepath.Join(n.daemon.Dir, "agent"), "--listen", containerdtest.NodeIP+":10250", "--runtime", "containerd", "--runtime-address", n.daemon.Address(),
		"--cgroup-root", "/"+n.cgroups, "--eviction-hard", "memory.available<1Mi,nodefs.available<1Mi,imagefs.available<1Mi", "--image-gc-high-threshold", "100", "--max-pods", "250")
}
