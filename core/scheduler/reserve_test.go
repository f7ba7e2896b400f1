package scheduler

import (
	"context"
	"errors"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// TestReserve: a pod of another scheduler takes its room before it is bound, gives it
// back when it is not, and is refused where ours have the room.
func TestReserve(t *testing.T) {
	w := newWorld(t, nil)
	w.put(nodeResource, testNode("n1", "2", nil))
	others := func(name, cpu string) types.NamespacedName {
		pod := testPod(name, cpu)
		pod.Spec.SchedulerName = "another"
		w.put(podResource, pod)
		return types.NamespacedName{Namespace: "default", Name: name}
	}
	first := others("first", "1500m")
	done, err := w.sched.Reserve(context.Background(), first, "n1")
	if err != nil {
		t.Fatal(err)
	}
	w.put(podResource, testPod("ours", "1"))
	w.saying("ours", v1.PodReasonUnschedulable, "1 Insufficient cpu.")
	pod := w.pod("first") // a version from before the bind takes nothing back
	pod.Labels = map[string]string{"changed": "yes"}
	w.put(podResource, pod)
	w.put(podResource, testPod("small", "100m"))
	w.bound("small", "n1")
	if w.pod("ours").Spec.NodeName != "" {
		t.Fatal("the room was given away while the bind was under way")
	}
	done(false)
	w.bound("ours", "n1")
	done, err = w.sched.Reserve(context.Background(), first, "n1")
	if !errors.Is(err, ErrNoRoom) || !strings.Contains(err.Error(), `pod default/first, node "n1": the node has no room for the pod any more: Insufficient cpu`) {
		t.Errorf("beside ours: %v", err)
	}
	done(false)
	second := others("second", "500m")
	if done, err = w.sched.Reserve(context.Background(), second, "n1"); err != nil {
		t.Fatal(err)
	}
	pod = w.pod("second")
	pod.Spec.NodeName = "n1"
	w.put(podResource, pod)
	done(true)
	w.put(podResource, testPod("late", "500m"))
	w.saying("late", v1.PodReasonUnschedulable, "1 Insufficient cpu.")
	w.remove(podResource, "default", "second")
	w.bound("late", "n1")
	w.put(nodeResource, testNode("n1", "4", nil))
	port := testPod("port", "100m")
	port.Spec.Containers[0].Ports = []v1.ContainerPort{{HostPort: 80}}
	w.put(podResource, port)
	w.bound("port", "n1")
	for _, c := range []struct {
		name   string
		change func(*v1.Pod)
		says   string
	}{
		{"port-too", func(p *v1.Pod) { p.Spec.Containers[0].Ports = port.Spec.Containers[0].Ports }, "didn't have free ports for the requested pod ports"},
		{"hugepages", func(p *v1.Pod) { request(p, "hugepages-2Mi", "2Mi") }, "Insufficient hugepages-2Mi"},
		{"much", func(p *v1.Pod) { request(p, v1.ResourceCPU, "100") }, "Insufficient cpu"},
		// What a node takes beside others, or makes room for.
		{"elsewhere", func(p *v1.Pod) { request(p, "example.com/license", "1") }, ""},
		{"disk", func(p *v1.Pod) { request(p, v1.ResourceEphemeralStorage, "1Gi") }, ""},
		{"critical", func(p *v1.Pod) { withPriority(p, 2_000_000_000); request(p, v1.ResourceCPU, "100") }, ""},
	} {
		pod := testPod(c.name, "100m")
		pod.Spec.SchedulerName = "another"
		c.change(pod)
		w.put(podResource, pod)
		done, err := w.sched.Reserve(context.Background(), types.NamespacedName{Namespace: "default", Name: c.name}, "n1")
		if c.says == "" && err != nil || c.says != "" && (!errors.Is(err, ErrNoRoom) || !strings.HasSuffix(err.Error(), c.says)) {
			t.Errorf("%s: %v", c.name, err)
		}
		done(false)
	}
	for _, name := range []string{"nobody", "late"} { // the storage says what is wrong with these
		if done, err = w.sched.Reserve(context.Background(), types.NamespacedName{Namespace: "default", Name: name}, "n1"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		done(false)
	}
	w.bound("late", "n1")
	if _, err = w.sched.Reserve(context.Background(), others("lost", "1"), "none"); err != nil {
		t.Errorf("a node that is not there: %v", err)
	}

	// Who has not heard the answer has reserved nothing.
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if done, err = w.sched.Reserve(ended, others("hasty", "100m"), "n1"); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	done(false)
	w.knows("that nothing is reserved", func(*cluster.State) bool { return len(w.sched.reserved) == 0 })
}

func request(pod *v1.Pod, name v1.ResourceName, amount string) {
	pod.Spec.Containers[0].Resources.Requests[name] = resource.MustParse(amount)
}
