// Package pods holds what the workload controllers share about pods: what makes
// one active, ready or available, how one is made from a template, how many are
// made at once, and which creates and deletes the informers have yet to show.
package pods

import (
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/rand"
)

// Terminal reports that the pod's containers have ended for good.
func Terminal(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// Active reports that the pod counts as a replica: neither ended nor being deleted.
func Active(p *corev1.Pod) bool { return !Terminal(p) && p.DeletionTimestamp == nil }

// Terminating reports that the pod is being deleted and still runs.
func Terminating(p *corev1.Pod) bool { return !Terminal(p) && p.DeletionTimestamp != nil }

// Condition returns the pod's condition of the type, or nil. It points into the
// pod.
func Condition(p *corev1.Pod, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == t {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

// Ready reports the pod's Ready condition.
func Ready(p *corev1.Pod) bool {
	c := Condition(p, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// AvailableIn returns how long the pod must stay ready until it is available: 0
// if it is, negative if that cannot be said (not ready, or since when unknown).
func AvailableIn(p *corev1.Pod, minReadySeconds int32, now time.Time) time.Duration {
	c := Condition(p, corev1.PodReady)
	switch {
	case c == nil || c.Status != corev1.ConditionTrue:
		return -1
	case minReadySeconds == 0:
		return 0
	case c.LastTransitionTime.IsZero():
		return -1
	}
	return max(0, c.LastTransitionTime.Add(time.Duration(minReadySeconds)*time.Second).Sub(now))
}

// FromTemplate makes a pod of the controller, in its namespace, with a name of
// its own: the controller's, a dash and five random characters, as the server
// would have made from generateName. Knowing it before the create lets the
// informer's event be matched to the create without a race.
func FromTemplate(template *corev1.PodTemplateSpec, controller metav1.Object, kind schema.GroupVersionKind) *corev1.Pod {
	prefix := NamePrefix(controller.GetName())
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name:            RandomName(prefix),
			GenerateName:    prefix,
			Namespace:       controller.GetNamespace(),
			Labels:          maps.Clone(template.Labels),
			Annotations:     maps.Clone(template.Annotations),
			Finalizers:      slices.Clone(template.Finalizers),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(controller, kind)},
		},
	}
	template.Spec.DeepCopyInto(&pod.Spec)
	return pod
}

// NamePrefix is the generateName of a controller's pods.
func NamePrefix(controller string) string {
	if prefix := controller + "-"; len(apivalidation.NameIsDNSSubdomain(prefix, true)) == 0 {
		return prefix
	}
	return controller
}

// RandomName appends five random characters, as the server does, and cuts the
// prefix so that the name has at most 63 characters.
func RandomName(prefix string) string {
	const random, longest = 5, 63
	if len(prefix) > longest-random {
		prefix = prefix[:longest-random]
	}
	return prefix + rand.String(random)
}
