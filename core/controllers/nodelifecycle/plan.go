// Package nodelifecycle watches over nodes: it declares those unknown that have
// stopped reporting, turns their conditions into taints, and paces by zone how
// fast the taints that evict are set.
package nodelifecycle

import (
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The limits are upstream's defaults.
const (
	period         = 5 * time.Second  // between looks
	grace          = 50 * time.Second // without a sign of life
	startupGrace   = 60 * time.Second // the same, before the first status
	evictionQPS    = 0.1              // nodes a second and zone that begin to evict
	reducedQPS     = 0.01             // the same in a large zone that is partly down
	largeZone      = 50               // nodes
	unhealthyShare = 0.55             // of a zone's nodes that make it partly down
)

// Health is what is remembered of a node between looks. Times of heartbeats are
// never compared with the clock here, as the node's may be off: what counts is
// when a new one was seen.
type Health struct {
	Seen      time.Time // the last sign of life, by the clock here
	HasReady  bool
	Heartbeat metav1.Time
	Renewed   *metav1.MicroTime // of the lease
}

// Verdict is the outcome of a look.
type Verdict struct {
	Health Health
	// Conditions are the node's next ones, nil if they stay.
	Conditions []corev1.NodeCondition
	// Before and After are the status of the Ready condition; After is empty if
	// the node has none yet.
	Before, After corev1.ConditionStatus
}

// Judge looks at a node. Was is what the last verdict left, nil for a new node;
// lease may be nil.
func Judge(was *Health, node *corev1.Node, lease *coordinationv1.Lease, now time.Time) Verdict {
	ready := condition(node, corev1.NodeReady)
	v := Verdict{Before: corev1.ConditionUnknown}
	h, patience := &v.Health, grace
	if ready == nil {
		patience = startupGrace
	} else {
		v.Before, v.After = ready.Status, ready.Status
		h.HasReady, h.Heartbeat = true, ready.LastHeartbeatTime
	}
	switch {
	case was == nil && ready == nil:
		h.Seen = node.CreationTimestamp.Time
	case was == nil, was.HasReady != h.HasReady, !was.Heartbeat.Equal(&h.Heartbeat):
		h.Seen = now
	default:
		h.Seen = was.Seen
	}
	if was != nil {
		h.Renewed = was.Renewed
	}
	if lease != nil && lease.Spec.RenewTime != nil && (h.Renewed == nil || h.Renewed.Before(lease.Spec.RenewTime)) {
		h.Renewed, h.Seen = lease.Spec.RenewTime, now
	}
	if !now.After(h.Seen.Add(patience)) {
		return v
	}
	if ready == nil || ready.Status != corev1.ConditionUnknown {
		v.Conditions = unknown(node, now)
	}
	v.After = corev1.ConditionUnknown
	return v
}

// unknown is the node's conditions with those that its agent reports unknown.
func unknown(node *corev1.Node, now time.Time) []corev1.NodeCondition {
	next := node.DeepCopy()
	for _, t := range []corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure} {
		c := condition(next, t)
		switch {
		case c == nil:
			next.Status.Conditions = append(next.Status.Conditions, corev1.NodeCondition{
				Type: t, Status: corev1.ConditionUnknown, Reason: "NodeStatusNeverUpdated", Message: "Kubelet never posted node status.",
				LastHeartbeatTime: node.CreationTimestamp, LastTransitionTime: metav1.NewTime(now),
			})
		case c.Status != corev1.ConditionUnknown:
			c.Status, c.Reason, c.Message = corev1.ConditionUnknown, "NodeStatusUnknown", "Kubelet stopped posting node status."
			c.LastTransitionTime = metav1.NewTime(now)
		}
	}
	return next.Status.Conditions
}

func condition(node *corev1.Node, t corev1.NodeConditionType) *corev1.NodeCondition {
	for i := range node.Status.Conditions {
		if node.Status.Conditions[i].Type == t {
			return &node.Status.Conditions[i]
		}
	}
	return nil
}

// A node whose agent says that pods do not start there (condition PodStartsFail) is avoided while some do not, and
// gets no more pods while nearly none does.
const (
	ConditionPodStarts corev1.NodeConditionType = "PodStartsFail"
	TaintPodStarts     string                   = "quaymaster.dev/pod-starts-fail"
)

