package core_test

import (
	"context"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
)

// TestHousekeeping: what upstream's controllers do around workloads.
func TestHousekeeping(t *testing.T) {
	client := coretest.Start(t, core.Options{Nodes: core.Nodes("node", 1)}).Client()
	ctx := t.Context()
	labels := map[string]string{"app": "web"}
	pod := func(annotations map[string]string, restart corev1.RestartPolicy) corev1.PodTemplateSpec {
		return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: annotations}, Spec: corev1.PodSpec{
			RestartPolicy: restart, Containers: []corev1.Container{{Name: "c", Image: "web"}},
		}}
	}

	t.Run("a budget forbids an eviction", func(t *testing.T) {
		if _, err := client.AppsV1().Deployments("default").Create(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To[int32](2), Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: pod(nil, corev1.RestartPolicyAlways),
		}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		budgets := client.PolicyV1().PodDisruptionBudgets("default")
		if _, err := budgets.Create(ctx, &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: policyv1.PodDisruptionBudgetSpec{
			MinAvailable: ptr.To(intstr.FromInt32(2)), Selector: &metav1.LabelSelector{MatchLabels: labels},
		}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		coretest.Eventually(t, "the budget's count", func(ctx context.Context) (bool, error) {
			b, err := budgets.Get(ctx, "web", metav1.GetOptions{})
			return err == nil && b.Status.CurrentHealthy == 2 && b.Status.ExpectedPods == 2, err
		})
		pods, err := client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=web"})
		if err != nil {
			t.Fatal(err)
		}
		eviction := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: pods.Items[0].Name}}
		if err := client.PolicyV1().Evictions("default").Evict(ctx, eviction); !apierrors.IsTooManyRequests(err) {
			t.Errorf("evicted below the budget: %v", err)
		}
	})

	t.Run("a claim is bound", func(t *testing.T) {
		size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
		modes := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
		if _, err := client.CoreV1().PersistentVolumes().Create(ctx, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "disk"}, Spec: corev1.PersistentVolumeSpec{
			Capacity: size, AccessModes: modes, StorageClassName: "by-hand", PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/disk"}},
		}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := client.CoreV1().PersistentVolumeClaims("default").Create(ctx, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: modes, StorageClassName: ptr.To("by-hand"), Resources: corev1.VolumeResourceRequirements{Requests: size},
		}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		coretest.Eventually(t, "the claim", func(ctx context.Context) (bool, error) {
			claim, err := client.CoreV1().PersistentVolumeClaims("default").Get(ctx, "data", metav1.GetOptions{})
			return err == nil && claim.Status.Phase == corev1.ClaimBound && claim.Spec.VolumeName == "disk", err
		})
	})

	t.Run("an unused class of volume attributes goes", func(t *testing.T) {
		classes := client.StorageV1().VolumeAttributesClasses()
		if _, err := classes.Create(ctx, &storagev1.VolumeAttributesClass{ObjectMeta: metav1.ObjectMeta{Name: "fast"}, DriverName: "none.example.com", Parameters: map[string]string{"a": "b"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := classes.Delete(ctx, "fast", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		coretest.Eventually(t, "its end", func(ctx context.Context) (bool, error) {
			_, err := classes.Get(ctx, "fast", metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return true, nil
			}
			return false, err
		})
	})

	t.Run("a finished job goes after its time", func(t *testing.T) {
		jobs := client.BatchV1().Jobs("default")
		if _, err := jobs.Create(ctx, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "once"}, Spec: batchv1.JobSpec{
			TTLSecondsAfterFinished: ptr.To[int32](0), Template: pod(map[string]string{"sim.quaymaster.dev/run-for": "0s"}, corev1.RestartPolicyNever),
		}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		coretest.Eventually(t, "its end", func(ctx context.Context) (bool, error) {
			_, err := jobs.Get(ctx, "once", metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return true, nil
			}
			return false, err
		})
	})
}
