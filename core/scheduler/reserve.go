package scheduler

import (
	"context"
	"errors"
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// ErrNoRoom is why a bind by another scheduler is refused: with what is bound, and
// with what is decided and not bound yet, the node would refuse the pod.
var ErrNoRoom = errors.New("the node has no room for the pod any more")

// Reserve counts a pod of another scheduler on the node that it is about to be bound
// to, between two decisions, so that none of them gives its room away. It is
// [ErrNoRoom] when the node has not as much; see [cluster.State.Crowded]. Done is to
// be called, once, with whether the pod was bound. A pod of a scheduler name that is
// served here is not looked at: who binds it by hand has his way.
func (s *Scheduler) Reserve(ctx context.Context, pod types.NamespacedName, node string) (done func(bound bool), err error) {
	done = func(bool) {}
	object, err := s.pods.Pods(pod.Namespace).Get(pod.Name)
	if err != nil { // the other scheduler may have heard of it first
		object, err = s.options.Client.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
	}
	if err != nil {
		return done, nil //nolint:nilerr // the storage says what there is to say
	}
	var reserved *v1.Pod // the loop's; here to be read when it has answered
	var lacks []string
	if err := s.ask(ctx, func() {
		if object.Spec.NodeName != "" || s.profiles[object.Spec.SchedulerName] != nil || s.state.Node(node) == nil || s.state.Placed(pod) != nil {
			return
		}
		if lacks = s.state.Crowded(object, node); lacks != nil {
			return
		}
		bound := *object
		bound.Spec.NodeName = node
		s.state.SetPod(&bound)
		reserved = &bound
		s.reserved[pod] = reserved
	}); err != nil {
		s.inbox.put(message{call: func() { s.unreserve(pod, reserved) }}) // should it be done yet
		return done, fmt.Errorf("reserve node %q for pod %s: %w", node, pod, err)
	}
	switch {
	case lacks != nil:
		return done, fmt.Errorf("pod %s, node %q: %w: %s", pod, node, ErrNoRoom, strings.Join(lacks, ", "))
	case reserved == nil:
		return done, nil
	}
	return func(bound bool) {
		if !bound {
			s.inbox.put(message{call: func() { s.unreserve(pod, reserved) }})
		}
	}, nil
}

// unreserve gives back what no newer version of the pod has replaced.
func (s *Scheduler) unreserve(key types.NamespacedName, bound *v1.Pod) {
	if bound != nil && s.reserved[key] == bound {
		delete(s.reserved, key)
		s.state.RemovePod(key)
	}
}

// reserves says that the version of a pod is from before its bind, under way, and
// not to be acted on; any other ends what was reserved for it.
func (s *Scheduler) reserves(pod *v1.Pod) bool {
	key := types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
	bound := s.reserved[key]
	if bound != nil && bound.UID == pod.UID && pod.Spec.NodeName == "" && pod.DeletionTimestamp == nil && !cluster.Ended(pod) &&
		s.profiles[pod.Spec.SchedulerName] == nil {
		return true
	}
	delete(s.reserved, key)
	return false
}
