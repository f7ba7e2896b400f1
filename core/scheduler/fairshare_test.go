package scheduler

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// TestFairShare lets a namespace with little have its turn before the thousandth
// pod of one with much, by weight.
func TestFairShare(t *testing.T) {
	profile, err := cluster.NewProfile("fair", schedulingv1alpha1.SchedulerProfileSpec{Queue: &schedulingv1alpha1.Queue{
		Order: schedulingv1alpha1.FairShareOrder, Weights: map[string]int32{"large": 2}}})
	if err != nil {
		t.Fatal(err)
	}
	state := cluster.New(1)
	state.TrackShares("")
	state.SetNode(testNode("n", "100", nil))
	q := newQueue(state, func(string, string) {})
	for i := range 90 {
		for _, namespace := range []string{"large", "small", "urgent"}[:1+i/30] { // large comes first
			pod := testPod(fmt.Sprintf("%s-%d", namespace, i), "1")
			pod.Namespace = namespace
			x := &pending{pod: pod, profile: profile, sequence: uint64(i)}
			x.key.Namespace, x.key.Name = namespace, pod.Name
			if namespace == "urgent" {
				x.priority = 1
			}
			q.activate(x, queuedAdd)
		}
	}
	count, order := map[string]int{}, []string{}
	for range 120 {
		x := q.active.pop()
		count[x.key.Namespace]++
		order = append(order, x.key.Namespace)
		bound := x.pod.DeepCopy()
		bound.Spec.NodeName = "n"
		state.SetPod(bound)
		q.active.used(x.pod)
		if n := len(order); n == 30 && count["urgent"] != 30 {
			t.Fatalf("the first were %v, want the higher priority", count)
		} else if n == 90 && (count["large"] != 40 || count["small"] != 20) {
			t.Fatalf("of the first 90 %v, want two of large for one of small", count)
		}
	}
	for q.active.count > 0 {
		q.active.pop()
	}
	if q.active.pop() != nil {
		t.Error("a pod of an empty queue")
	}
}

// TestFairShareStarvesNobody: queues of random weights that are fed without end, and
// one that has a pod now and then. Whoever has its turn is of the queue with the
// smallest weighted share; the modest one waits for no more pods than there are
// queues; and what the others have follows their weights.
func TestFairShareStarvesNobody(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 3))
		weights := map[string]int32{}
		queues := 2 + r.IntN(5)
		for i := range queues {
			weights[fmt.Sprint("q", i)] = 1 + r.Int32N(4)
		}
		profile, err := cluster.NewProfile("fair", schedulingv1alpha1.SchedulerProfileSpec{Queue: &schedulingv1alpha1.Queue{
			Order: schedulingv1alpha1.FairShareOrder, Weights: weights, Label: "team"}})
		if err != nil {
			t.Fatal(err)
		}
		state := cluster.New(seed)
		state.TrackShares("team")
		node := testNode("n", "100", nil)
		node.Status.Allocatable[v1.ResourcePods] = resource.MustParse("1000")
		node.Status.Allocatable["example.com/gpu"] = resource.MustParse("50")
		state.SetNode(node)
		q := newQueue(state, func(string, string) {})
		sequence, waiting := uint64(0), map[string]int{}
		arrive := func(queue string) {
			sequence++
			// What a queue's pods ask for differs: no CPU at all, or a GPU each.
			pod := testPod(fmt.Sprint("p", sequence), []string{"100m", "0", "300m"}[len(queue)%3])
			if queue == "q1" {
				pod.Spec.Containers[0].Resources.Requests["example.com/gpu"] = resource.MustParse("1")
			}
			pod.Labels = map[string]string{"team": queue}
			x := &pending{pod: pod, profile: profile, sequence: sequence}
			x.key.Namespace, x.key.Name = pod.Namespace, pod.Name
			q.activate(x, queuedAdd)
			waiting[queue]++
		}
		var placed []*v1.Pod
		share := func(queue string) float64 { return state.Share("team", queue) / float64(max(weights[queue], 1)) }
		patience, got := 0, map[string]int{}
		for step := range 2_000 {
			for queue := range maps.Keys(weights) { // more than has room
				if waiting[queue] < 5 {
					arrive(queue)
				}
			}
			if waiting["modest"] == 0 && r.IntN(40) == 0 {
				arrive("modest")
				patience = 0
			}
			x := q.active.pop()
			queue := x.pod.Labels["team"]
			for other, n := range waiting {
				if n > 0 && share(other) < share(queue) {
					t.Fatalf("seed %d: %s has its turn with %f, %s has %f", seed, queue, share(queue), other, share(other))
				}
			}
			if waiting[queue]--; queue != "modest" && waiting["modest"] > 0 {
				if patience++; patience > queues+1 {
					t.Fatalf("seed %d step %d: a pod of a queue without any waits for %d others", seed, step, patience)
				}
			}
			bound := x.pod.DeepCopy()
			bound.Spec.NodeName = "n"
			state.SetPod(bound)
			q.active.used(bound)
			if got[queue]++; queue != "modest" {
				placed = append(placed, bound)
			} else if r.IntN(2) == 0 { // it ends at once
				state.RemovePod(x.key)
				q.active.used(bound)
			}
			if len(placed) > 200 { // some pod ends
				i := r.IntN(len(placed))
				state.RemovePod(types.NamespacedName{Namespace: placed[i].Namespace, Name: placed[i].Name})
				q.active.used(placed[i])
				placed[i] = placed[len(placed)-1]
				placed = placed[:len(placed)-1]
			}
		}
		for a := range weights {
			for b := range weights {
				if x, y := share(a), share(b); x > 1.5*y+0.05 {
					t.Errorf("seed %d: at the end %s has %f and %s %f of its weight", seed, a, x, b, y)
				}
			}
		}
	}
}

