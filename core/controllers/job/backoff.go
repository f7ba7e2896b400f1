package job

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

const (
	firstPause   = 10 * time.Second
	longestPause = 10 * time.Minute
)

// Backoff is how the last pods of a Job ended.
type Backoff struct {
	Failures int       // since the last success
	Last     time.Time // of the failures
}

// after returns the record with more pods that have ended.
func (b Backoff) after(succeeded, failed []*corev1.Pod) Backoff {
	var success time.Time
	for _, p := range succeeded {
		if at := endedAt(p); at.After(success) {
			success = at
		}
	}
	if len(succeeded) > 0 {
		b = Backoff{}
	}
	for _, p := range failed {
		if at := endedAt(p); len(succeeded) == 0 || at.After(success) {
			b.Failures++
			if at.After(b.Last) {
				b.Last = at
			}
		}
	}
	return b
}

// remaining is how long no pod is made: 10 s after one failure, doubled with
// each more up to ten minutes.
func (b Backoff) remaining(now time.Time) time.Duration {
	if b.Failures == 0 {
		return 0
	}
	pause := firstPause
	for range b.Failures - 1 {
		if pause *= 2; pause >= longestPause {
			pause = longestPause
			break
		}
	}
	return max(0, pause-now.Sub(b.Last))
}

// endedAt is when the pod ended: by its containers, by its Ready condition, by
// its deletion, or, if none of these says, when it was made.
func endedAt(p *corev1.Pod) time.Time {
	if at := lastExit(p); !at.IsZero() {
		return at
	}
	if c := pods.Condition(p, corev1.PodReady); c != nil && c.Status == corev1.ConditionFalse && !c.LastTransitionTime.IsZero() {
		return c.LastTransitionTime.Time
	}
	if p.DeletionTimestamp != nil {
		grace := int64(0)
		if p.DeletionGracePeriodSeconds != nil {
			grace = *p.DeletionGracePeriodSeconds
		}
		return p.DeletionTimestamp.Add(-time.Duration(grace) * time.Second)
	}
	return p.CreationTimestamp.Time
}

// lastExit is zero unless all containers and sidecars have ended.
func lastExit(p *corev1.Pod) (last time.Time) {
	statuses := slices.Clone(p.Status.ContainerStatuses)
	for _, s := range p.Status.InitContainerStatuses {
		if slices.ContainsFunc(p.Spec.InitContainers, func(c corev1.Container) bool {
			return c.Name == s.Name && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		}) {
			statuses = append(statuses, s)
		}
	}
	for _, s := range statuses {
		if s.State.Terminated == nil || s.State.Terminated.FinishedAt.IsZero() {
			return time.Time{}
		}
		if at := s.State.Terminated.FinishedAt.Time; at.After(last) {
			last = at
		}
	}
	return last
}
