package core_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/quaymaster/quaymaster/core"
	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	"github.com/quaymaster/quaymaster/core/coretest"
)

func machine(name, cpu string) core.Node {
	return core.Node{Name: name, Capacity: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse("4Gi"), corev1.ResourcePods: resource.MustParse("10")}}
}

// admitted creates the pod once the service account of its namespace is there.
func admitted(t *testing.T, e *core.Engine, pod *corev1.Pod) {
	t.Helper()
	coretest.Eventually(t, "the admission of "+pod.Name, func(ctx context.Context) (bool, error) {
		_, err := e.Client().CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{})
		if apierrors.IsForbidden(err) {
			return false, nil
		}
		return err == nil, err
	})
}

// foreseen creates the pod behind a gate, once the service account is there, and waits
// until the scheduler would decide as it must: until it knows the nodes, the profile
// and the policies.
func foreseen(t *testing.T, e *core.Engine, pod *corev1.Pod, holds func(*decisionv1alpha1.Decision) bool) {
	t.Helper()
	pod.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/wait"}}
	admitted(t, e, pod)
	coretest.Eventually(t, "the scheduler to know what it needs for "+pod.Name, func(ctx context.Context) (bool, error) {
		d, err := e.API().Decisions("default").Get(ctx, pod.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err != nil && strings.Contains(err.Error(), "policy is not loaded") {
			return false, nil
		}
		return err == nil && holds(d), err
	})
}

// open lets a pod of foreseen be scheduled.
func open(t *testing.T, e *core.Engine, name string) {
	t.Helper()
	if _, err := e.Client().CoreV1().Pods("default").Patch(t.Context(), name, types.MergePatchType, []byte(`{"spec":{"schedulingGates":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// Pods of a gang run together or not at all, through the API and the store.
func TestGang(t *testing.T) {
	e := start(t, core.Options{Nodes: []core.Node{machine("a", "1"), machine("b", "1")}})
	member := func(i int, cpu string) *corev1.Pod {
		pod := asking(fmt.Sprintf("member-%d", i), "", cpu)
		pod.Labels = map[string]string{"scheduling.quaymaster.dev/pod-group": "ring"}
		pod.Annotations = map[string]string{"scheduling.quaymaster.dev/min-count": "3"}
		return pod
	}
	pods := e.Client().CoreV1().Pods("default")
	for i := range 2 {
		admitted(t, e, member(i, "600m"))
	}
	for i := range 2 {
		coretest.Eventually(t, "a member to wait for the others", func(ctx context.Context) (bool, error) {
			pod, err := pods.Get(ctx, fmt.Sprintf("member-%d", i), metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			for _, c := range pod.Status.Conditions {
				if c.Type == corev1.PodScheduled && c.Message == "waiting for minCount pods from a gang to appear in scheduling queue" {
					return true, nil
				}
			}
			return false, nil
		})
	}
	admitted(t, e, member(2, "300m"))
	for i := range 3 {
		coretest.Eventually(t, "the gang to run", func(ctx context.Context) (bool, error) {
			pod, err := pods.Get(ctx, fmt.Sprintf("member-%d", i), metav1.GetOptions{})
			return err == nil && pod.Status.Phase == corev1.PodRunning, err
		})
	}
}

// A claim that waits for its first consumer is told the pod's node, through the
// API; once it is bound, so is the pod.
func TestClaimIsToldTheNode(t *testing.T) {
	e := start(t, core.Options{Nodes: []core.Node{machine("only", "1")}})
	client := e.Client()
	mode, class := storagev1.VolumeBindingWaitForFirstConsumer, "waits"
	if _, err := client.StorageV1().StorageClasses().Create(t.Context(), &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: class},
		Provisioner: "example.com/disks", VolumeBindingMode: &mode}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	claims := client.CoreV1().PersistentVolumeClaims("default")
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: corev1.PersistentVolumeClaimSpec{
		StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}}}
	if _, err := claims.Create(t.Context(), claim, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod := asking("reader", "", "100m")
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
	admitted(t, e, pod)
	coretest.Eventually(t, "the claim to be told the node", func(ctx context.Context) (bool, error) {
		c, err := claims.Get(ctx, "data", metav1.GetOptions{})
		return err == nil && c.Annotations["volume.kubernetes.io/selected-node"] == "only", err
	})
	bind(t, e, "data")
	coretest.Eventually(t, "the pod to have its node", func(ctx context.Context) (bool, error) {
		pod, err := client.CoreV1().Pods("default").Get(ctx, "reader", metav1.GetOptions{})
		return err == nil && pod.Spec.NodeName == "only", err
	})
}

// bind gives the claim a volume as a provisioner and the controller of volumes do.
func bind(t *testing.T, e *core.Engine, name string) {
	t.Helper()
	claims := e.Client().CoreV1().PersistentVolumeClaims("default")
	claim, err := claims.Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "made"}, Spec: corev1.PersistentVolumeSpec{
		Capacity: claim.Spec.Resources.Requests, AccessModes: claim.Spec.AccessModes, StorageClassName: *claim.Spec.StorageClassName,
		ClaimRef:               &corev1.ObjectReference{Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID},
		PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/tmp/made"}}}}
	if _, err := e.Client().CoreV1().PersistentVolumes().Create(t.Context(), volume, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	err = wait.PollUntilContextCancel(t.Context(), 10e6, true, func(ctx context.Context) (bool, error) {
		claim, err := claims.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		claim.Spec.VolumeName = "made"
		metav1.SetMetaDataAnnotation(&claim.ObjectMeta, "pv.kubernetes.io/bind-completed", "yes")
		_, err = claims.Update(ctx, claim, metav1.UpdateOptions{})
		if apierrors.IsConflict(err) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
}
