package pods

import (
	"context"
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/quaymaster/quaymaster/core/controllers/owner"
)

// Follower tells the controllers of one kind what happens to their pods.
type Follower struct {
	// Expected is told of what shows.
	Expected *Expectations
	// Touched is called with a pod's controller, of whatever kind, when the pod
	// came, changed or went, and with its last one when it was given up.
	Touched func(namespace string, ref *metav1.OwnerReference)
	// Orphaned is called with a labelled pod that nobody controls, when it may
	// match a selector that it did not match before. nil: nobody adopts.
	Orphaned func(pod *corev1.Pod)
}

// Changed takes the events of a pod informer, in the form of loop.Handler.
func (f Follower) Changed(old, pod *corev1.Pod) {
	if old != nil && pod != nil && old.ResourceVersion == pod.ResourceVersion {
		return
	}
	last := pod
	if last == nil {
		last = old
	}
	ref := metav1.GetControllerOfNoCopy(last)
	if ref != nil {
		f.Expected.CreateObserved(ref.UID, last.Name)
		if pod == nil || pod.DeletionTimestamp != nil {
			f.Expected.DeleteObserved(ref.UID, last.UID)
		}
		f.Touched(last.Namespace, ref)
	}
	if old != nil && pod != nil {
		if was := metav1.GetControllerOfNoCopy(old); was != nil && (ref == nil || was.UID != ref.UID) {
			f.Expected.DeleteObserved(was.UID, old.UID) // no longer theirs to wait for
			f.Touched(old.Namespace, was)
		}
	}
	if ref != nil || pod == nil || len(pod.Labels) == 0 || f.Orphaned == nil {
		return
	}
	if old != nil && maps.Equal(old.Labels, pod.Labels) && metav1.GetControllerOfNoCopy(old) == nil {
		return
	}
	f.Orphaned(pod)
}

// Settler adopts and releases pods for a controller. Fresh reads the controller
// from the server.
func Settler(client kubernetes.Interface, controller metav1.Object, kind schema.GroupVersionKind, fresh func(context.Context) (metav1.Object, error)) owner.Settler[*corev1.Pod] {
	return owner.Settler[*corev1.Pod]{
		Controller: controller, Kind: kind, Fresh: fresh,
		Patch: func(ctx context.Context, pod *corev1.Pod, patch []byte) error {
			_, err := client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
			return err
		},
	}
}
