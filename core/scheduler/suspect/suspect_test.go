package suspect_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/quaymaster/quaymaster/core/scheduler/suspect"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func pod(owner, template string, started time.Time) *v1.Pod {
	yes := true
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: owner + "-x", Labels: map[string]string{"pod-template-hash": template}}}
	if owner != "" {
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: owner, UID: types.UID(owner), Controller: &yes}}
	}
	p.Status.StartTime = &metav1.Time{Time: started}
	return p
}

func TestHeld(t *testing.T) {
	type trouble struct {
		after time.Duration
		pods  []*v1.Pod
	}
	at := func(minutes int) time.Time { return noon.Add(time.Duration(minutes) * time.Minute) }
	bomb := func(n int) (out []trouble) { // every ten minutes it starts, and a node falls two minutes later
		for i := range n {
			out = append(out, trouble{time.Duration(10*i+2) * time.Minute, []*v1.Pod{pod("bomb", "1", at(10*i)), pod("old", "1", at(-600))}})
		}
		return out
	}
	for name, test := range map[string]struct {
		troubles []trouble
		pod      *v1.Pod
		now      time.Time
		until    time.Time
		why      string
	}{
		"two nodes":       {bomb(2), pod("bomb", "1", noon), at(20), time.Time{}, ""},
		"three nodes":     {bomb(3), pod("bomb", "1", noon), at(30), at(82), "of 3 nodes that fell into trouble in the last 1h0m0s, 3 had started pods of ReplicaSet bomb shortly before (n2, n1, n0)"},
		"another pod":     {bomb(3), pod("old", "1", noon), at(30), time.Time{}, ""},
		"no controller":   {bomb(3), pod("", "1", noon), at(30), time.Time{}, ""},
		"a new template":  {bomb(3), pod("bomb", "2", noon), at(30), time.Time{}, ""},
		"an hour later":   {bomb(3), pod("bomb", "1", noon), at(83), time.Time{}, ""},
		"started too far": {[]trouble{{6 * time.Minute, []*v1.Pod{pod("a", "1", noon)}}, {7 * time.Minute, []*v1.Pod{pod("a", "1", noon)}}, {8 * time.Minute, []*v1.Pod{pod("a", "1", noon)}}}, pod("a", "1", noon), at(9), time.Time{}, ""},
		"started after":   {[]trouble{{0, []*v1.Pod{pod("a", "1", at(1))}}, {0, []*v1.Pod{pod("a", "1", at(1))}}, {0, []*v1.Pod{pod("a", "1", at(1))}}}, pod("a", "1", noon), at(9), time.Time{}, ""},
		"a zone goes down": {func() (out []trouble) {
			for i := range 7 {
				x := trouble{after: time.Minute}
				if i < 3 {
					x.pods = []*v1.Pod{pod("bystander", "1", noon)}
				}
				out = append(out, x)
			}
			return out
		}(), pod("bystander", "1", noon), at(2), time.Time{}, ""},
	} {
		var log suspect.Log
		for i, x := range test.troubles {
			log.Node(fmt.Sprint("n", i), noon.Add(x.after), x.pods)
		}
		until, why := log.Held(test.pod, test.now)
		if !until.Equal(test.until) || !strings.Contains(why, test.why) {
			t.Errorf("%s: held until %v, %q; want %v, %q", name, until, why, test.until, test.why)
		}
	}
}

// TestEvictedPodsAreSuspectsToo has nodes evict what made them short of memory before they say that they are short of it.
func TestEvictedPodsAreSuspectsToo(t *testing.T) {
	var log suspect.Log
	for i := range 3 {
		at := noon.Add(time.Duration(i) * 10 * time.Minute)
		evicted := pod("leaks", "1", at)
		evicted.Spec.NodeName = fmt.Sprint("n", i)
		for range 100 { // others come and go as well
			log.Ended(pod("short", "1", at), at.Add(time.Second))
		}
		log.Ended(evicted, at.Add(time.Minute))
		log.Ended(evicted, at.Add(time.Minute)) // and is deleted
		log.Node(evicted.Spec.NodeName, at.Add(2*time.Minute), nil)
	}
	if _, why := log.Held(pod("leaks", "1", noon), noon.Add(30*time.Minute)); !strings.Contains(why, "3 had started pods of ReplicaSet leaks") {
		t.Errorf("%q", why)
	}
	if _, why := log.Held(pod("short", "1", noon), noon.Add(30*time.Minute)); why != "" {
		t.Errorf("a bystander: %q", why)
	}
}

func TestTrouble(t *testing.T) {
	condition := func(kind v1.NodeConditionType, status v1.ConditionStatus, at time.Time) v1.NodeCondition {
		return v1.NodeCondition{Type: kind, Status: status, LastTransitionTime: metav1.Time{Time: at}}
	}
	later := noon.Add(time.Minute)
	for name, test := range map[string]struct {
		cordoned   bool
		conditions []v1.NodeCondition
		since      time.Time
		what       string
	}{
		"well":      {false, []v1.NodeCondition{condition(v1.NodeReady, v1.ConditionTrue, noon), condition(v1.NodeDiskPressure, v1.ConditionFalse, noon)}, time.Time{}, ""},
		"lost":      {false, []v1.NodeCondition{condition(v1.NodeReady, v1.ConditionUnknown, noon)}, noon, "Ready=Unknown"},
		"short":     {false, []v1.NodeCondition{condition(v1.NodeReady, v1.ConditionFalse, later), condition(v1.NodePIDPressure, v1.ConditionTrue, noon)}, noon, "PIDPressure=True"},
		"no status": {false, nil, time.Time{}, ""},
		"cordoned":  {true, []v1.NodeCondition{condition(v1.NodeReady, v1.ConditionFalse, noon)}, time.Time{}, ""},
	} {
		node := &v1.Node{Spec: v1.NodeSpec{Unschedulable: test.cordoned}, Status: v1.NodeStatus{Conditions: test.conditions}}
		if since, what := suspect.Trouble(node); !since.Equal(test.since) || what != test.what {
			t.Errorf("%s: %v, %q; want %v, %q", name, since, what, test.since, test.what)
		}
	}
}
