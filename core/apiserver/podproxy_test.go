package apiserver_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// TestProxyToPodByHTTPS: a pod's certificate is whatever it made itself, and it is reached all the same.
func TestProxyToPodByHTTPS(t *testing.T) {
	ip, err := utilnet.ChooseHostInterface()
	if err != nil {
		t.Skipf("a pod's address must not be a loopback one, and this machine has no other: %v", err)
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(ip.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	pod := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "asked for "+r.URL.Path)
	}))
	pod.Listener.Close()
	pod.Listener = listener
	pod.StartTLS()
	defer pod.Close()
	port := listener.Addr().(*net.TCPAddr).Port

	c := start(t, nil)
	ctx := t.Context()
	created, err := c.client.CoreV1().Pods("default").Create(ctx, samplePod("secure"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.client.CoreV1().Pods("default").Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "secure"}, Target: corev1.ObjectReference{Kind: "Node", Name: "n1"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	created, err = c.client.CoreV1().Pods("default").Get(ctx, created.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	created.Status.Phase, created.Status.PodIP, created.Status.PodIPs = corev1.PodRunning, ip.String(), []corev1.PodIP{{IP: ip.String()}}
	if _, err := c.client.CoreV1().Pods("default").UpdateStatus(ctx, created, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := c.client.CoreV1().RESTClient().Get().Namespace("default").Resource("pods").SubResource("proxy").
		Name(fmt.Sprintf("https:secure:%d", port)).Suffix("a/b").DoRaw(ctx)
	if err != nil || string(got) != "asked for /a/b" {
		t.Errorf("%q, %v", got, err)
	}
}
