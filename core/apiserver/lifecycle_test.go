package apiserver_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// TestManyServers runs servers beside each other, which share nothing and leave
// nothing behind.
func TestManyServers(t *testing.T) {
	before := goleak.IgnoreCurrent()
	const servers = 20
	clusters := make([]*cluster, servers)
	for i := range clusters {
		clusters[i] = start(t, func(o *apiserver.Options) {
			if i%2 == 0 {
				o.Listener = listen(t)
			}
		})
	}
	var all sync.WaitGroup
	for i, c := range clusters {
		all.Go(func() {
			if _, err := c.client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("of-", i)}}, metav1.CreateOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for i, c := range clusters {
		list, err := c.client.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name!=kube-root-ca.crt"})
		if err != nil || len(list.Items) != 1 || list.Items[0].Name != fmt.Sprint("of-", i) {
			t.Errorf("server %d has %v, %v", i, list.Items, err)
		}
	}
	for _, c := range clusters {
		all.Go(c.stop)
	}
	all.Wait()
	goleak.VerifyNone(t, before)
}

// TestRestart finds what the first start left: objects, the addresses and ports
// that services hold, roles as they were changed, and the join token.
func TestRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	with := func(o *apiserver.Options) { o.Dir = dir }
	first := start(t, with)
	ctx := t.Context()
	service := func(name, address string, port int32) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, ClusterIP: address, Ports: []corev1.ServicePort{{Port: 80, NodePort: port}}}}
	}
	held, err := first.client.CoreV1().Services("default").Create(ctx, service("held", "", 0), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	view, err := first.client.RbacV1().ClusterRoles().Get(ctx, "system:node-bootstrapper", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	view.Rules, view.Labels["mine"] = nil, "kept"
	if _, err := first.client.RbacV1().ClusterRoles().Update(ctx, view, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	token := first.JoinToken()
	first.stop()

	second := start(t, with)
	if second.JoinToken() != token {
		t.Errorf("join token %q, was %q", second.JoinToken(), token)
	}
	if view, err = second.client.RbacV1().ClusterRoles().Get(ctx, "system:node-bootstrapper", metav1.GetOptions{}); err != nil || len(view.Rules) == 0 || view.Labels["mine"] != "kept" {
		t.Errorf("a default role whose rules were taken: %+v, %v", view, err)
	}
	for message, s := range map[string]*corev1.Service{
		"provided IP is already allocated":   service("address", held.Spec.ClusterIP, 0),
		"provided port is already allocated": service("port", "", held.Spec.Ports[0].NodePort),
	} {
		if _, err := second.client.CoreV1().Services("default").Create(ctx, s, metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), message) {
			t.Errorf("%v, want %s", err, message)
		}
	}
	if err := second.client.CoreV1().Services("default").Delete(ctx, "held", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := second.client.CoreV1().Services("default").Create(ctx, service("again", held.Spec.ClusterIP, held.Spec.Ports[0].NodePort), metav1.CreateOptions{}); err != nil {
		t.Errorf("what a deleted service held: %v", err)
	}
}

// TestNeverRun frees what New made.
func TestNeverRun(t *testing.T) {
	before := goleak.IgnoreCurrent()
	p, err := newServer(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.server.Close()
	p.server.Close()
	if err := p.close(); err != nil {
		t.Fatal(err)
	}
	goleak.VerifyNone(t, before)
}

// TestWatches end with their context, with the server, and leave no goroutine,
// however they are read.
func TestWatches(t *testing.T) {
	before := goleak.IgnoreCurrent()
	defer goleak.VerifyNone(t, before) // after the followed watches have ended
	c := start(t, func(o *apiserver.Options) { o.Listener, o.DrainTimeout = listen(t), 2*time.Minute })
	config := c.https(t)
	for name, client := range map[string]*cluster{"memory": c, "https": {Server: c.Server, client: clientFor(t, config)}} {
		ctx, cancel := context.WithCancel(t.Context())
		canceled, err := client.client.CoreV1().ConfigMaps("default").Watch(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(name, err)
		}
		if event := <-canceled.ResultChan(); event.Object == nil {
			t.Errorf("%s: no event of what is there", name)
		}
		cancel()
		for range canceled.ResultChan() {
		}
		unread, err := client.client.CoreV1().ConfigMaps("default").Watch(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(name, err)
		}
		unread.Stop()
		followed, err := client.client.CoreV1().ConfigMaps("default").Watch(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(name, err)
		}
		defer func() {
			for event := range followed.ResultChan() {
				if event.Object == nil {
					t.Errorf("%s: %v", name, event)
				}
			}
			followed.Stop()
		}()
	}
	begin := time.Now()
	c.stop()
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("watches kept the server from ending for %v", took)
	}
	if _, err := c.client.CoreV1().ConfigMaps("default").List(context.Background(), metav1.ListOptions{}); !errors.Is(err, apiserver.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	if err := c.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "has run") {
		t.Errorf("a second Run: %v", err)
	}
}
