package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/quaymaster/quaymaster/core/coretest"
	"github.com/quaymaster/quaymaster/runtime/agent/cgroup"
	"github.com/quaymaster/quaymaster/runtime/cni/gate"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
)

// netNode is a whole cluster of processes: a server, and an agent on a containerd whose pods get addresses from the agent.
type netNode struct {
	t      testing.TB
	daemon *containerdtest.Daemon
	client kubernetes.Interface
	agent  *exec.Cmd
	dir    string // the server's
}

const netNodeCIDR = "10.79.0.0/24"

func newNetNode(t testing.TB) *netNode {
	t.Helper()
	d := containerdtest.Start(t)
	return newNodeOn(t, d, "--runtime", "containerd", "--runtime-address", d.Address())
}

// newNodeOn is a cluster with an agent on any runtime.
func newNodeOn(t testing.TB, d *containerdtest.Daemon, runtime ...string) *netNode {
	t.Helper()
	return newNodeWith(t, d, nil, append([]string{"--pod-cidr", netNodeCIDR}, runtime...)...)
}

// newNodeWith is one of a server with flags and an agent with flags.
func newNodeWith(t testing.TB, d *containerdtest.Daemon, ofServer []string, ofAgent ...string) *netNode {
	t.Helper()
	if testing.Short() {
		t.Skip("a whole node with its containers takes long: not with -short")
	}
	n := &netNode{t: t, daemon: d}
	_, url, dir, client := server(t, ofServer...)
	n.client, n.dir = client, dir
	token, err := os.ReadFile(filepath.Join(dir, "join-token"))
	if err != nil {
		t.Fatal(err)
	}
	root := fmt.Sprintf("/qmtest%d", time.Now().UnixNano())
	t.Cleanup(func() {
		groups, err := cgroup.New(cgroup.Options{Root: root})
		if err == nil {
			err = groups.Close()
		}
		if err != nil && !t.Failed() {
			t.Errorf("control groups are left: %v", err)
		}
	})
	// The disk of who runs the tests may be as full as it likes, hence no bounds.
	n.agent = start(t, append([]string{"agent", "--server", url, "--token", strings.TrimSpace(string(token)), "--name", "n1", "--data", filepath.Join(n.daemon.Dir, "agent"), "--listen", containerdtest.NodeIP + ":0",
		"--cgroup-root", root, "--eviction-hard", "none", "--image-gc-high-threshold", "100"}, ofAgent...)...)
	t.Cleanup(func() {
		if t.Failed() {
			log := n.daemon.Log() // none of a node without one
			t.Logf("%s\nthe daemon:\n%s", n.told(), log[max(0, len(log)-8000):])
		}
	})
	return n
}

// told is what the cluster says of the node and its pods.
func (n *netNode) told() string {
	var out strings.Builder
	ctx := context.Background()
	if node, err := n.client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{}); err == nil {
		fmt.Fprintf(&out, "taints %v, conditions %v\n", node.Spec.Taints, node.Status.Conditions)
	}
	events, err := n.client.CoreV1().Events("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	for _, e := range events.Items {
		fmt.Fprintf(&out, "%s %s %s: %s\n", e.InvolvedObject.Name, e.Type, e.Reason, e.Message)
	}
	return out.String()
}

// create makes a pod, which the scheduler binds, as soon as its namespace takes one.
func (n *netNode) create(name, script string, ports ...corev1.ContainerPort) {
	n.t.Helper()
	grace := int64(1)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
		RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: &grace,
		Containers: []corev1.Container{{Name: "c", Image: n.daemon.Busybox, Command: []string{"sh", "-c", script}, Ports: ports}},
	}}
	coretest.Eventually(n.t, "the creation of pod "+name, func(ctx context.Context) (bool, error) {
		_, err := n.client.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{})
		return err == nil, nil
	})
}

// becomes waits until a pod is in a phase.
func (n *netNode) becomes(name string, want corev1.PodPhase) *corev1.Pod {
	n.t.Helper()
	var pod *corev1.Pod
	coretest.Eventually(n.t, fmt.Sprintf("pod %s to be %s", name, want), func(ctx context.Context) (_ bool, err error) {
		pod, err = n.client.CoreV1().Pods("default").Get(ctx, name, metav1.GetOptions{})
		return err == nil && pod.Status.Phase == want, err
	})
	return pod
}

// held is what pods have of the machine's network, by kind.
func (n *netNode) held() map[string][]string {
	n.t.Helper()
	out := map[string][]string{"namespace": containerdtest.Namespaces(), "interface": nil, "rule": nil}
	for kind, pattern := range map[string]string{
		"attachment": "agent/network/attachments/*", "result": "agent/network/cache/results/*",
		"address of the built-in network": "agent/network/addresses/*/10.*", "address of a configured network": "ipam/*/10.*",
	} {
		names, err := filepath.Glob(filepath.Join(n.daemon.Dir, pattern))
		if err != nil {
			n.t.Fatal(err)
		}
		out[kind] = names
	}
	links, err := netlink.LinkList()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() == "veth" {
			out["interface"] = append(out["interface"], l.Attrs().Name)
		}
	}
	rules, err := exec.Command("iptables-save").Output()
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(string(rules)) {
		if strings.Contains(line, " 10.79.0.") || strings.Contains(line, `id: \"`) {
			out["rule"] = append(out["rule"], strings.TrimSpace(line))
		}
	}
	return out
}

