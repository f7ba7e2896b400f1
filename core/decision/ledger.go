// Package decision remembers the scheduling decisions that were taken, and puts
// a scan of the cluster into the form that explanations have in the API.
package decision

import (
	"cmp"
	"slices"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// Ledger holds the latest decision of each of the last pods decided on. It is
// bounded and safe for concurrent use.
type Ledger struct {
	mu      sync.Mutex
	at      map[types.NamespacedName]int
	entries []entry // a ring
	next    int
}

type entry struct {
	pod   types.NamespacedName
	uid   types.UID
	taken decisionv1alpha1.TakenDecision
	basis Basis
}

// Basis is what a decision was taken on, for it to be explained as it was.
type Basis struct {
	Position uint64 // of cluster.State
	Profile  *cluster.Profile
}

// NewLedger returns a ledger of at most size pods; size is at least 1.
func NewLedger(size int) *Ledger {
	return &Ledger{at: map[types.NamespacedName]int{}, entries: make([]entry, 0, max(size, 1))}
}

// Record notes the decision as the pod's latest.
func (l *Ledger) Record(pod types.NamespacedName, uid types.UID, taken decisionv1alpha1.TakenDecision, basis Basis) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i, ok := l.at[pod]; ok {
		l.entries[i] = entry{pod, uid, taken, basis}
		return
	}
	if len(l.entries) < cap(l.entries) {
		l.entries = append(l.entries, entry{})
	} else {
		delete(l.at, l.entries[l.next].pod)
	}
	l.entries[l.next] = entry{pod, uid, taken, basis}
	l.at[pod] = l.next
	l.next = (l.next + 1) % cap(l.entries)
}

// Taken returns the latest decision for the pod of that name and UID, or nil.
func (l *Ledger) Taken(pod types.NamespacedName, uid types.UID) *decisionv1alpha1.TakenDecision {
	taken, _ := l.TakenOn(pod, uid)
	return taken
}

// TakenOn is Taken with what the decision was taken on.
func (l *Ledger) TakenOn(pod types.NamespacedName, uid types.UID) (*decisionv1alpha1.TakenDecision, Basis) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, ok := l.at[pod]
	if !ok || l.entries[i].uid != uid {
		return nil, Basis{}
	}
	return l.entries[i].taken.DeepCopy(), l.entries[i].basis
}

// From puts an explanation into the form that it has in the API: the feasible
// nodes, best first with the chosen one at the head, then the refused by name.
func From(pod types.NamespacedName, schedulerName string, scan *cluster.Explanation) *decisionv1alpha1.Decision {
	d := &decisionv1alpha1.Decision{
		ObjectMeta:    metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name},
		SchedulerName: schedulerName,
		Message:       scan.Message,
		Margin:        scan.Margin,
		Preemption:    preemption(scan.Preemption, ""),
		Nodes:         make([]decisionv1alpha1.NodeVerdict, 0, len(scan.Nodes)),
	}
	if scan.RunnerUp != nil {
		d.RunnerUp = scan.RunnerUp.Name
	}
	for _, change := range scan.Changes {
		to := decisionv1alpha1.Change{Node: change.Node.Name}
		for _, step := range change.Steps {
			to.Steps = append(to.Steps, decisionv1alpha1.ChangeStep(step))
		}
		d.Changes = append(d.Changes, to)
	}
	d.SetGroupVersionKind(decisionv1alpha1.SchemeGroupVersion.WithKind("Decision"))
	if scan.Node != nil {
		d.Node = scan.Node.Name
	}
	for i := range scan.Nodes {
		n := &scan.Nodes[i]
		row := decisionv1alpha1.NodeVerdict{Name: n.Node.Name, Total: n.Total}
		if n.Plugin != "" {
			row.Filter = &decisionv1alpha1.FilterVerdict{Plugin: n.Plugin, Reason: strings.Join(n.Reasons, ", ")}
		}
		for _, s := range n.Scores {
			row.Scores = append(row.Scores, decisionv1alpha1.PluginScore(s))
		}
		if scan.Details != nil {
			for _, f := range scan.Details[i].Failures {
				row.Failures = append(row.Failures, decisionv1alpha1.Failure{Plugin: f.Plugin, Reason: f.Reason, Wanted: f.Wanted, Found: f.Found})
			}
			row.Preemption = preemption(scan.Details[i].Preemption, scan.Details[i].Helpless)
		}
		d.Nodes = append(d.Nodes, row)
	}
	Sort(d)
	return d
}

// Sort puts the nodes of a decision into the order that explanations have.
func Sort(d *decisionv1alpha1.Decision) {
	slices.SortFunc(d.Nodes, func(a, b decisionv1alpha1.NodeVerdict) int {
		return cmp.Or(
			compareBool(a.Filter != nil, b.Filter != nil),
			cmp.Compare(b.Total, a.Total),
			compareBool(a.Name != d.Node, b.Name != d.Node),
			cmp.Compare(a.Name, b.Name))
	})
}

func preemption(p *cluster.Preemption, helpless string) *decisionv1alpha1.PreemptionVerdict {
	switch {
	case p != nil:
		v := &decisionv1alpha1.PreemptionVerdict{Node: p.Node.Name, Violations: int32(p.Violations)}
		for _, victim := range p.Victims {
			v.Victims = append(v.Victims, victim.Namespace+"/"+victim.Name)
		}
		return v
	case helpless != "":
		return &decisionv1alpha1.PreemptionVerdict{Reason: helpless}
	}
	return nil
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
