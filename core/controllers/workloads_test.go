package controllers_test

import (
	"fmt"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
	"k8s.io/kubectl/pkg/polymorphichelpers"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
)

// podsOf returns name and image of the pods of an app, by name.
func (k *cluster) podsOf(app string) ([]string, error) {
	list, err := k.CoreV1().Pods("test").List(k.t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil {
		return nil, err
	}
	var out []string
	for _, p := range list.Items {
		out = append(out, p.Name+" "+p.Spec.Containers[0].Image)
	}
	slices.Sort(out)
	return out, nil
}

func template(app, image string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": app}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}},
	}
}

const imagePatch = `{"spec":{"template":{"spec":{"containers":[{"name":"c","image":%q}]}}}}`

// TestStatefulSet makes pods in order, with their claims, rolls an update out
// and back as kubectl does, and scales to nothing.
func TestStatefulSet(t *testing.T) {
	k := start(t, clock.RealClock{})
	k.namespace("test")
	ctx := t.Context()
	sets := k.AppsV1().StatefulSets("test")
	claim := corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
	}}
	_, err := sets.Create(ctx, &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "db"}, Spec: appsv1.StatefulSetSpec{
		Replicas: ptr.To[int32](3), ServiceName: "db", Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}},
		Template: template("db", "v1"), VolumeClaimTemplates: []corev1.PersistentVolumeClaim{claim},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	settled := func(image string) func() error {
		return func() error {
			want := []string{"db-0 " + image, "db-1 " + image, "db-2 " + image}
			set, err := sets.Get(ctx, "db", metav1.GetOptions{})
			if err != nil {
				return err
			}
			got, err := k.podsOf("db")
			if err == nil && (!slices.Equal(got, want) || set.Status.ReadyReplicas != 3 || set.Status.CurrentRevision != set.Status.UpdateRevision) {
				err = fmt.Errorf("pods %v, status %+v", got, set.Status)
			}
			return err
		}
	}
	eventually(t, settled("v1"))
	if _, err := k.CoreV1().PersistentVolumeClaims("test").Get(ctx, "data-db-2", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := sets.Patch(ctx, "db", types.StrategicMergePatchType, fmt.Appendf(nil, imagePatch, "v2"), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, settled("v2"))
	set, err := sets.Get(ctx, "db", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	rollbacker, err := polymorphichelpers.RollbackerFor(appsv1.SchemeGroupVersion.WithKind("StatefulSet").GroupKind(), k)
	if err != nil {
		t.Fatal(err)
	}
	if message, err := rollbacker.Rollback(set, nil, 0, cmdutil.DryRunNone); err != nil || message != "rolled back" {
		t.Fatalf("%q, %v", message, err)
	}
	eventually(t, settled("v1"))
	revisions, err := k.AppsV1().ControllerRevisions("test").List(ctx, metav1.ListOptions{})
	if err != nil || len(revisions.Items) != 2 {
		t.Errorf("%d revisions after a way there and back, %v", len(revisions.Items), err)
	}
	if _, err := sets.Patch(ctx, "db", types.MergePatchType, []byte(`{"spec":{"replicas":0}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		got, err := k.podsOf("db")
		if err == nil && len(got) > 0 {
			err = fmt.Errorf("pods %v", got)
		}
		return err
	})
}

// TestDaemonSet follows nodes and rolls an update out.
func TestDaemonSet(t *testing.T) {
	k := start(t, clock.RealClock{}, "nodelifecycle", "podgc") // nobody keeps the nodes' leases
	k.namespace("test")
	ctx := t.Context()
	sets := k.AppsV1().DaemonSets("test")
	node := func(name string) {
		made, err := k.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		made.Spec.Taints = nil // a new node is not ready
		if _, err := k.CoreV1().Nodes().Update(ctx, made, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	node("n1")
	if _, err := sets.Create(ctx, &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "d"}, Spec: appsv1.DaemonSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "d"}}, Template: template("d", "v1"),
	}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	has := func(desired, updated, ready int32) {
		t.Helper()
		eventually(t, func() error {
			set, err := sets.Get(ctx, "d", metav1.GetOptions{})
			if s := set.Status; err == nil && (s.DesiredNumberScheduled != desired || s.UpdatedNumberScheduled != updated || s.NumberReady != ready || s.ObservedGeneration != set.Generation) {
				err = fmt.Errorf("generation %d, status %+v", set.Generation, s)
			}
			return err
		})
	}
	has(1, 1, 1)
	if _, err := sets.Patch(ctx, "d", types.StrategicMergePatchType, fmt.Appendf(nil, imagePatch, "v2"), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	has(1, 1, 1)
	eventually(t, func() error {
		got, err := k.podsOf("d")
		if err == nil && (len(got) != 1 || got[0][len(got[0])-2:] != "v2") {
			err = fmt.Errorf("pods %v", got)
		}
		return err
	})
	if err := k.CoreV1().Nodes().Delete(ctx, "n1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	has(0, 0, 0)
}

// TestReplicationController keeps pods, and adopts and releases them.
func TestReplicationController(t *testing.T) {
	k := start(t, clock.RealClock{})
	k.namespace("test")
	ctx := t.Context()
	controllers := k.CoreV1().ReplicationControllers("test")
	orphan := template("rc", "v1")
	orphan.Name = "orphan"
	if _, err := k.CoreV1().Pods("test").Create(ctx, &corev1.Pod{ObjectMeta: orphan.ObjectMeta, Spec: orphan.Spec}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	k.know(1)
	if _, err := controllers.Create(ctx, &corev1.ReplicationController{ObjectMeta: metav1.ObjectMeta{Name: "rc"}, Spec: corev1.ReplicationControllerSpec{
		Replicas: ptr.To[int32](3), Selector: map[string]string{"app": "rc"}, Template: ptr.To(template("rc", "v1")),
	}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ready := func(n int32) {
		t.Helper()
		eventually(t, func() error {
			rc, err := controllers.Get(ctx, "rc", metav1.GetOptions{})
			if err == nil && (rc.Status.ReadyReplicas != n || rc.Status.Replicas != n || rc.Status.AvailableReplicas != n) {
				err = fmt.Errorf("status %+v", rc.Status)
			}
			return err
		})
	}
	ready(3)
	adopted, err := k.CoreV1().Pods("test").Get(ctx, "orphan", metav1.GetOptions{})
	if ref := metav1.GetControllerOf(adopted); err != nil || ref == nil || ref.Kind != "ReplicationController" {
		t.Errorf("the orphan's controller is %v, %v", ref, err)
	}
	if _, err := k.CoreV1().Pods("test").Patch(ctx, "orphan", types.MergePatchType, []byte(`{"metadata":{"labels":{"app":"other"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		pod, err := k.CoreV1().Pods("test").Get(ctx, "orphan", metav1.GetOptions{})
		if ref := metav1.GetControllerOf(pod); err == nil && ref != nil {
			err = fmt.Errorf("still controlled by %s", ref.Name)
		}
		return err
	})
	if _, err := controllers.Patch(ctx, "rc", types.MergePatchType, []byte(`{"spec":{"replicas":1}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	ready(1)
}

// TestEndpoints follows pods, and mirrors what is written by hand.
func TestEndpoints(t *testing.T) {
	k := start(t, clock.RealClock{})
	k.namespace("test")
	ctx := t.Context()
	service := func(name string, selector map[string]string) {
		if _, err := k.CoreV1().Services("test").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
			Selector: selector, Ports: []corev1.ServicePort{{Port: 80}},
		}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	addresses := func(name string, want int) {
		t.Helper()
		eventually(t, func() error {
			slices, err := k.DiscoveryV1().EndpointSlices("test").List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + name})
			if err != nil {
				return err
			}
			e, err := k.CoreV1().Endpoints("test").Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			var inSlices, inEndpoints int
			for _, s := range slices.Items {
				inSlices += len(s.Endpoints)
			}
			for _, s := range e.Subsets {
				inEndpoints += len(s.Addresses)
			}
			if inSlices != want || inEndpoints != want || len(slices.Items) != 1 {
				return fmt.Errorf("%d slices with %d endpoints, Endpoints with %d, want %d", len(slices.Items), inSlices, inEndpoints, want)
			}
			return nil
		})
	}
	service("web", map[string]string{"app": "web"})
	addresses("web", 0)
	for i := range 3 {
		pod := &corev1.Pod{ObjectMeta: template("web", "v1").ObjectMeta, Spec: template("web", "v1").Spec}
		pod.Name, pod.Annotations = fmt.Sprintf("p%d", i), map[string]string{"test": "idle"}
		made, err := k.CoreV1().Pods("test").Create(ctx, pod, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		made.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: fmt.Sprintf("10.9.0.%d", i+1), PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("10.9.0.%d", i+1)}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
		if _, err := k.CoreV1().Pods("test").UpdateStatus(ctx, made, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	addresses("web", 3)
	if err := k.CoreV1().Pods("test").Delete(ctx, "p1", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Fatal(err)
	}
	addresses("web", 2)

	service("hand", nil)
	if _, err := k.CoreV1().Endpoints("test").Create(ctx, &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: "hand"}, Subsets: []corev1.EndpointSubset{
		{Addresses: []corev1.EndpointAddress{{IP: "10.9.9.9"}}, Ports: []corev1.EndpointPort{{Port: 80}}},
	}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	addresses("hand", 1)

	for _, name := range []string{"web", "hand"} {
		if err := k.CoreV1().Services("test").Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() error {
		_, err := k.CoreV1().Endpoints("test").Get(ctx, "web", metav1.GetOptions{})
		return gone(err)
	})
	eventually(t, func() error {
		slices, err := k.DiscoveryV1().EndpointSlices("test").List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=web"})
		if err == nil && len(slices.Items) > 0 {
			err = fmt.Errorf("%d slices", len(slices.Items))
		}
		return err
	})
}

// TestJob runs Jobs to their end, good and bad, leaves no pod with a finalizer,
// and lets one go that is suspended.
func TestJob(t *testing.T) {
	k := start(t, clock.RealClock{})
	k.namespace("test")
	ctx := t.Context()
	jobs := k.BatchV1().Jobs("test")
	create := func(name, fate string, change func(*batchv1.JobSpec)) {
		t.Helper()
		template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"test": fate}}, Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "v1"}},
		}}
		job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: batchv1.JobSpec{Template: template}}
		change(&job.Spec)
		if _, err := jobs.Create(ctx, job, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	status := func(name string, check func(batchv1.JobStatus) bool) {
		t.Helper()
		eventually(t, func() error {
			job, err := jobs.Get(ctx, name, metav1.GetOptions{})
			if err == nil && !check(job.Status) {
				err = fmt.Errorf("status %+v", job.Status)
			}
			return err
		})
	}
	has := func(s batchv1.JobStatus, t batchv1.JobConditionType) bool {
		return slices.ContainsFunc(s.Conditions, func(c batchv1.JobCondition) bool { return c.Type == t && c.Status == corev1.ConditionTrue })
	}
	create("good", "ends", func(s *batchv1.JobSpec) {
		s.CompletionMode, s.Completions, s.Parallelism = ptr.To(batchv1.IndexedCompletion), ptr.To[int32](5), ptr.To[int32](2)
	})
	status("good", func(s batchv1.JobStatus) bool {
		return has(s, batchv1.JobComplete) && s.Succeeded == 5 && s.CompletedIndexes == "0-4" && s.CompletionTime != nil
	})
	create("bad", "fails", func(s *batchv1.JobSpec) { s.BackoffLimit = ptr.To[int32](0) })
	status("bad", func(s batchv1.JobStatus) bool { return has(s, batchv1.JobFailed) && s.Failed == 1 && s.Active == 0 })
	eventually(t, func() error {
		list, err := k.CoreV1().Pods("test").List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, p := range list.Items {
			if len(p.Finalizers) > 0 {
				err = fmt.Errorf("%s keeps %v", p.Name, p.Finalizers)
			}
		}
		return err
	})
	create("idle", "", func(s *batchv1.JobSpec) { s.Completions, s.Parallelism = ptr.To[int32](3), ptr.To[int32](3) })
	status("idle", func(s batchv1.JobStatus) bool { return s.Active == 3 && ptr.Deref(s.Ready, 0) == 3 })
	for _, step := range []struct {
		suspend bool
		active  int32
	}{{true, 0}, {false, 3}} {
		if _, err := jobs.Patch(ctx, "idle", types.MergePatchType, fmt.Appendf(nil, `{"spec":{"suspend":%t}}`, step.suspend), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		status("idle", func(s batchv1.JobStatus) bool {
			return s.Active == step.active && has(s, batchv1.JobSuspended) == step.suspend && s.Failed == 0
		})
	}
	if err := jobs.Delete(ctx, "idle", metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationForeground)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		_, err := jobs.Get(ctx, "idle", metav1.GetOptions{})
		return gone(err)
	})
}
