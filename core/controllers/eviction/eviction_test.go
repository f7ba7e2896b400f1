package eviction

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

func TestPatience(t *testing.T) {
	taint := func(key, value string) corev1.Taint {
		return corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffectNoExecute}
	}
	tolerates := func(key string, seconds *int64) corev1.Toleration {
		return corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: seconds}
	}
	type taints = []corev1.Taint
	type tolerations = []corev1.Toleration
	tests := []struct {
		name        string
		taints      taints
		tolerations tolerations
		limit       time.Duration
		forever     bool
	}{
		{"no taint", nil, nil, 0, true},
		{"not tolerated", taints{taint("a", "")}, tolerations{tolerates("b", nil)}, 0, false},
		{"for ever", taints{taint("a", "")}, tolerations{tolerates("a", nil)}, 0, true},
		{"for a while", taints{taint("a", "")}, tolerations{tolerates("a", ptr.To[int64](300))}, 300 * time.Second, false},
		{"the least of two", taints{taint("a", ""), taint("b", "")}, tolerations{tolerates("a", ptr.To[int64](300)), tolerates("b", ptr.To[int64](20))}, 20 * time.Second, false},
		{"one for ever, one for a while", taints{taint("a", ""), taint("b", "")}, tolerations{tolerates("a", nil), tolerates("b", ptr.To[int64](20))}, 20 * time.Second, false},
		{"one not tolerated", taints{taint("a", ""), taint("b", "")}, tolerations{tolerates("a", nil)}, 0, false},
		{"negative is at once", taints{taint("a", "")}, tolerations{tolerates("a", ptr.To[int64](-1))}, 0, false},
		{"by value", taints{taint("a", "x")}, tolerations{{Key: "a", Operator: corev1.TolerationOpEqual, Value: "y"}}, 0, false},
		{"everything", taints{taint("a", "x"), taint("b", "")}, tolerations{{Operator: corev1.TolerationOpExists}}, 0, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			limit, forever := Patience(tt.taints, tt.tolerations)
			if limit != tt.limit || forever != tt.forever {
				t.Errorf("%s %v, want %s %v", limit, forever, tt.limit, tt.forever)
			}
		})
	}
}
