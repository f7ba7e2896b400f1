package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/kubernetes/pkg/proxy/apis"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
)

// TestMain runs the tests in a network of their own, where rules are nobody else's.
func TestMain(m *testing.M) {
	if Missing() != "" && !containerdtest.IsInside() {
		os.Exit(m.Run())
	}
	os.Exit(containerdtest.Inside(m.Run))
}

// says is a server that answers each connection with a word, and who asked. Its address is of the node.
func says(t *testing.T, word string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", containerdtest.NodeIP+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, word) // who asked may have gone
			c.Close()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

// hears is what a server says at an address: a word, "refused" or another failure. The kernel keeps for a connection what it
// once decided, hence one that is not made soon is given up for another.
func hears(address string) string {
	c, err := net.DialTimeout("tcp", address, time.Second)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return "refused"
	} else if err != nil {
		return err.Error()
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err.Error()
	}
	word, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	return string(word)
}

func becomes(t *testing.T, address, want string) {
	t.Helper()
	got := ""
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if got = hears(address); got == want {
			return
		}
	}
	rules, _ := exec.Command("nft", "list", "ruleset").CombinedOutput()
	t.Fatalf("%s says %q, want %q; rules:\n%s", address, got, want, rules)
}

func slice(service string, to ...netip.AddrPort) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: service + "-1", Labels: map[string]string{
			discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: "test"}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for _, a := range to {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a.Addr().String()}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}})
		s.Ports = []discoveryv1.EndpointPort{{Name: ptr.To(""), Protocol: ptr.To(v1.ProtocolTCP), Port: ptr.To(int32(a.Port()))}}
	}
	return s
}

func service(name, ip string, port, nodePort int32) *v1.Service {
	s := &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: "1"}, Spec: v1.ServiceSpec{
		Type: v1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, IPFamilies: []v1.IPFamily{v1.IPv4Protocol},
		SessionAffinity: v1.ServiceAffinityNone, InternalTrafficPolicy: ptr.To(v1.ServiceInternalTrafficPolicyCluster),
		Ports: []v1.ServicePort{{Protocol: v1.ProtocolTCP, Port: port, NodePort: nodePort}},
	}}
	if nodePort != 0 {
		s.Spec.Type, s.Spec.ExternalTrafficPolicy = v1.ServiceTypeNodePort, v1.ServiceExternalTrafficPolicyCluster
	}
	return s
}

// TestServices: connections to services' addresses come to endpoints, as they come and go, also where that
// happened while nobody looked.
func TestServices(t *testing.T) {
	if why := Missing(); why != "" {
		if os.Getenv(containerdtest.Required) != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	if out, err := exec.Command("ip", "route", "add", "default", "dev", "lo", "src", containerdtest.NodeIP).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	client := fake.NewClientset()
	p, err := New(Options{NodeName: "node1", Address: net.ParseIP(containerdtest.NodeIP)})
	if err != nil {
		t.Fatal(err)
	}
	follow := func() (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		cluster, node := informers.NewSharedInformerFactory(client, 0), informers.NewSharedInformerFactory(client, 0)
		run, err := p.Follow(cluster, node)
		if err != nil {
			t.Fatal(err)
		}
		cluster.StartWithContext(ctx)
		node.StartWithContext(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { run(ctx) })
		return func() {
			cancel()
			wg.Wait()
			cluster.Shutdown()
			node.Shutdown()
		}
	}
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	create := func(s *v1.Service) {
		t.Helper()
		_, err := client.CoreV1().Services("shop").Create(ctx, s, metav1.CreateOptions{})
		must(err)
	}
	lead := func(s *discoveryv1.EndpointSlice) {
		t.Helper()
		_, err := client.DiscoveryV1().EndpointSlices("shop").Update(ctx, s, metav1.UpdateOptions{})
		if err != nil {
			_, err = client.DiscoveryV1().EndpointSlices("shop").Create(ctx, s, metav1.CreateOptions{})
		}
		must(err)
	}
	one, two := says(t, "one"), says(t, "two")
	web, node := "10.96.0.5:80", fmt.Sprintf("%s:%d", containerdtest.NodeIP, 30080)
	create(service("web", "10.96.0.5", 80, 30080))
	lead(slice("web", one))
	others := service("others", "10.96.0.6", 80, 0)
	others.Labels = map[string]string{apis.LabelServiceProxyName: "another"}
	create(others)
	lead(slice("others", two))

	stop := follow()
	becomes(t, web, "one")
	becomes(t, node, "one")
	lead(slice("web", two))
	becomes(t, web, "two")
	lead(slice("web"))
	becomes(t, web, "refused")
	becomes(t, node, "refused")
	lead(slice("web", one))
	becomes(t, web, "one")
	if rules, err := exec.Command("nft", "list", "ruleset").CombinedOutput(); err != nil || strings.Contains(string(rules), "10.96.0.6") {
		t.Errorf("a service of another proxy has rules, %v:\n%s", err, rules)
	}
	stop()

	// While nobody follows the rules stay; what changed meanwhile is done afterwards.
	becomes(t, web, "one")
	must(client.CoreV1().Services("shop").Delete(ctx, "web", metav1.DeleteOptions{}))
	must(client.DiscoveryV1().EndpointSlices("shop").Delete(ctx, "web-1", metav1.DeleteOptions{}))
	create(service("new", "10.96.0.7", 81, 0))
	lead(slice("new", two))
	defer follow()()
	becomes(t, "10.96.0.7:81", "two")
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		rules, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
		if err == nil && !strings.Contains(string(rules), "10.96.0.5") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("a service that went has rules, %v:\n%s", err, rules)
		}
	}
}

func TestMissing(t *testing.T) {
	t.Setenv("PATH", "")
	if _, err := New(Options{NodeName: "n", Address: net.IPv4(10, 0, 0, 1)}); err == nil || !strings.Contains(err.Error(), "nft") && !strings.Contains(err.Error(), "root") {
		t.Errorf("without nft: %v", err)
	}
}
