package decision

import (
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

func TestLedgerKeepsTheLast(t *testing.T) {
	l := NewLedger(3)
	name := func(i int) types.NamespacedName {
		return types.NamespacedName{Namespace: "ns", Name: fmt.Sprint(i)}
	}
	for i := range 5 {
		l.Record(name(i), types.UID(fmt.Sprint("u", i)), decisionv1alpha1.TakenDecision{Node: fmt.Sprint("n", i)}, Basis{Position: uint64(i)})
	}
	l.Record(name(3), "u3", decisionv1alpha1.TakenDecision{Node: "again"}, Basis{Position: 9})
	for i, want := range []string{"", "", "n2", "again", "n4"} {
		got := ""
		if taken := l.Taken(name(i), types.UID(fmt.Sprint("u", i))); taken != nil {
			got = taken.Node
		}
		if got != want {
			t.Errorf("pod %d: node %q, want %q", i, got, want)
		}
	}
	if _, basis := l.TakenOn(name(3), "u3"); basis.Position != 9 {
		t.Errorf("the latest decision was taken on %+v", basis)
	}
	if l.Taken(name(4), "another pod of that name") != nil {
		t.Error("a decision was returned for another UID")
	}
	if len(l.at) != 3 {
		t.Errorf("the ledger holds %d names, want 3", len(l.at))
	}
}

func TestOrder(t *testing.T) {
	node := func(name string) *v1.Node { return &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }
	chosen := node("c")
	scan := &cluster.Scan{Outcome: cluster.Outcome{Node: chosen}, Nodes: []cluster.NodeScan{
		{Node: node("z"), Plugin: "NodeAffinity", Reasons: []string{"no"}},
		{Node: node("b"), Total: 7},
		{Node: node("y"), Plugin: "NodeResourcesFit", Reasons: []string{"Insufficient cpu", "Insufficient memory"}},
		{Node: chosen, Total: 7},
		{Node: node("a"), Total: 3},
	}}
	d := From(types.NamespacedName{Namespace: "ns", Name: "p"}, "default-scheduler", &cluster.Explanation{Scan: scan})
	var order string
	for _, n := range d.Nodes {
		order += n.Name
	}
	if order != "cbayz" || d.Node != "c" || d.Namespace != "ns" || d.Kind != "Decision" {
		t.Errorf("order %q, node %q, of %s %s/%s", order, d.Node, d.Kind, d.Namespace, d.Name)
	}
	if reason := d.Nodes[3].Filter.Reason; reason != "Insufficient cpu, Insufficient memory" {
		t.Errorf("reason %q", reason)
	}
}
