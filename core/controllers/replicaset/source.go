package replicaset

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"

	"github.com/quaymaster/quaymaster/core/controllers/loop"
	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

// source is where sets come from. ReplicationControllers are ReplicaSets by an
// older name: they go through the same plan, in the shape of a ReplicaSet.
type source struct {
	name     string // upstream's, without "-controller"
	kind     schema.GroupVersionKind
	informer cache.SharedIndexInformer
	// set returns an object of the informer as a set, nil if it is none. It
	// shares memory with the object.
	set          func(obj any) *appsv1.ReplicaSet
	fresh        func(ctx context.Context, namespace, name string) (metav1.Object, error)
	updateStatus func(ctx context.Context, object runtime.Object, status appsv1.ReplicaSetStatus) error
}

func replicaSets(env loop.Env) source {
	return source{
		name: "replicaset", kind: appsv1.SchemeGroupVersion.WithKind("ReplicaSet"),
		informer: env.Informers.Apps().V1().ReplicaSets().Informer(),
		set: func(obj any) *appsv1.ReplicaSet {
			rs, _ := obj.(*appsv1.ReplicaSet)
			return rs
		},
		fresh: func(ctx context.Context, namespace, name string) (metav1.Object, error) {
			return env.Client.AppsV1().ReplicaSets(namespace).Get(ctx, name, metav1.GetOptions{})
		},
		updateStatus: func(ctx context.Context, object runtime.Object, status appsv1.ReplicaSetStatus) error {
			updated, ok := object.DeepCopyObject().(*appsv1.ReplicaSet)
			if !ok {
				return nil
			}
			updated.Status = status
			_, err := env.Client.AppsV1().ReplicaSets(updated.Namespace).UpdateStatus(ctx, updated, metav1.UpdateOptions{})
			return err
		},
	}
}

// NewReplicationController makes the controller of ReplicationControllers.
func NewReplicationController(env loop.Env, control pods.Control) (*Controller, error) {
	return newController(env, control, source{
		name: "replicationcontroller", kind: corev1.SchemeGroupVersion.WithKind("ReplicationController"),
		informer: env.Informers.Core().V1().ReplicationControllers().Informer(),
		set: func(obj any) *appsv1.ReplicaSet {
			if rc, ok := obj.(*corev1.ReplicationController); ok {
				return fromController(rc)
			}
			return nil
		},
		fresh: func(ctx context.Context, namespace, name string) (metav1.Object, error) {
			return env.Client.CoreV1().ReplicationControllers(namespace).Get(ctx, name, metav1.GetOptions{})
		},
		updateStatus: func(ctx context.Context, object runtime.Object, status appsv1.ReplicaSetStatus) error {
			rc, ok := object.(*corev1.ReplicationController)
			if !ok {
				return nil
			}
			next := toControllerStatus(status)
			if equality.Semantic.DeepEqual(next, rc.Status) {
				return nil // what differs has no place in this kind
			}
			updated := rc.DeepCopy()
			updated.Status = next
			_, err := env.Client.CoreV1().ReplicationControllers(rc.Namespace).UpdateStatus(ctx, updated, metav1.UpdateOptions{})
			return err
		},
	})
}

// fromController shares the metadata and the template with rc.
func fromController(rc *corev1.ReplicationController) *appsv1.ReplicaSet {
	rs := &appsv1.ReplicaSet{
		ObjectMeta: rc.ObjectMeta,
		Spec: appsv1.ReplicaSetSpec{
			Replicas: rc.Spec.Replicas, MinReadySeconds: rc.Spec.MinReadySeconds,
			Selector: &metav1.LabelSelector{MatchLabels: rc.Spec.Selector},
		},
		Status: appsv1.ReplicaSetStatus{
			Replicas: rc.Status.Replicas, FullyLabeledReplicas: rc.Status.FullyLabeledReplicas, ReadyReplicas: rc.Status.ReadyReplicas,
			AvailableReplicas: rc.Status.AvailableReplicas, ObservedGeneration: rc.Status.ObservedGeneration,
		},
	}
	if rc.Spec.Template != nil {
		rs.Spec.Template = *rc.Spec.Template
	}
	for _, c := range rc.Status.Conditions {
		rs.Status.Conditions = append(rs.Status.Conditions, appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetConditionType(c.Type), Status: c.Status, LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message,
		})
	}
	return rs
}

func toControllerStatus(s appsv1.ReplicaSetStatus) corev1.ReplicationControllerStatus {
	status := corev1.ReplicationControllerStatus{
		Replicas: s.Replicas, FullyLabeledReplicas: s.FullyLabeledReplicas, ReadyReplicas: s.ReadyReplicas,
		AvailableReplicas: s.AvailableReplicas, ObservedGeneration: s.ObservedGeneration,
	}
	for _, c := range s.Conditions {
		status.Conditions = append(status.Conditions, corev1.ReplicationControllerCondition{
			Type: corev1.ReplicationControllerConditionType(c.Type), Status: c.Status, LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message,
		})
	}
	return status
}
