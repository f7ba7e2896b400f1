package replicaset

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"
	testclock "k8s.io/utils/clock/testing"

	"github.com/quaymaster/quaymaster/core/controllers/loop"
)

// staleControl stores pods in the informer's store only when it is told to
// show them, and refuses creates beyond a quota.
type staleControl struct {
	mu      sync.Mutex
	quota   int
	created []*corev1.Pod
	deleted []string
}

func (c *staleControl) Create(_ context.Context, pod *corev1.Pod) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.created) >= c.quota {
		return apierrors.NewForbidden(corev1.Resource("pods"), pod.Name, fmt.Errorf("exceeded quota"))
	}
	pod = pod.DeepCopy()
	pod.UID = types.UID(pod.Name)
	c.created = append(c.created, pod)
	return nil
}

func (c *staleControl) Delete(_ context.Context, _, name string, _ metav1.DeleteOptions) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deleted = append(c.deleted, name)
	return nil
}

func (c *staleControl) counts() (created, deleted int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.created), len(c.deleted)
}

type harness struct {
	*Controller
	control *staleControl
	events  chan string
	client  *fake.Clientset
}

func newHarness(t *testing.T, rs *appsv1.ReplicaSet, quota int) *harness {
	t.Helper()
	client := fake.NewClientset(rs)
	factory := informers.NewSharedInformerFactory(client, 0)
	recorder := record.NewFakeRecorder(1000)
	h := &harness{control: &staleControl{quota: quota}, events: recorder.Events, client: client}
	env := loop.Env{
		Client: client, Informers: factory, Clock: testclock.NewFakeClock(now), Logger: slog.New(slog.DiscardHandler),
		Recorder: func(string) record.EventRecorder { return recorder },
	}
	var err error
	if h.Controller, err = New(env, h.control); err != nil {
		t.Fatal(err)
	}
	if err := h.sets.GetStore().Add(rs); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *harness) show(t *testing.T, pods ...*corev1.Pod) {
	t.Helper()
	for _, pod := range pods {
		if err := h.pods.GetStore().Add(pod); err != nil {
			t.Fatal(err)
		}
		if ref := metav1.GetControllerOf(pod); ref != nil {
			h.writer.Expected.CreateObserved(ref.UID, pod.Name)
		}
	}
}

func (h *harness) turn(t *testing.T) error {
	t.Helper()
	_, err := h.sync(t.Context(), types.NamespacedName{Namespace: "ns", Name: "web"})
	return err
}

// TestStaleCache syncs again and again while the cache shows nothing of what
// was written: nothing is written twice.
func TestStaleCache(t *testing.T) {
	rs := set(40)
	h := newHarness(t, rs, 1000)
	for range 3 {
		if err := h.turn(t); err != nil {
			t.Fatal(err)
		}
	}
	if n, _ := h.control.counts(); n != 40 {
		t.Fatalf("%d pods created", n)
	}
	h.show(t, h.control.created[:25]...)
	if err := h.turn(t); err != nil {
		t.Fatal(err)
	}
	if n, _ := h.control.counts(); n != 40 {
		t.Fatalf("%d pods created when 25 were seen", n)
	}
	h.show(t, h.control.created[25:]...)
	smaller := rs.DeepCopy()
	*smaller.Spec.Replicas = 10
	if err := h.sets.GetStore().Update(smaller); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := h.turn(t); err != nil {
			t.Fatal(err)
		}
	}
	if n, gone := h.control.counts(); n != 40 || gone != 30 {
		t.Errorf("%d pods created and %d deleted", n, gone)
	}
}

// TestQuota stops soon after the first refusal, and says so.
func TestQuota(t *testing.T) {
	h := newHarness(t, set(1000), 5)
	if err := h.turn(t); !apierrors.IsForbidden(err) {
		t.Fatalf("error %v", err)
	}
	n, _ := h.control.counts()
	refused := 0
	for len(h.events) > 0 {
		if e := <-h.events; strings.HasPrefix(e, "Warning FailedCreate Error creating: ") {
			refused++
		}
	}
	if n != 5 || refused == 0 || refused > 4 { // batches of 1, 2 and 4
		t.Errorf("%d created, %d refused", n, refused)
	}
	rs, err := h.client.AppsV1().ReplicaSets("ns").Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil || len(rs.Status.Conditions) != 1 || rs.Status.Conditions[0].Reason != "FailedCreate" {
		t.Errorf("%+v, %v", rs.Status, err)
	}
}

// TestLoop runs the whole controller on a fake server, and ends it.
func TestLoop(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	client := fake.NewSimpleClientset(set(5))
	keepSpecs(client)
	factory := informers.NewSharedInformerFactory(client, 0)
	env := loop.Env{
		Client: client, Informers: factory, Clock: testclock.NewFakeClock(now), Logger: slog.New(slog.DiscardHandler),
		Recorder: func(string) record.EventRecorder { return record.NewFakeRecorder(100) },
	}
	control := &fakeServer{Clientset: client}
	c, err := New(env, control)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	informing, stop := context.WithCancel(t.Context()) // client-go's may wait for ever for a handler that is removed while they end
	defer stop()
	factory.Start(informing.Done())
	factory.WaitForCacheSync(informing.Done())
	var running sync.WaitGroup
	running.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	has := func(n int) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			pods, err := client.CoreV1().Pods("ns").List(ctx, metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			rs, err := client.AppsV1().ReplicaSets("ns").Get(ctx, "web", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if len(pods.Items) == n && rs.Status.Replicas == int32(n) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%d pods and status %+v instead of %d", len(pods.Items), rs.Status, n)
			}
		}
	}
	has(5)
	rs, err := client.AppsV1().ReplicaSets("ns").Get(ctx, "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	*rs.Spec.Replicas = 2
	if _, err := client.AppsV1().ReplicaSets("ns").Update(ctx, rs, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	has(2)
	cancel()
	running.Wait()
	stop()
	factory.Shutdown()
}

// keepSpecs makes updates of a ReplicaSet's status leave the rest of it alone,
// as a server does; the fake clientset stores the whole object, and so a spec
// that was changed in between would be lost.
func keepSpecs(client *fake.Clientset) {
	client.PrependReactor("update", "replicasets", func(action clienttesting.Action) (bool, runtime.Object, error) {
		update := action.(clienttesting.UpdateAction)
		if update.GetSubresource() != "status" {
			return false, nil, nil
		}
		sent := update.GetObject().(*appsv1.ReplicaSet)
		stored, err := client.Tracker().Get(update.GetResource(), sent.Namespace, sent.Name)
		if err != nil {
			return true, nil, err
		}
		kept := stored.(*appsv1.ReplicaSet).DeepCopy()
		kept.Status = sent.Status
		return true, kept, client.Tracker().Update(update.GetResource(), kept, sent.Namespace)
	})
}

// fakeServer adds what the fake clientset lacks: uids and versions.
type fakeServer struct {
	*fake.Clientset
	version atomic.Int64
}

func (f *fakeServer) Create(ctx context.Context, pod *corev1.Pod) error {
	pod.UID, pod.ResourceVersion = types.UID(pod.Name), fmt.Sprint(f.version.Add(1))
	_, err := f.CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
	return err
}

func (f *fakeServer) Delete(ctx context.Context, namespace, name string, _ metav1.DeleteOptions) error {
	return f.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{})
}
