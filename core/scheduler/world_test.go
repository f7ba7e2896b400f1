package scheduler

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	clienttesting "k8s.io/client-go/testing"

	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

var (
	podResource  = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	nodeResource = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
)

// watchedResources is the number of resources that a scheduler watches, groups aside.
const watchedResources = 15

// world is a store in a fake clientset: it gives revisions and commits what the
// scheduler writes, by compare and set.
type world struct {
	t      *testing.T
	client *fake.Clientset
	sched  *Scheduler
	cancel context.CancelFunc

	mu       sync.Mutex
	revision int64
	binds    int
	batches  []int       // sizes of what was committed as one
	before   func(Write) // called before each write, to meddle
	fail     error       // answers binds

	stale atomic.Pointer[string] // pod whose next bind is answered as if a newer version were stored

	reacting  sync.Mutex
	reactions []*clienttesting.SimpleReactor // the newest first
}

// react has the client answer with a reaction from now on, as its PrependReactor, which
// may not be called while informers run, would.
func (w *world) react(verb, resource string, reaction clienttesting.ReactionFunc) {
	w.reacting.Lock()
	defer w.reacting.Unlock()
	w.reactions = append([]*clienttesting.SimpleReactor{{Verb: verb, Resource: resource, Reaction: reaction}}, w.reactions...)
}

func (w *world) reaction(action clienttesting.Action) (bool, runtime.Object, error) {
	w.reacting.Lock()
	reactions := w.reactions
	w.reacting.Unlock()
	for _, r := range reactions {
		if !r.Handles(action) {
			continue
		}
		if handled, object, err := r.React(action); handled {
			return true, object, err
		}
	}
	return false, nil, nil
}

func newWorld(t *testing.T, change func(*Options)) *world {
	t.Helper()
	w := &world{t: t, client: fake.NewClientset()}
	w.client.PrependReactor("*", "*", w.reaction)
	watching := make(chan struct{}, 2*watchedResources)
	w.client.PrependWatchReactor("*", func(action clienttesting.Action) (bool, watch.Interface, error) {
		watcher, err := w.client.Tracker().Watch(action.GetResource(), action.GetNamespace())
		watching <- struct{}{}
		return true, watcher, err
	})
	factory := informers.NewSharedInformerFactory(w.client, 0)
	options := Options{Client: w.client, Informers: factory, Committer: w, Seed: 7, AuditEvery: 1}
	if change != nil {
		change(&options)
	}
	sched, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	w.sched = sched
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	factory.Start(ctx.Done())
	waits := watchedResources
	if options.PodGroups != nil {
		waits++
	}
	for range waits { // what is stored between the list and the watch of a fake clientset is never told of
		<-watching
	}
	done := make(chan error, 1)
	go func() { done <- sched.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		factory.Shutdown()
		if n := sched.Stats().Mismatches; n != 0 {
			t.Errorf("%d decisions differ from a full scan", n)
		}
	})
	return w
}

func (w *world) next() string {
	w.revision++
	return strconv.FormatInt(w.revision, 10)
}

// put stores the object. Nodes are waited for: pods come by another informer.
func (w *world) put(gvr schema.GroupVersionResource, object metav1.Object) {
	w.t.Helper()
	w.mu.Lock()
	w.store(gvr, object)
	w.mu.Unlock()
	if gvr != nodeResource {
		return
	}
	w.knows("node "+object.GetName(), func(state *cluster.State) bool {
		n := state.Node(object.GetName())
		return n != nil && n.ResourceVersion == object.GetResourceVersion()
	})
}

// knows waits until the scheduler has heard of something, and acted on what it heard before.
func (w *world) knows(what string, condition func(*cluster.State) bool) {
	w.t.Helper()
	eventually(w.t, "the scheduler knows "+what, func() bool {
		known := make(chan bool, 1)
		w.sched.inbox.put(message{call: func() { known <- condition(w.sched.state) }})
		select {
		case ok := <-known:
			return ok
		case <-w.sched.stopped:
			return false
		}
	})
}

// settled waits until all that is decided is written, and the scheduler has heard of it.
func (w *world) settled() {
	w.t.Helper()
	w.knows("what it has written", func(*cluster.State) bool {
		for key, p := range w.sched.queue.pods {
			object, err := w.client.Tracker().Get(podResource, key.Namespace, key.Name)
			if err != nil || object.(*v1.Pod).ResourceVersion != p.pod.ResourceVersion {
				return false
			}
		}
		return w.sched.inFlight == 0 && w.sched.queue.active.count == 0
	})
}

func (w *world) store(gvr schema.GroupVersionResource, object metav1.Object) {
	object.SetResourceVersion(w.next())
	tracker := w.client.Tracker()
	err := tracker.Update(gvr, object.(runtime.Object), object.GetNamespace())
	if apierrors.IsNotFound(err) {
		err = tracker.Create(gvr, object.(runtime.Object), object.GetNamespace())
	}
	if err != nil {
		w.t.Error(err)
	}
}

func (w *world) remove(gvr schema.GroupVersionResource, namespace, name string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.client.Tracker().Delete(gvr, namespace, name); err != nil {
		w.t.Error(err)
	}
}

func (w *world) pod(name string) *v1.Pod {
	w.t.Helper()
	object, err := w.client.Tracker().Get(podResource, "default", name)
	if err != nil {
		w.t.Fatal(err)
	}
	return object.(*v1.Pod).DeepCopy()
}

