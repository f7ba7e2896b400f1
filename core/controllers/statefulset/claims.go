package statefulset

import (
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"
)

var podKind = corev1.SchemeGroupVersion.WithKind("Pod")

// deletes says when claims go: with their set, and with a pod that is scaled away.
func deletes(set *appsv1.StatefulSet) (withSet, withPod bool) {
	policy := set.Spec.PersistentVolumeClaimRetentionPolicy
	if policy == nil {
		return false, false
	}
	const gone = appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	return policy.WhenDeleted == gone, policy.WhenScaled == gone
}

// names reports that the reference is to an object of that name, whichever of
// those that had it.
func names(ref metav1.OwnerReference, object metav1.Object, kind schema.GroupVersionKind) bool {
	return ref.APIVersion == kind.GroupVersion().String() && ref.Kind == kind.Kind && ref.Name == object.GetName()
}

// stale reports that the claim is owned by an earlier object of that name.
func stale(claim *corev1.PersistentVolumeClaim, object metav1.Object, kind schema.GroupVersionKind) bool {
	return slices.ContainsFunc(claim.OwnerReferences, func(ref metav1.OwnerReference) bool {
		return names(ref, object, kind) && ref.UID != object.GetUID()
	})
}

// owners returns the claim's owners by the set's retention policy, and whether
// they differ from those it has. Of set and pod one owns it at most: the set,
// so that it goes with it, or the pod that is scaled away. A claim of an
// earlier set or pod of the name is not touched; one that somebody else
// controls is left to them (foreign).
func owners(set *appsv1.StatefulSet, pod *corev1.Pod, ordinal int, claim *corev1.PersistentVolumeClaim) (refs []metav1.OwnerReference, differ, foreign bool) {
	if stale(claim, set, kind) || stale(claim, pod, podKind) {
		return nil, false, false
	}
	withSet, withPod := deletes(set)
	owned := map[string]bool{}
	loose := false // owned by us without control
	for _, ref := range claim.OwnerReferences {
		controls := ptr.Deref(ref.Controller, false)
		switch {
		case names(ref, set, kind):
			owned["set"] = true
			loose = loose || !controls
		case names(ref, pod, podKind):
			owned["pod"] = true
			loose = loose || !controls
		default:
			refs = append(refs, ref)
			foreign = foreign || controls
		}
	}
	if withSet || withPod {
		if foreign {
			return refs, len(owned) > 0, true
		}
	} else {
		foreign = false // whoever controls it is no concern of a policy that retains
	}
	condemned := !inRange(set, ordinal)
	wantPod := withPod && condemned
	wantSet := withSet && !wantPod
	if wantSet {
		refs = append(refs, *metav1.NewControllerRef(set, kind))
	}
	if wantPod {
		refs = append(refs, *metav1.NewControllerRef(pod, podKind))
	}
	return refs, loose || owned["set"] != wantSet || owned["pod"] != wantPod, false
}
