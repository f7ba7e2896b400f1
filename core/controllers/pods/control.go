package pods

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"

	"github.com/quaymaster/quaymaster/core/controllers/loop"
)

// Control writes pods. The engine plugs in the registry itself, which spares
// thousands of creates the trip through HTTP; calls come from many goroutines.
type Control interface {
	// Create stores the pod, which has a name and which the callee may keep and change.
	Create(ctx context.Context, pod *corev1.Pod) error
	Delete(ctx context.Context, namespace, name string, options metav1.DeleteOptions) error
}

// Through is the Control that goes through a client.
func Through(client kubernetes.Interface) Control { return throughClient{client} }

type throughClient struct{ kubernetes.Interface }

func (c throughClient) Create(ctx context.Context, pod *corev1.Pod) error {
	_, err := c.CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
	return err
}

func (c throughClient) Delete(ctx context.Context, namespace, name string, options metav1.DeleteOptions) error {
	return c.CoreV1().Pods(namespace).Delete(ctx, name, options)
}

// Writer makes and deletes the pods of one kind of controller, tells the
// expectations before and the event recorder after.
type Writer struct {
	Control  Control
	Expected *Expectations
	Recorder record.EventRecorder
}

// told is of how many successes of one call an event is made. The recorder lets
// 25 of a burst through, and considering the rest costs as much as a create.
const told = 30

// Create makes n pods with next, starting with one and doubling the batch while
// all succeed: what fails for one mostly fails for all, such as a quota. It
// returns the first error; a namespace that is being terminated is none.
func (w *Writer) Create(ctx context.Context, controller runtime.Object, uid types.UID, n int, next func(i int) *corev1.Pod) error {
	return Batch(ctx, n, func(i int) error {
		pod := next(i)
		name := pod.Name
		w.Expected.Create(uid, name)
		err := w.Control.Create(ctx, pod)
		if apierrors.IsAlreadyExists(err) && pod.GenerateName != "" { // one in 14 million by chance
			w.Expected.CreateObserved(uid, name)
			pod = next(i)
			name = pod.Name
			w.Expected.Create(uid, name)
			err = w.Control.Create(ctx, pod)
		}
		if err != nil {
			w.Expected.CreateObserved(uid, name)
			if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
				return nil
			}
			w.Recorder.Eventf(controller, corev1.EventTypeWarning, "FailedCreate", "Error creating: %v", err)
			return err
		}
		if i < told {
			w.Recorder.Eventf(controller, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: %v", name)
		}
		return nil
	})
}

// Delete deletes the pods, all of which it tries, and returns the first error.
// Pods that are gone are no error.
func (w *Writer) Delete(ctx context.Context, controller runtime.Object, uid types.UID, pods []*corev1.Pod) error {
	return loop.Each(ctx, len(pods), func(i int) error {
		pod := pods[i]
		w.Expected.Delete(uid, pod.UID)
		err := w.Control.Delete(ctx, pod.Namespace, pod.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}})
		switch {
		case err == nil:
			if i < told {
				w.Recorder.Eventf(controller, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: %v", pod.Name)
			}
			return nil
		case apierrors.IsNotFound(err), apierrors.IsConflict(err): // gone, or replaced by another
			w.Expected.DeleteObserved(uid, pod.UID)
			return nil
		}
		w.Expected.DeleteObserved(uid, pod.UID)
		w.Recorder.Eventf(controller, corev1.EventTypeWarning, "FailedDelete", "Error deleting: %v", err)
		return fmt.Errorf("unable to delete pods: %w", err)
	})
}

// Batch calls f with 0 to n-1 in batches of 1, 2, 4 …, each in parallel and
// only if the one before had no error.
func Batch(ctx context.Context, n int, f func(int) error) error {
	for done, size := 0, 1; done < n; done, size = done+size, 2*size {
		size = min(size, n-done)
		if err := loop.Each(ctx, size, func(i int) error { return f(done + i) }); err != nil {
			return err
		}
	}
	return nil
}

// PatchStatus writes the difference between two statuses of the pod, and fails
// if the pod was replaced by another. It touches nothing else of the status.
func PatchStatus(ctx context.Context, client kubernetes.Interface, pod *corev1.Pod, status corev1.PodStatus) error {
	before, err := json.Marshal(corev1.Pod{Status: pod.Status})
	if err != nil {
		return fmt.Errorf("encode status of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	after, err := json.Marshal(corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: pod.UID}, Status: status})
	if err != nil {
		return fmt.Errorf("encode status of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Pod{})
	if err != nil {
		return fmt.Errorf("status patch of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	_, err = client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// SetCondition adds the condition to the status or replaces the one of its
// type, with the transition time moved only if the status changes. It reports
// whether anything changed.
func SetCondition(status *corev1.PodStatus, c corev1.PodCondition, now metav1.Time) bool {
	c.LastTransitionTime = now
	for i := range status.Conditions {
		old := &status.Conditions[i]
		if old.Type != c.Type {
			continue
		}
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		if *old == c {
			return false
		}
		*old = c
		return true
	}
	status.Conditions = append(status.Conditions, c)
	return true
}
