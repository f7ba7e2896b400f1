package scheduler

import (
	"context"
	"fmt"
	"slices"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

func labelled(pod *v1.Pod, app string) *v1.Pod {
	pod.Labels = map[string]string{"app": app}
	return pod
}

func termOf(app, key string) []v1.PodAffinityTerm {
	return []v1.PodAffinityTerm{{LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}, TopologyKey: key}}
}

const unhelpful = " no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."

func TestPodsRelate(t *testing.T) {
	w := newWorld(t, nil)
	for i, zone := range []string{"a", "a", "b"} {
		w.put(nodeResource, testNode(fmt.Sprintf("n%d", i), "8", map[string]string{v1.LabelTopologyZone: zone, v1.LabelHostname: fmt.Sprintf("n%d", i)}))
	}
	// A parked pod wakes when the pod that it wants beside it is bound, by whomever.
	web := labelled(testPod("web", "100m"), "web")
	web.Spec.Affinity = &v1.Affinity{PodAffinity: &v1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: termOf("db", v1.LabelTopologyZone)}}
	w.put(podResource, web)
	w.refused("web", "0/3 nodes are available: 3 node(s) didn't match pod affinity rules."+unhelpful)
	db := labelled(testPod("db", "100m"), "db")
	db.Spec.NodeName, db.Spec.SchedulerName = "n2", "someone-else"
	w.put(podResource, db)
	w.bound("web", "n2")

	// Anti-affinity holds for the pods that others bound, and against those that name none.
	hermit := labelled(testPod("hermit", "100m"), "hermit")
	hermit.Spec.NodeName, hermit.Spec.SchedulerName = "n0", "someone-else"
	hermit.Spec.Affinity = &v1.Affinity{PodAntiAffinity: &v1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: termOf("noisy", v1.LabelTopologyZone)}}
	w.put(podResource, hermit)
	for i := range 2 {
		noisy := labelled(testPod(fmt.Sprintf("noisy%d", i), "100m"), "noisy")
		noisy.Spec.Affinity = &v1.Affinity{PodAntiAffinity: &v1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: termOf("noisy", v1.LabelHostname)}}
		w.put(podResource, noisy)
	}
	eventually(t, "one of the noisy pods is bound", func() bool {
		return w.pod("noisy0").Spec.NodeName != "" || w.pod("noisy1").Spec.NodeName != ""
	})
	bound, left := "noisy0", "noisy1"
	if w.pod(bound).Spec.NodeName == "" {
		bound, left = left, bound
	}
	w.bound(bound, "n2")
	w.refused(left, "0/3 nodes are available: 1 node(s) didn't match pod anti-affinity rules, 2 node(s) didn't satisfy existing pods anti-affinity rules. "+
		"no new claims to deallocate, preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod.")
	w.remove(podResource, "default", "hermit")
	w.bound(left, "")

	// A label that nobody read when the pods were parked tells them apart later.
	for _, app := range []string{"x", "y"} {
		w.put(podResource, labelled(testPod("big-"+app, "20"), app))
		w.refused("big-"+app, "0/3 nodes are available: 3 Insufficient cpu."+unhelpful)
	}
	shy := testPod("shy", "100m")
	shy.Spec.NodeName, shy.Spec.SchedulerName = "n1", "someone-else"
	shy.Spec.Affinity = &v1.Affinity{PodAntiAffinity: &v1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: termOf("x", v1.LabelHostname)}}
	w.put(podResource, shy)
	eventually(t, "the pod is counted: nodes come on a watch of their own", func() bool {
		placed := make(chan bool, 1)
		w.sched.inbox.put(message{call: func() {
			placed <- w.sched.state.Placed(types.NamespacedName{Namespace: "default", Name: "shy"}) != nil
		}})
		return <-placed
	})
	w.put(nodeResource, testNode("n1", "64", map[string]string{v1.LabelTopologyZone: "a", v1.LabelHostname: "n1"}))
	w.bound("big-y", "n1")
	if node := w.pod("big-x").Spec.NodeName; node != "" {
		t.Errorf("the pod that another keeps away is on %s", node)
	}
}

func TestSpreadOverZones(t *testing.T) {
	w := newWorld(t, nil)
	for i := range 4 {
		labels := map[string]string{v1.LabelTopologyZone: string(rune('a' + i%2))}
		if i == 3 {
			labels = nil
		}
		w.put(nodeResource, testNode(fmt.Sprintf("n%d", i), "64", labels))
	}
	spread := func(name string, min int32) {
		pod := labelled(testPod(name, "100m"), "web")
		pod.Spec.TopologySpreadConstraints = []v1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: v1.LabelTopologyZone,
			WhenUnsatisfiable: v1.DoNotSchedule, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}, MinDomains: &min}}
		w.put(podResource, pod)
	}
	zones := map[string]int{}
	for i := range 10 {
		name := fmt.Sprintf("p%d", i)
		spread(name, 1)
		w.bound(name, "")
		zones[w.pod(name).Labels[v1.LabelTopologyZone]]++
	}
	if zones["a"] != 5 || zones["b"] != 5 {
		t.Errorf("spread as %v", zones)
	}
	spread("many", 3)
	w.refused("many", "0/4 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label), "+
		"3 node(s) didn't match pod topology spread constraints. no new claims to deallocate, preemption: 0/4 nodes are available: "+
		"1 Preemption is not helpful for scheduling, 3 No preemption victims found for incoming pod.")
	w.put(nodeResource, testNode("n4", "64", map[string]string{v1.LabelTopologyZone: "c"}))
	w.bound("many", "n4")
}

// TestSpreadByDefault spreads the pods of a service that name no constraints.
func TestSpreadByDefault(t *testing.T) {
	w := newWorld(t, nil)
	service := &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: v1.ServiceSpec{Selector: map[string]string{"app": "web"}}}
	w.put(schema.GroupVersionResource{Version: "v1", Resource: "services"}, service)
	// Without the service, the emptier and larger node would take them all.
	w.put(nodeResource, testNode("large", "64", map[string]string{v1.LabelTopologyZone: "a", v1.LabelHostname: "large"}))
	w.put(nodeResource, testNode("small", "8", map[string]string{v1.LabelTopologyZone: "b", v1.LabelHostname: "small"}))
	used := map[string]int{}
	for i := range 6 {
		name := fmt.Sprintf("p%d", i)
		w.put(podResource, labelled(testPod(name, "100m"), "web"))
		w.bound(name, "")
		used[w.pod(name).Spec.NodeName]++
		eventually(t, "the service is known, on a watch of its own", func() bool {
			d, err := w.sched.Explain(context.Background(), "default", name, false)
			return err == nil && slices.ContainsFunc(d.Nodes[0].Scores, func(s decisionv1alpha1.PluginScore) bool { return s.Plugin == cluster.PodTopologySpread })
		})
	}
	if used["large"] != 3 || used["small"] != 3 {
		t.Errorf("spread as %v", used)
	}
}
