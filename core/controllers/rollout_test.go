package controllers_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
	"k8s.io/kubectl/pkg/polymorphichelpers"
	"k8s.io/utils/clock"
)

// rolledOut asks as kubectl rollout status does.
func (k *cluster) rolledOut(name string) error {
	d, err := k.AppsV1().Deployments("test").Get(k.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(d)
	if err != nil {
		return err
	}
	message, done, err := (&polymorphichelpers.DeploymentStatusViewer{}).Status(&unstructured.Unstructured{Object: object}, 0)
	if err == nil && !done {
		err = errors.New(message)
	}
	return err
}

// TestRollout rolls out, on, back and out of the way, as kubectl sees it.
func TestRollout(t *testing.T) {
	k := start(t, clock.RealClock{})
	k.namespace("test")
	ctx := t.Context()
	deployments := k.AppsV1().Deployments("test")
	if _, err := deployments.Create(ctx, deployment("web", 10, "v1"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return k.rolledOut("web") })
	for _, image := range []string{"v2", "v3"} {
		patch := fmt.Sprintf(`{"metadata":{"annotations":{"kubernetes.io/change-cause":"to %s"}},"spec":{"template":{"spec":{"containers":[{"name":"c","image":%q}]}}}}`, image, image)
		if _, err := deployments.Patch(ctx, "web", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error { return k.rolledOut("web") })
	}
	viewer, err := polymorphichelpers.HistoryViewerFor(appsv1.SchemeGroupVersion.WithKind("Deployment").GroupKind(), k)
	if err != nil {
		t.Fatal(err)
	}
	history, err := viewer.ViewHistory("test", "web", 0)
	if err != nil {
		t.Fatal(err)
	}
	if want := "REVISION  CHANGE-CAUSE\n1         <none>\n2         to v2\n3         to v3\n"; history != want {
		t.Errorf("history:\n%s\nwant:\n%s", history, want)
	}
	d, err := deployments.Get(ctx, "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	rollbacker, err := polymorphichelpers.RollbackerFor(appsv1.SchemeGroupVersion.WithKind("Deployment").GroupKind(), k)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rollbacker.Rollback(d, nil, 1, cmdutil.DryRunNone); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if d, err = deployments.Get(ctx, "web", metav1.GetOptions{}); err != nil {
			return err
		}
		if d.Annotations["deployment.kubernetes.io/revision"] != "4" {
			return fmt.Errorf("revision %s", d.Annotations["deployment.kubernetes.io/revision"])
		}
		return k.rolledOut("web")
	})
	pods, err := k.CoreV1().Pods("test").List(ctx, metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		t.Fatal(err)
	}
	running := 0
	for _, pod := range pods.Items {
		if pod.DeletionTimestamp == nil {
			running++
			if pod.Spec.Containers[0].Image != "v1" {
				t.Errorf("pod %s has image %s", pod.Name, pod.Spec.Containers[0].Image)
			}
		}
	}
	if running != 10 {
		t.Errorf("%d pods", running)
	}
	eventually(t, func() error { return k.told("Deployment", "web", "ScalingReplicaSet", "Scaled up replica set web-") })
	eventually(t, func() error { return k.told("Deployment", "web", "ScalingReplicaSet", "Scaled down replica set web-") })
	sets, err := k.AppsV1().ReplicaSets("test").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(sets.Items) != 3 {
		t.Errorf("%d replica sets", len(sets.Items))
	}
	for _, rs := range sets.Items {
		if *rs.Spec.Replicas == 10 {
			eventually(t, func() error { return k.told("ReplicaSet", rs.Name, "SuccessfulCreate", "Created pod: "+rs.Name+"-") })
		}
	}
}

// told looks for an event.
func (k *cluster) told(kind, name, reason, beginning string) error {
	events, err := k.CoreV1().Events("").List(k.t.Context(), metav1.ListOptions{FieldSelector: fields.Set{
		"involvedObject.kind": kind, "involvedObject.name": name, "reason": reason,
	}.String()})
	if err != nil {
		return err
	}
	for _, e := range events.Items {
		if strings.HasPrefix(e.Message, beginning) {
			return nil
		}
	}
	return fmt.Errorf("no event %s %q among %d of %s %s", reason, beginning, len(events.Items), kind, name)
}

