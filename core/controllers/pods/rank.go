package pods

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// SortForDeletion puts first the pods whose loss costs least, by upstream's
// order: without a node; pending, unknown, running; not ready; lower deletion
// cost; more companions on the node (onNode counts them); ready for a shorter
// time; more restarts; younger. Ages compare by the logarithm of base two, and
// the uid breaks the tie, so that among pods of much the same age the choice
// does not always fall on the newest.
func SortForDeletion(pods []*corev1.Pod, onNode map[string]int, now time.Time) {
	keys := make([]deletionKey, len(pods))
	for i, p := range pods {
		keys[i] = newDeletionKey(p, onNode[p.Spec.NodeName], now)
	}
	slices.SortStableFunc(keys, deletionKey.compare)
	for i := range keys {
		pods[i] = keys[i].pod
	}
}

type deletionKey struct {
	pod                *corev1.Pod
	assigned, ready    bool
	phase, cost        int
	companions         int
	readyAge, age      int64 // logarithm in base 2 of nanoseconds; unknown sorts as youngest
	readySince         metav1.Time
	restarts, sidecars int
}

// unknownAge is below every age: upstream has the zero time go first.
const unknownAge = math.MinInt64

func newDeletionKey(p *corev1.Pod, companions int, now time.Time) deletionKey {
	k := deletionKey{pod: p, assigned: p.Spec.NodeName != "", companions: companions, age: logAge(p.CreationTimestamp, now), readyAge: unknownAge}
	switch p.Status.Phase {
	case corev1.PodUnknown:
		k.phase = 1
	case corev1.PodRunning:
		k.phase = 2
	}
	if c := Condition(p, corev1.PodReady); c != nil && c.Status == corev1.ConditionTrue {
		k.ready, k.readySince, k.readyAge = true, c.LastTransitionTime, logAge(c.LastTransitionTime, now)
	}
	if cost, err := strconv.ParseInt(p.Annotations[corev1.PodDeletionCost], 10, 32); err == nil && validCost(p.Annotations[corev1.PodDeletionCost]) {
		k.cost = int(cost)
	}
	for _, c := range p.Status.ContainerStatuses {
		k.restarts = max(k.restarts, int(c.RestartCount))
	}
	for _, c := range p.Status.InitContainerStatuses {
		if isSidecar(p, c.Name) {
			k.sidecars = max(k.sidecars, int(c.RestartCount))
		}
	}
	return k
}

// validCost refuses what upstream refuses: a plus sign and leading zeros.
func validCost(s string) bool {
	return s == "0" || s != "" && (s[0] == '-' || '1' <= s[0] && s[0] <= '9')
}

func isSidecar(p *corev1.Pod, name string) bool {
	return slices.ContainsFunc(p.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == name && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	})
}

func logAge(since metav1.Time, now time.Time) int64 {
	if since.IsZero() {
		return unknownAge
	}
	if age := now.Sub(since.Time); age > 0 {
		return int64(math.Log2(float64(age)))
	}
	return -1
}

func (a deletionKey) compare(b deletionKey) int {
	if c := cmp.Or(
		order(a.assigned, b.assigned),
		cmp.Compare(a.phase, b.phase),
		order(a.ready, b.ready),
		cmp.Compare(a.cost, b.cost),
		cmp.Compare(b.companions, a.companions),
	); c != 0 {
		return c
	}
	if a.ready && !a.readySince.Equal(&b.readySince) {
		return cmp.Or(cmp.Compare(a.readyAge, b.readyAge), cmp.Compare(a.pod.UID, b.pod.UID))
	}
	if c := cmp.Or(cmp.Compare(b.restarts, a.restarts), cmp.Compare(b.sidecars, a.sidecars)); c != 0 {
		return c
	}
	if !a.pod.CreationTimestamp.Equal(&b.pod.CreationTimestamp) {
		return cmp.Or(cmp.Compare(a.age, b.age), cmp.Compare(a.pod.UID, b.pod.UID))
	}
	return 0
}

// order sorts false before true.
func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