// gone deletes all pods there are, and waits until they hold nothing.
func (n *netNode) gone(names ...string) {
	n.t.Helper()
	pods := n.client.CoreV1().Pods("default")
	for _, name := range names {
		if err := pods.Delete(n.t.Context(), name, metav1.DeleteOptions{}); err != nil {
			n.t.Fatal(err)
		}
	}
	coretest.Eventually(n.t, "the pods to be gone", func(ctx context.Context) (bool, error) {
		list, err := pods.List(ctx, metav1.ListOptions{})
		return err == nil && len(list.Items) == 0, err
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		held := n.held()
		left := 0
		for _, names := range held {
			left += len(names)
		}
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("left behind: %v", held)
		}
	}
}

// TestPodNetworkOfAWholeNode has an agent with --pod-cidr on a containerd that has no network of its own: what pods get by
// the relay, the gate, the backend's process and the built-in network, and that nothing of it is left.
func TestPodNetworkOfAWholeNode(t *testing.T) {
	n := newNetNode(t)
	forever := "trap 'exit 0' TERM; while true; do sleep 0.1; done"
	n.create("serves", "mkdir /tmp/www; echo hello > /tmp/www/index.html; httpd -p 80 -h /tmp/www; "+forever, corev1.ContainerPort{ContainerPort: 80, HostPort: 8079})
	serves := n.becomes("serves", corev1.PodRunning)
	// By nc: a static busybox's wget needs glibc's resolver, which is not there.
	n.create("reads", fmt.Sprintf(`until printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 %s 80 | grep -x hello; do sleep 0.1; done; %s`, serves.Status.PodIP, forever))
	reads := n.becomes("reads", corev1.PodRunning)

	cidr := netip.MustParsePrefix(netNodeCIDR)
	for _, p := range []*corev1.Pod{serves, reads} {
		if ip, err := netip.ParseAddr(p.Status.PodIP); err != nil || !cidr.Contains(ip) || ip == cidr.Addr().Next() {
			t.Errorf("pod %s has the address %q; want one of %s that is not the gateway's", p.Name, p.Status.PodIP, cidr)
		}
	}
	if serves.Status.PodIP == reads.Status.PodIP {
		t.Errorf("two pods have the address %s", reads.Status.PodIP)
	}
	coretest.Eventually(t, "a pod to read from another by its address", func(ctx context.Context) (bool, error) {
		log, err := n.client.CoreV1().Pods("default").GetLogs("reads", &corev1.PodLogOptions{}).DoRaw(ctx)
		return bytes.Equal(log, []byte("hello\n")), err
	})
	if files, err := filepath.Glob(filepath.Join(n.daemon.ConfDir(), "*")); err != nil || len(files) != 1 || filepath.Base(files[0]) != gate.File {
		t.Errorf("containerd's networks are %v, %v; want the relay alone", files, err)
	}
	for kind, names := range n.held() {
		if len(names) < 2 && kind != "address of a configured network" {
			t.Errorf("two pods hold of kind %s only %v: the test does not see what they hold", kind, names)
		}
	}
	n.gone("serves", "reads")

	// A network that containerd is given comes before the built-in one, and still by the relay.
	if err := n.daemon.SetNetwork(n.daemon.Bridge("10.80.0.0/24")); err != nil {
		t.Fatal(err)
	}
	n.create("configured", forever)
	if ip := n.becomes("configured", corev1.PodRunning).Status.PodIP; !strings.HasPrefix(ip, "10.80.0.") {
		t.Errorf("the address %s is not of the network in containerd's folder", ip)
	}
	if held := n.held(); len(held["attachment"]) != 1 || len(held["address of a configured network"]) != 1 {
		t.Errorf("a pod on a configured network holds %v", held)
	}
	n.gone("configured")
}

// TestNodeTakesItsRangeOfTheCluster has the server give the node its range of pod addresses, of which the agent makes the network.
func TestNodeTakesItsRangeOfTheCluster(t *testing.T) {
	n := newNodeWith(t, containerdtest.Bare(t), []string{"--cluster-cidr", "10.79.0.0/23"}, "--network", "cni", "--runtime", "oci")
	n.create("pod", "trap 'exit 0' TERM; sleep 100000 & wait")
	pod := n.becomes("pod", corev1.PodRunning)
	node, err := n.client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if given, err := netip.ParsePrefix(node.Spec.PodCIDR); err != nil || given.Bits() != 24 || !given.Contains(netip.MustParseAddr(pod.Status.PodIP)) {
		t.Errorf("the node has %q, %v, its pod %q", node.Spec.PodCIDR, err, pod.Status.PodIP)
	}
	n.gone("pod")
}
