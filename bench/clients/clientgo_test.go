package clients

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/quaymaster/quaymaster/core/coretest"
)

// config is for a client over HTTPS.
func (s *shared) config(t *testing.T) *rest.Config {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", s.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

var configMaps = corev1.SchemeGroupVersion.WithResource("configmaps")

// TestClientGo uses client-go as programs do, over HTTPS.
func TestClientGo(t *testing.T) {
	t.Parallel()
	engine := startEngine(t)
	config := engine.config(t)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	dynamics, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	meta, err := metadata.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	create := func(t *testing.T, name string) {
		t.Helper()
		if _, err := client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"of": "clients"}}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("informers", func(t *testing.T) {
		factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace("default"))
		maps := factory.Core().V1().ConfigMaps()
		var mu sync.Mutex
		seen := map[string]int{}
		note := func(what string) func(any) {
			return func(obj any) {
				if m, ok := obj.(*corev1.ConfigMap); ok && m.Labels["of"] == "clients" {
					mu.Lock()
					defer mu.Unlock()
					seen[what]++
				}
			}
		}
		if _, err := maps.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: note("added"), UpdateFunc: func(_, obj any) { note("updated")(obj) }, DeleteFunc: note("deleted"),
		}); err != nil {
			t.Fatal(err)
		}
		create(t, "before")
		stop, cancel := context.WithCancel(ctx)
		defer factory.Shutdown()
		defer cancel()
		factory.StartWithContext(stop)
		if result := factory.WaitForCacheSyncWithContext(stop); result.Err != nil {
			t.Fatal(result.Err)
		}
		create(t, "after")
		if _, err := client.CoreV1().ConfigMaps("default").Patch(ctx, "after", types.MergePatchType, []byte(`{"data":{"a":"1"}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := client.CoreV1().ConfigMaps("default").Delete(ctx, "before", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		coretest.Eventually(t, "the events", func(context.Context) (bool, error) {
			mu.Lock()
			defer mu.Unlock()
			return seen["added"] == 2 && seen["updated"] == 1 && seen["deleted"] == 1, nil
		})
		listed, err := maps.Lister().ConfigMaps("default").List(labels.SelectorFromSet(labels.Set{"of": "clients"}))
		if err != nil || len(listed) != 1 || listed[0].Data["a"] != "1" {
			t.Errorf("listed %v, %v", listed, err)
		}
	})

	t.Run("dynamic", func(t *testing.T) {
		object := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "untyped"}, "data": map[string]any{"a": "1"},
		}}
		if _, err := dynamics.Resource(configMaps).Namespace("default").Apply(ctx, "untyped", object, metav1.ApplyOptions{FieldManager: "clients"}); err != nil {
			t.Fatal(err)
		}
		factory := dynamicinformer.NewFilteredDynamicSharedInformerFactory(dynamics, 0, "default", nil)
		informer := factory.ForResource(configMaps)
		_ = informer.Informer().HasSynced() // asks for it
		stop, cancel := context.WithCancel(ctx)
		defer factory.Shutdown()
		defer cancel()
		factory.Start(stop.Done())
		factory.WaitForCacheSync(stop.Done())
		got, err := informer.Lister().ByNamespace("default").Get("untyped")
		if err != nil {
			t.Fatal(err)
		}
		if u, ok := got.(*unstructured.Unstructured); !ok || u.GetAPIVersion() != "v1" || u.GetManagedFields()[0].Manager != "clients" {
			t.Errorf("%v", got)
		}
	})

	t.Run("metadata", func(t *testing.T) {
		for i := range 7 {
			create(t, fmt.Sprintf("many-%d", i))
		}
		found, pages, next := 0, 0, ""
		for {
			page, err := meta.Resource(configMaps).Namespace("default").List(ctx, metav1.ListOptions{LabelSelector: "of=clients", Limit: 3, Continue: next})
			if err != nil {
				t.Fatal(err)
			}
			found, pages, next = found+len(page.Items), pages+1, page.Continue
			if next == "" {
				break
			}
		}
		if found != 8 || pages != 3 {
			t.Errorf("%d objects on %d pages", found, pages)
		}
	})

	t.Run("leader election", func(t *testing.T) {
		led := make(chan string, 4)
		elect := func(id string) (stop func()) {
			ctx, cancel := context.WithCancel(ctx)
			lock := &resourcelock.LeaseLock{LeaseMeta: metav1.ObjectMeta{Namespace: "default", Name: "lock"}, Client: client.CoordinationV1(), LockConfig: resourcelock.ResourceLockConfig{Identity: id}}
			var running sync.WaitGroup
			running.Go(func() {
				leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{
					Lock: lock, ReleaseOnCancel: true, LeaseDuration: 30 * time.Second, RenewDeadline: 20 * time.Second, RetryPeriod: 100 * time.Millisecond,
					Callbacks: leaderelection.LeaderCallbacks{OnStartedLeading: func(context.Context) { led <- id }, OnStoppedLeading: func() {}},
				})
			})
			return func() { cancel(); running.Wait() }
		}
		wait := func(want string) {
			t.Helper()
			select {
			case got := <-led:
				if got != want {
					t.Fatalf("%s leads, want %s", got, want)
				}
			case <-time.After(time.Minute):
				t.Fatalf("%s does not lead after a minute", want)
			}
		}
		stopFirst := elect("first")
		wait("first")
		stopSecond := elect("second")
		defer stopSecond()
		lease, err := client.CoordinationV1().Leases("default").Get(ctx, "lock", metav1.GetOptions{})
		if err != nil || *lease.Spec.HolderIdentity != "first" {
			t.Errorf("the lease is held by %v, %v", lease.Spec.HolderIdentity, err)
		}
		stopFirst() // gives the lease up
		wait("second")
	})
}