// Commit is the Committer.
func (w *world) Commit(_ context.Context, writes []Write) []Result {
	results := make([]Result, len(writes))
	for i, write := range writes {
		if write.Value == nil {
			results[i] = w.drop(write)
			continue
		}
		object, _, err := clientscheme.Codecs.UniversalDeserializer().Decode(write.Value, nil, nil)
		if err != nil {
			w.t.Errorf("written value of %s: %v", write.Key, err)
			continue
		}
		pod := object.(*v1.Pod)
		if want := "/registry/pods/" + pod.Namespace + "/" + pod.Name; write.Key != want || pod.ResourceVersion != "" {
			w.t.Errorf("written at %s with the version %q, want %s with none", write.Key, pod.ResourceVersion, want)
		}
		if w.before != nil {
			w.before(write)
		}
		w.mu.Lock()
		stored, err := w.client.Tracker().Get(podResource, pod.Namespace, pod.Name)
		switch {
		case err != nil:
			results[i].Conflict = true
		case stored.(*v1.Pod).ResourceVersion != strconv.FormatInt(write.Expect, 10):
			results[i] = conflict(stored)
		case pod.Spec.NodeName != "" && w.wasStale(pod.Name):
			results[i] = conflict(stored)
		case w.fail != nil && pod.Spec.NodeName != "":
			results[i].Err = w.fail
		default:
			if pod.Spec.NodeName != "" {
				w.binds++
			}
			w.store(podResource, pod)
			results[i].Revision = w.revision
		}
		w.mu.Unlock()
	}
	return results
}

// wasStale says it once of the pod.
func (w *world) wasStale(name string) bool {
	stale := w.stale.Load()
	return stale != nil && *stale == name && w.stale.CompareAndSwap(stale, nil)
}

// drop commits a deletion.
func (w *world) drop(write Write) Result {
	if w.before != nil {
		w.before(write)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	name := write.Key[strings.LastIndex(write.Key, "/")+1:]
	stored, err := w.client.Tracker().Get(podResource, "default", name)
	if err != nil {
		return Result{Conflict: true}
	}
	if stored.(*v1.Pod).ResourceVersion != strconv.FormatInt(write.Expect, 10) {
		return conflict(stored)
	}
	if err := w.client.Tracker().Delete(podResource, "default", name); err != nil {
		return Result{Err: err}
	}
	w.next()
	return Result{Revision: w.revision}
}

func conflict(stored runtime.Object) Result {
	revision, err := strconv.ParseInt(stored.(*v1.Pod).ResourceVersion, 10, 64)
	return Result{Conflict: true, Revision: revision, Err: err}
}

// CommitAll is the Committer's other half.
func (w *world) CommitAll(ctx context.Context, writes []Write) Result {
	for _, write := range writes {
		name := write.Key[strings.LastIndex(write.Key, "/")+1:]
		if w.before != nil {
			w.before(write)
		}
		object, err := w.client.Tracker().Get(podResource, "default", name)
		if err != nil || object.(*v1.Pod).ResourceVersion != strconv.FormatInt(write.Expect, 10) || w.wasStale(name) {
			return Result{Conflict: true}
		}
	}
	before := w.before
	w.before = nil
	defer func() { w.before = before }()
	w.mu.Lock()
	w.batches = append(w.batches, len(writes))
	w.mu.Unlock()
	return w.Commit(ctx, writes)[len(writes)-1]
}

func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func (w *world) bound(name, node string) {
	w.t.Helper()
	eventually(w.t, name+" is bound", func() bool { return w.pod(name).Spec.NodeName != "" })
	pod := w.pod(name)
	if node != "" && pod.Spec.NodeName != node {
		w.t.Fatalf("%s is on %s, want %s", name, pod.Spec.NodeName, node)
	}
	if c := podCondition(pod); c == nil || c.Status != v1.ConditionTrue || c.LastTransitionTime.IsZero() {
		w.t.Fatalf("%s has the condition %+v", name, c)
	}
}

func (w *world) refused(name, message string) {
	w.t.Helper()
	got := ""
	eventually(w.t, fmt.Sprintf("%s is refused with %q", name, message), func() bool {
		if c := podCondition(w.pod(name)); c != nil && c.Status == v1.ConditionFalse && c.Reason == v1.PodReasonUnschedulable {
			got = c.Message
		}
		return got == message
	})
}

func (w *world) event(reason, note string) {
	w.t.Helper()
	eventually(w.t, fmt.Sprintf("event %s %q", reason, note), func() bool {
		list, err := w.client.EventsV1().Events("default").List(context.Background(), metav1.ListOptions{})
		if err != nil {
			w.t.Fatal(err)
		}
		for _, e := range list.Items {
			if e.Reason == reason && e.Note == note && e.ReportingController == "default-scheduler" {
				return true
			}
		}
		return false
	})
}

func testNode(name, cpu string, labels map[string]string, taints ...v1.Taint) *v1.Node {
	return &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec:       v1.NodeSpec{Taints: taints},
		Status: v1.NodeStatus{Allocatable: v1.ResourceList{
			v1.ResourceCPU: resource.MustParse(cpu), v1.ResourceMemory: resource.MustParse("8Gi"), v1.ResourcePods: resource.MustParse("110")}},
	}
}

func testPod(name, cpu string) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name), Generation: 1},
		Spec: v1.PodSpec{SchedulerName: "default-scheduler", Containers: []v1.Container{{Name: "c", Image: "pause",
			Resources: v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu)}}}}},
	}
}
