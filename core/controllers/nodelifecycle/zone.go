package nodelifecycle

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// zoneOf names a node's failure domain.
func zoneOf(node *corev1.Node) string {
	first := func(keys ...string) string {
		for _, k := range keys {
			if v := node.Labels[k]; v != "" {
				return v
			}
		}
		return ""
	}
	region := first(corev1.LabelTopologyRegion, corev1.LabelFailureDomainBetaRegion)
	zone := first(corev1.LabelTopologyZone, corev1.LabelFailureDomainBetaZone)
	if region == "" && zone == "" {
		return ""
	}
	return region + ":\x00:" + zone
}

const excludeLabel = "node.kubernetes.io/exclude-disruption"

// census counts a zone's nodes.
type census struct{ ready, notReady int }

// allDown reports that no zone has a ready node. The control plane is then
// more likely cut off than they are all broken: nothing is evicted.
func allDown(zones map[string]census) bool {
	for _, z := range zones {
		if z.ready > 0 {
			return false
		}
	}
	return len(zones) > 0
}

// qps is how many nodes a second of the zone may begin to evict.
func (z census) qps() float64 {
	total := z.ready + z.notReady
	switch {
	case z.ready == 0: // the whole zone: its pods have somewhere else to go
		return evictionQPS
	case z.notReady > 2 && float64(z.notReady)/float64(total) >= unhealthyShare:
		if total > largeZone {
			return reducedQPS
		}
		return 0
	}
	return evictionQPS
}

// bucket lets one pass at once, and then qps a second.
type bucket struct {
	qps  float64
	next time.Time // before which none passes
}

// take lets one pass, or tells how long to wait. It never lets one pass at a
// rate of 0, which it looks at again after a period.
func (b *bucket) take(now time.Time) (ok bool, wait time.Duration) {
	if b.qps == 0 {
		return false, period
	}
	if now.Before(b.next) {
		return false, b.next.Sub(now)
	}
	b.next = now.Add(time.Duration(float64(time.Second) / b.qps))
	return true, 0
}