// know waits until the controllers have heard of so many pods: one that has not makes as
// many as it wants, and deletes what is too many.
func (k *cluster) know(pods int) {
	k.t.Helper()
	eventually(k.t, func() error {
		if known := len(k.informers.Core().V1().Pods().Informer().GetStore().ListKeys()); known != pods {
			return fmt.Errorf("the controllers know of %d pods", known)
		}
		return nil
	})
}

// TestAdoption gives a set more pods than it wants, and takes one away.
func TestAdoption(t *testing.T) {
	k := start(t, clock.RealClock{})
	k.namespace("test")
	ctx := t.Context()
	d := deployment("web", 3, "v1")
	for i := range 2 {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("orphan-%d", i), Labels: d.Spec.Template.Labels}, Spec: d.Spec.Template.Spec}
		if _, err := k.CoreV1().Pods("test").Create(ctx, pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	k.know(2)
	rs := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.ReplicaSetSpec{Replicas: d.Spec.Replicas, Selector: d.Spec.Selector, Template: d.Spec.Template}}
	rs, err := k.AppsV1().ReplicaSets("test").Create(ctx, rs, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	owned := func(n int) error {
		pods, err := k.CoreV1().Pods("test").List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		have := 0
		for i := range pods.Items {
			if pod := &pods.Items[i]; metav1.IsControlledBy(pod, rs) && pod.DeletionTimestamp == nil {
				have++
			}
		}
		now, err := k.AppsV1().ReplicaSets("test").Get(ctx, "web", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if have != n || now.Status.Replicas != int32(n) || now.Status.AvailableReplicas != int32(n) || now.Status.ObservedGeneration != now.Generation {
			return fmt.Errorf("%d of %d pods owned, status %+v", have, len(pods.Items), now.Status)
		}
		return nil
	}
	eventually(t, func() error { return owned(3) })
	orphan, err := k.CoreV1().Pods("test").Patch(ctx, "orphan-0", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"app":"other"}}}`), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !metav1.IsControlledBy(orphan, rs) {
		t.Errorf("orphan-0 was not adopted: %v", orphan.OwnerReferences)
	}
	eventually(t, func() error { return owned(3) })
	eventually(t, func() error {
		pod, err := k.CoreV1().Pods("test").Get(ctx, "orphan-0", metav1.GetOptions{})
		if err == nil && len(pod.OwnerReferences) > 0 {
			return fmt.Errorf("owned by %v", pod.OwnerReferences)
		}
		return err
	})
	if _, err := k.AppsV1().ReplicaSets("test").Patch(ctx, "web", types.MergePatchType, []byte(`{"spec":{"replicas":1}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return owned(1) })
}

// TestManyReplicas creates 8,000 pods and says how long that took.
func TestManyReplicas(t *testing.T) {
	const n = 8000
	if testing.Short() {
		t.Skip("creates 8,000 pods")
	}
	k := start(t, clock.RealClock{})
	k.namespace("test")
	d := deployment("many", n, "v1")
	d.Spec.Template.Annotations = map[string]string{"test": "idle"}
	begin := time.Now()
	if _, err := k.AppsV1().Deployments("test").Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pods := k.informers.Core().V1().Pods().Informer().GetStore()
	eventually(t, func() error {
		if have := len(pods.ListKeys()); have < n {
			return fmt.Errorf("%d pods", have)
		}
		return nil
	})
	t.Logf("%d pods seen after %s", n, time.Since(begin))
	eventually(t, func() error {
		d, err := k.AppsV1().Deployments("test").Get(t.Context(), "many", metav1.GetOptions{})
		if err == nil && d.Status.Replicas != n {
			err = fmt.Errorf("status %+v", d.Status)
		}
		return err
	})
	t.Logf("status after %s", time.Since(begin))
	if have := len(pods.ListKeys()); have != n {
		t.Errorf("%d pods instead of %d", have, n)
	}
	begin = time.Now()
	background := metav1.DeletePropagationBackground
	if err := k.AppsV1().Deployments("test").Delete(t.Context(), "many", metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if have := len(pods.ListKeys()); have > 0 {
			return fmt.Errorf("%d pods", have)
		}
		return nil
	})
	t.Logf("all deleted after %s", time.Since(begin))
}