// taintOf maps conditions to the taints that they are shown as.
var taintOf = map[corev1.NodeConditionType]map[corev1.ConditionStatus]string{
	corev1.NodeReady: {
		corev1.ConditionFalse:   corev1.TaintNodeNotReady,
		corev1.ConditionUnknown: corev1.TaintNodeUnreachable,
	},
	corev1.NodeMemoryPressure:     {corev1.ConditionTrue: corev1.TaintNodeMemoryPressure},
	corev1.NodeDiskPressure:       {corev1.ConditionTrue: corev1.TaintNodeDiskPressure},
	corev1.NodeNetworkUnavailable: {corev1.ConditionTrue: corev1.TaintNodeNetworkUnavailable},
	corev1.NodePIDPressure:        {corev1.ConditionTrue: corev1.TaintNodePIDPressure},
	ConditionPodStarts:            {corev1.ConditionUnknown: TaintPodStarts, corev1.ConditionTrue: TaintPodStarts},
}

var managedKeys = []string{
	corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable, corev1.TaintNodeMemoryPressure, corev1.TaintNodeDiskPressure,
	corev1.TaintNodeNetworkUnavailable, corev1.TaintNodePIDPressure, corev1.TaintNodeUnschedulable,
	TaintPodStarts,
}

// evictingKeys are those that are also set with NoExecute.
var evictingKeys = []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable}

// Permit is what a node may do about its NoExecute taint.
type Permit int

// The permits.
const (
	Keep  Permit = iota // swap one for the other or remove it, but set none anew
	Grant               // set one
	Clear               // remove it, whatever the node's state: the fault is not the nodes'
)

// Taints returns the node's next taints and whether they differ from its
// present ones, and whether it waits for a Grant. Foreign taints stay as they
// are, in their order.
func Taints(node *corev1.Node, permit Permit, now time.Time) (next []corev1.Taint, changed, waits bool) {
	var want []corev1.Taint
	evict := ""
	for _, c := range node.Status.Conditions {
		if key := taintOf[c.Type][c.Status]; key != "" {
			effect := corev1.TaintEffectNoSchedule
			if c.Type == ConditionPodStarts && c.Status == corev1.ConditionUnknown {
				effect = corev1.TaintEffectPreferNoSchedule
			}
			want = append(want, corev1.Taint{Key: key, Effect: effect})
			if c.Type == corev1.NodeReady {
				evict = key
			}
		}
	}
	if node.Spec.Unschedulable {
		want = append(want, corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule})
	}
	evicting := slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return isManaged(&t) && t.Effect == corev1.TaintEffectNoExecute })
	switch {
	case evict == "" || permit == Clear:
	case evicting || permit == Grant:
		want = append(want, corev1.Taint{Key: evict, Effect: corev1.TaintEffectNoExecute})
	default:
		waits = true
	}
	for _, t := range node.Spec.Taints {
		i := slices.IndexFunc(want, func(w corev1.Taint) bool { return w.MatchTaint(&t) })
		switch {
		case i >= 0:
			want = slices.Delete(want, i, i+1)
			next = append(next, t)
		case isManaged(&t):
			changed = true
		default:
			next = append(next, t)
		}
	}
	for _, t := range want {
		at := metav1.NewTime(now)
		t.TimeAdded = &at
		next, changed = append(next, t), true
	}
	return next, changed, waits
}

func isManaged(t *corev1.Taint) bool {
	return t.Effect == corev1.TaintEffectNoSchedule && slices.Contains(managedKeys, t.Key) ||
		t.Effect == corev1.TaintEffectPreferNoSchedule && t.Key == TaintPodStarts ||
		t.Effect == corev1.TaintEffectNoExecute && slices.Contains(evictingKeys, t.Key)
}

// betaLabels are old names of labels that follow the new ones.
var betaLabels = map[string]string{corev1.LabelOSStable: "beta.kubernetes.io/os", corev1.LabelArchStable: "beta.kubernetes.io/arch"}

// Labels returns the labels that the node lacks or has wrong, nil if none.
func Labels(node *corev1.Node) map[string]string {
	var next map[string]string
	for stable, beta := range betaLabels {
		if v, ok := node.Labels[stable]; ok && node.Labels[beta] != v {
			if next == nil {
				next = make(map[string]string)
			}
			next[beta] = v
		}
	}
	return next
}
