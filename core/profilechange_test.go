package core_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
)

// sided is a profile whose filter takes the nodes of one side, and whose one score
// prefers those of one rank.
func sided(t *testing.T, side, rank, weight string) *unstructured.Unstructured {
	t.Helper()
	object := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(fmt.Sprintf(`
apiVersion: scheduling.quaymaster.dev/v1alpha1
kind: SchedulerProfile
metadata: {name: sided}
spec:
  plugins: {score: {disabled: [{name: "*"}], enabled: [{name: NodeAffinity, weight: %s}]}}
  args:
    nodeAffinity:
      addedAffinity:
        requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: side, operator: In, values: [%s]}]}]}
        preferredDuringSchedulingIgnoredDuringExecution: [{weight: 10, preference: {matchExpressions: [{key: rank, operator: In, values: [%s]}]}}]
`, weight, side, rank)), object); err != nil {
		t.Fatal(err)
	}
	return object
}

// TestProfileChangesLive: while 1,000 pods flow, a profile changes between two
// versions that differ in a filter and in a score. Each decision follows one of
// them whole: a mixture would choose a node that neither does. What is decided after
// a version was seen to be in force follows it, and a wrong version changes nothing.
func TestProfileChangesLive(t *testing.T) {
	const flow = 1000
	e := start(t, core.Options{})
	for _, side := range []string{"left", "right"} {
		for _, rank := range []string{"one", "two"} {
			name := side + "-" + rank
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"side": side, "rank": rank}}, Status: corev1.NodeStatus{
				Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100"), corev1.ResourceMemory: resource.MustParse("64Gi"), corev1.ResourcePods: resource.MustParse("5000")},
				Conditions:  []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}}
			if _, err := e.Client().CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	d, err := dynamic.NewForConfig(e.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	profiles := d.Resource(schema.GroupVersionResource{Group: "scheduling.quaymaster.dev", Version: "v1alpha1", Resource: "schedulerprofiles"})
	versions := []*unstructured.Unstructured{sided(t, "left", "one", "1"), sided(t, "right", "two", "1")}
	nodes := []string{"left-one", "right-two"} // that the versions choose
	if _, err := profiles.Create(t.Context(), versions[0].DeepCopy(), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	apply := func(object *unstructured.Unstructured) error {
		current, err := profiles.Get(t.Context(), "sided", metav1.GetOptions{})
		if err != nil {
			return err
		}
		next := object.DeepCopy()
		next.SetResourceVersion(current.GetResourceVersion())
		_, err = profiles.Update(t.Context(), next, metav1.UpdateOptions{})
		return err
	}
	pods := e.Client().CoreV1().Pods("default")
	create := func(name string) {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{SchedulerName: "sided",
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}}, // no agent keeps the nodes from being taken for dead
			Containers:  []corev1.Container{{Name: "c", Image: "web:1"}}}}
		if _, err := pods.Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
			t.Error(err)
		}
	}
	node := func(name string) (on string) {
		t.Helper()
		coretest.Eventually(t, name+" to be bound", func(ctx context.Context) (bool, error) {
			pod, err := pods.Get(ctx, name, metav1.GetOptions{})
			if err == nil {
				on = pod.Spec.NodeName
			}
			return on != "", err
		})
		return on
	}
	probes := 0
	inForce := func(version int) { // once one decision follows it, all do
		t.Helper()
		for node(fmt.Sprint("probe", probes)) != nodes[version] {
			probes++
			create(fmt.Sprint("probe", probes))
		}
	}
	admitted(t, e, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "first"}, Spec: corev1.PodSpec{SchedulerName: "nobody", Containers: []corev1.Container{{Name: "c", Image: "web:1"}}}})
	create("probe0")
	inForce(0)
	var makers sync.WaitGroup
	for m := range 4 {
		makers.Go(func() {
			for i := m; i < flow; i += 4 {
				create(fmt.Sprint("flow", i))
			}
		})
	}
	for i := 1; i <= 20; i++ {
		if err := apply(versions[i%2]); err != nil {
			t.Fatal(err)
		}
		probes++
		create(fmt.Sprint("probe", probes))
		inForce(i % 2)
	}
	makers.Wait()
	count := map[string]int{}
	for i := range flow {
		count[node(fmt.Sprint("flow", i))]++
	}
	if count[nodes[0]]+count[nodes[1]] != flow || count[nodes[0]] == 0 || count[nodes[1]] == 0 {
		t.Errorf("pods by node: %v; want all on %v, and some on each", count, nodes)
	}
	err = apply(sided(t, "left", "one", "101"))
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "spec.plugins.score.enabled[0].weight: Invalid value: 101: must be between 1 and 100, inclusive") {
		t.Errorf("a wrong version: %v", err)
	}
	create("last")
	if on := node("last"); on != nodes[0] {
		t.Errorf("after a wrong version a pod is on %s, the one before it chooses %s", on, nodes[0])
	}
}
