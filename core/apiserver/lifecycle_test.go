package apiserver_test

import (
	"context"
	"errors"
	"fmt"
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

// TestWatches end with their context, with the server, and leave no goroutine,
// however they are read.
func TestWatches(t *testing.T) {
	before := goleak.IgnoreCurrent()
	defer goleak.VerifyNone(t, before) // after the followed watches have ended
	c := start(t, func(o *apiserver.Options) { o.Listener = listen(t) })
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
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("watches kept the server from ending for %v", took)
	}
	if _, err := c.client.CoreV1().ConfigMaps("default").List(context.Background(), metav1.ListOptions{}); !errors.Is(err, apiserver.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	if err := c.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "has run") {
		t.Errorf("a second Run: %v", err)
	}
}