// TestFairShareQueues: a label of the namespace, else of the pod, names the queue;
// pods that wait for one thing have their turn by their queues' shares; a changed
// label of a namespace changes the queue of what waits and of what runs.
func TestFairShareQueues(t *testing.T) {
	w := newWorld(t, nil)
	w.apply(`queue: {order: FairShare, label: team}`)
	w.put(nodeResource, testNode("n1", "4", nil))
	pod := func(name, team string) *v1.Pod {
		p := testPod(name, "1")
		p.Labels = map[string]string{"team": team}
		return p
	}
	for i := range 4 {
		w.put(podResource, pod(fmt.Sprint("greedy", i), "a"))
		w.bound(fmt.Sprint("greedy", i), "n1")
	}
	for i := 4; i < 8; i++ {
		w.put(podResource, pod(fmt.Sprint("greedy", i), "a"))
		w.refused(fmt.Sprint("greedy", i), noRoom)
	}
	w.put(podResource, pod("late", "b"))
	w.refused("late", noRoom)
	w.remove(podResource, "default", "greedy0")
	w.bound("late", "n1") // though four others came before
	w.remove(podResource, "default", "greedy1")
	w.bound("greedy4", "n1")

	// The namespace's label goes before the pods': all are of one queue now.
	w.put(v1.SchemeGroupVersion.WithResource("namespaces"), &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default", Labels: map[string]string{"team": "c"}}})
	eventually(t, "all pods are of the queue", func() bool {
		shares := make(chan [3]float64, 1)
		w.sched.inbox.put(message{call: func() {
			s := w.sched.state
			shares <- [3]float64{s.Share("team", "a"), s.Share("team", "b"), s.Share("team", "c")}
		}})
		return <-shares == [3]float64{0, 0, 1}
	})
	w.put(podResource, pod("later", "b"))
	w.refused("later", noRoom)
	w.remove(podResource, "default", "greedy2")
	w.bound("greedy5", "n1") // the one that came first
}

const noRoom = "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."

// TestFairShareDeadlines: within a queue the earlier deadline goes first, between
// queues the smaller share, and what has no node in time is given up.
func TestFairShareDeadlines(t *testing.T) {
	profile, err := cluster.NewProfile("fair", schedulingv1alpha1.SchedulerProfileSpec{Queue: &schedulingv1alpha1.Queue{Order: schedulingv1alpha1.FairShareOrder}})
	if err != nil {
		t.Fatal(err)
	}
	state := cluster.New(1)
	state.TrackShares("")
	state.SetNode(testNode("n", "10", nil))
	used := testPod("used", "1")
	used.Namespace, used.Spec.NodeName = "busy", "n"
	state.SetPod(used)
	q := newQueue(state, func(string, string) {})
	now := time.Now()
	for i, x := range []struct {
		namespace string
		deadline  time.Duration
	}{{"busy", time.Second}, {"idle", 0}, {"idle", time.Hour}, {"idle", time.Minute}, {"busy", 0}} {
		p := &pending{pod: testPod(fmt.Sprint(i), "0"), profile: profile, sequence: uint64(i)}
		p.pod.Namespace, p.key.Namespace = x.namespace, x.namespace
		if x.deadline > 0 {
			p.deadline = now.Add(x.deadline)
		}
		q.activate(p, queuedAdd)
	}
	order := ""
	for q.active.count > 0 {
		order += q.active.pop().pod.Name
	}
	if order != "32104" {
		t.Errorf("the order is %s", order)
	}

	clock := clocktesting.NewFakeClock(now)
	w := newWorld(t, func(o *Options) { o.Clock = clock })
	w.apply(`queue: {order: FairShare, deadlineSeconds: 2}`)
	w.put(nodeResource, testNode("n1", "1", nil))
	late := testPod("late", "2")
	late.CreationTimestamp = metav1.NewTime(now)
	w.put(podResource, late)
	w.saying("late", v1.PodReasonUnschedulable, "Insufficient cpu")
	w.settled()
	clock.Step(2 * time.Second)
	w.saying("late", DeadlineExceeded, "Insufficient cpu")
}
