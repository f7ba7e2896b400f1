package cluster

import (
	"fmt"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
)

// DeadlineOf is when the pod, that was created then, must have a node, or zero.
func (p *Profile) DeadlineOf(pod *v1.Pod, created time.Time) time.Time {
	after := p.Deadline
	if n, err := strconv.ParseInt(pod.Annotations[schedulingv1alpha1.DeadlineAnnotation], 10, 32); err == nil && n > 0 {
		after = time.Duration(n) * time.Second
	}
	if after == 0 {
		return time.Time{}
	}
	return created.Add(after)
}

// DeadlineMessage is what a pod says that had no node by its deadline; last is
// why, "" when it was not tried.
func DeadlineMessage(deadline time.Time, last string) string {
	if last == "" {
		last = "it has not been tried"
	}
	return fmt.Sprintf("no node by the scheduling deadline %s: %s", deadline.UTC().Format(time.RFC3339), last)
}

// MinCountOf is how many pods a gang of our label needs by this pod's annotation;
// one that does not parse, or is below 1, is 1.
func MinCountOf(pod *v1.Pod) int {
	n, err := strconv.Atoi(pod.Annotations[schedulingv1alpha1.MinCountAnnotation])
	if err != nil {
		return 1
	}
	return max(n, 1)
}
