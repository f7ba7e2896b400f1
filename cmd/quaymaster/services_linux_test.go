package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core/coretest"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
	"github.com/quaymaster/quaymaster/runtime/proxy"
)

// TestServicesOfAWholeNode: a pod finds a service by its name and reads from the pod behind its address, both by the agent alone.
func TestServicesOfAWholeNode(t *testing.T) {
	if why := proxy.Missing(); why != "" && containerdtest.Missing() == "" {
		t.Fatal(why)
	}
	d := containerdtest.Start(t)
	n := newNodeOn(t, d, "--runtime", "containerd", "--runtime-address", d.Address(), "--service-proxy", "nftables", "--dns-listen", containerdtest.NodeIP+":53")
	forever := "trap 'exit 0' TERM; while true; do sleep 0.1; done"
	n.create("serves", "mkdir /tmp/www; echo hello > /tmp/www/index.html; httpd -p 80 -h /tmp/www; "+forever)
	n.becomes("serves", corev1.PodRunning)
	ctx := t.Context()
	if _, err := n.client.CoreV1().Pods("default").Patch(ctx, "serves", "application/merge-patch+json", []byte(`{"metadata": {"labels": {"app": "web"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	web, err := n.client.CoreV1().Services("default").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.create("reads", fmt.Sprintf(`until nslookup web.default.svc.cluster.local | grep -w %[1]s; do sleep 0.1; done
until printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 %[1]s 80 | grep -x hello; do sleep 0.1; done; %[2]s`, web.Spec.ClusterIP, forever))
	n.becomes("reads", corev1.PodRunning)
	coretest.Eventually(t, "a pod to find a service and read from it", func(ctx context.Context) (bool, error) {
		log, err := n.client.CoreV1().Pods("default").GetLogs("reads", &corev1.PodLogOptions{}).DoRaw(ctx)
		return strings.Contains(string(log), web.Spec.ClusterIP) && strings.HasSuffix(string(log), "\nhello\n"), err
	})
	n.gone("serves", "reads")
	// The address refuses once nobody is behind it, rather than lose what is sent there.
	coretest.Eventually(t, "the rules to refuse the service", func(context.Context) (bool, error) {
		rules, err := exec.Command("nft", "list", "map", "ip", "kube-proxy", "no-endpoint-services").CombinedOutput()
		return err == nil && strings.Contains(string(rules), web.Spec.ClusterIP), nil
	})
}
