package scheduler

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TestPodsThatBringNodesDownAreHeldBack has three nodes fall, each shortly after a pod of one ReplicaSet started there.
func TestPodsThatBringNodesDownAreHeldBack(t *testing.T) {
	w := newWorld(t, nil)
	yes := true
	of := func(pod *v1.Pod, owner, template string) *v1.Pod {
		pod.Labels = map[string]string{"pod-template-hash": template}
		pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: owner, UID: types.UID(owner), Controller: &yes}}
		return pod
	}
	begun := time.Now()
	for i := range 4 {
		node := testNode(fmt.Sprint("n", i), "4", nil)
		node.Status.Conditions = []v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionTrue, LastTransitionTime: metav1.NewTime(begun.Add(-time.Hour))}}
		w.put(nodeResource, node)
		if i == 3 {
			break
		}
		for _, owner := range []string{"bomb", "old"} {
			pod := of(testPod(fmt.Sprint(owner, i), "1"), owner, "1")
			pod.Spec.NodeName = node.Name
			pod.Status.StartTime = &metav1.Time{Time: begun}
			if owner == "old" {
				pod.Status.StartTime = &metav1.Time{Time: begun.Add(-time.Hour)}
			}
			w.put(podResource, pod)
			eventually(t, "the scheduler knows pod "+pod.Name, func() bool {
				known := make(chan bool, 1)
				w.sched.inbox.put(message{call: func() {
					known <- w.sched.state.Placed(types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}) != nil
				}})
				return <-known
			})
		}
		node = node.DeepCopy()
		node.Status.Conditions[0] = v1.NodeCondition{Type: v1.NodeReady, Status: v1.ConditionUnknown, LastTransitionTime: metav1.NewTime(begun.Add(time.Minute))}
		node.Spec.Taints = []v1.Taint{{Key: v1.TaintNodeUnreachable, Effect: v1.TaintEffectNoSchedule}}
		w.put(nodeResource, node)
	}
	w.put(podResource, of(testPod("bomb-again", "1"), "bomb", "1"))
	eventually(t, "the pod is held back", func() bool {
		c := podCondition(w.pod("bomb-again"))
		return c != nil && c.Reason == reasonHeldBack && strings.HasPrefix(c.Message, "held back until ") &&
			strings.HasSuffix(c.Message, "of 3 nodes that fell into trouble in the last 1h0m0s, 3 had started pods of ReplicaSet bomb shortly before (n0, n1, n2)")
	})
	w.event("FailedScheduling", podCondition(w.pod("bomb-again")).Message)
	w.put(podResource, of(testPod("mended", "1"), "bomb", "2"))
	w.bound("mended", "n3")
	w.put(podResource, of(testPod("bystander", "1"), "old", "1"))
	w.bound("bystander", "n3")
	if node := w.pod("bomb-again").Spec.NodeName; node != "" {
		t.Errorf("the pod that is held back is bound to %s", node)
	}
}
