package controllers_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	testclock "k8s.io/utils/clock/testing"
)

// TestLostNode has one of two nodes fall silent: it becomes unknown and
// tainted, its pods not ready, and after their patience they go elsewhere. It
// comes back before that the second time.
func TestLostNode(t *testing.T) {
	clock := testclock.NewFakeClock(time.Now())
	k := start(t, clock)
	k.namespace("test")
	ctx := t.Context()
	for _, name := range []string{"n1", "n2"} {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelOSStable: "linux"}}}
		if _, err := k.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		k.heartbeat(name, clock.Now())
		lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: coordinationv1.LeaseSpec{RenewTime: &metav1.MicroTime{Time: clock.Now()}}}
		if _, err := k.CoordinationV1().Leases(corev1.NamespaceNodeLease).Create(ctx, lease, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	leases := k.informers.Coordination().V1().Leases().Lister().Leases(corev1.NamespaceNodeLease)
	// pass lets five seconds pass, with a sign of life of the nodes.
	pass := func(alive ...string) {
		t.Helper()
		clock.Step(5 * time.Second)
		for _, name := range alive {
			renewed := metav1.MicroTime{Time: clock.Now()}
			patch := fmt.Sprintf(`{"spec":{"renewTime":%q}}`, renewed.Format("2006-01-02T15:04:05.000000Z07:00"))
			if _, err := k.CoordinationV1().Leases(corev1.NamespaceNodeLease).Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() error {
				lease, err := leases.Get(name)
				if err == nil && lease.Spec.RenewTime.Sub(renewed.Time).Abs() > time.Millisecond {
					err = errors.New("the lease is old")
				}
				return err
			})
		}
	}
	if _, err := k.AppsV1().Deployments("test").Create(ctx, deployment("web", 2, "v1"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return k.rolledOut("web") })
	eventually(t, func() error {
		pass("n1", "n2")
		return k.told("Node", "n1", "RegisteredNode", "Node n1 event: Registered Node n1 in Controller")
	})
	taints := func(want ...string) error {
		node, err := k.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
		if err != nil {
			return err
		}
		var have []string
		for _, taint := range node.Spec.Taints {
			have = append(have, taint.Key+":"+string(taint.Effect))
		}
		slices.Sort(have)
		if !slices.Equal(have, want) {
			return fmt.Errorf("taints %v", have)
		}
		return nil
	}
	unreachable := []string{corev1.TaintNodeUnreachable + ":NoExecute", corev1.TaintNodeUnreachable + ":NoSchedule"}
	silence := func() {
		t.Helper()
		eventually(t, func() error {
			pass("n2")
			return taints(unreachable...)
		})
		eventually(t, func() error {
			pods, err := k.CoreV1().Pods("test").List(ctx, metav1.ListOptions{})
			for _, pod := range pods.Items {
				for _, c := range pod.Status.Conditions {
					if pod.DeletionTimestamp == nil && pod.Spec.NodeName == "n1" && c.Type == corev1.PodReady && c.Status != corev1.ConditionFalse {
						err = fmt.Errorf("pod %s is ready", pod.Name)
					}
				}
			}
			return err
		})
	}

	silence()
	eventually(t, func() error { return k.told("Node", "n1", "NodeNotReady", "Node n1 status is now: NodeNotReady") })
	eventually(t, func() error {
		node, err := k.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
		if err == nil && node.Labels["beta.kubernetes.io/os"] != "linux" {
			err = fmt.Errorf("labels %v", node.Labels)
		}
		return err
	})
	back := func() {
		t.Helper()
		k.heartbeat("n1", clock.Now())
		eventually(t, func() error {
			pass("n1", "n2")
			return taints()
		})
	}
	back()
	eventually(t, func() error { return k.cancelled("test") })
	silence()
	eventually(t, func() error { // 300 s by the default tolerations
		pass("n2")
		pods, err := k.CoreV1().Pods("test").List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, pod := range pods.Items {
			for _, c := range pod.Status.Conditions {
				if c.Type == corev1.DisruptionTarget && c.Reason == "DeletionByTaintManager" {
					return nil
				}
			}
		}
		return k.told("Pod", "", "TaintManagerEviction", "Marking for deletion Pod test/web-")
	})
}

// heartbeat says for a node that it is ready.
func (k *cluster) heartbeat(node string, at time.Time) {
	k.t.Helper()
	stamp := at.UTC().Format(time.RFC3339)
	patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":"True","reason":"KubeletReady","lastHeartbeatTime":%q,"lastTransitionTime":%q}]}}`, stamp, stamp)
	if _, err := k.CoreV1().Nodes().Patch(k.t.Context(), node, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
		k.t.Fatal(err)
	}
}

// cancelled looks for the event of an eviction that was called off.
func (k *cluster) cancelled(namespace string) error {
	events, err := k.CoreV1().Events(namespace).List(k.t.Context(), metav1.ListOptions{FieldSelector: "reason=TaintManagerEviction"})
	if err != nil {
		return err
	}
	for _, e := range events.Items {
		if e.Message == "Cancelling deletion of Pod "+e.InvolvedObject.Namespace+"/"+e.InvolvedObject.Name {
			return nil
		}
	}
	return fmt.Errorf("no eviction was called off, %d events", len(events.Items))
}

// TestGoneNode deletes a node: its pods go after the quarantine.
func TestGoneNode(t *testing.T) {
	clock := testclock.NewFakeClock(time.Now())
	k := start(t, clock)
	k.namespace("test")
	ctx := t.Context()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{NodeName: "never", Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	if _, err := k.CoreV1().Pods("test").Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		_, err := k.informers.Core().V1().Pods().Lister().Pods("test").Get("p")
		return err
	})
	begin := clock.Now()
	eventually(t, func() error {
		_, err := k.CoreV1().Pods("test").Get(ctx, "p", metav1.GetOptions{})
		if err = gone(err); err != nil {
			clock.Step(5 * time.Second)
		}
		return err
	})
	if after := clock.Since(begin); after < 40*time.Second {
		t.Errorf("gone after %s", after)
	}
}
