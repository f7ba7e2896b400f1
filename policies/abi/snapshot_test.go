package abi

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	qm "github.com/quaymaster/quaymaster/sdk/go"
)

var allColumns = []string{
	"flags", "name", "zone", "region", "allocatable.cpu", "allocatable.memory", "allocatable.ephemeral-storage", "allocatable.pods",
	"requested.cpu", "requested.memory", "requested.ephemeral-storage", "requested.pods", "nonzero.cpu", "nonzero.memory",
	"labels", "taints", "images", "allocatable/example.com/gpu", "requested/example.com/gpu",
}

func randomNode(r *rand.Rand, i int) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i), Labels: map[string]string{}}}
	for range r.IntN(12) {
		n.Labels[fmt.Sprint("k", r.IntN(30))] = fmt.Sprint("v", r.IntN(30))
	}
	for range r.IntN(4) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: fmt.Sprint("k", r.IntN(9)), Effect: corev1.TaintEffectNoSchedule})
	}
	n.Spec.Unschedulable = r.IntN(2) == 0
	n.Status.Allocatable = corev1.ResourceList{
		"cpu": *resource.NewMilliQuantity(r.Int64N(1e6), resource.DecimalSI), "memory": *resource.NewQuantity(r.Int64N(1e12), resource.BinarySI),
		"example.com/gpu": *resource.NewQuantity(r.Int64N(9), resource.DecimalSI),
	}
	return n
}

// check reads the bytes with the guest's SDK and compares every column.
func check(t *testing.T, mem []byte, f *Fleet) {
	t.Helper()
	s := qm.SnapshotOf(mem)
	if s.Rows() != f.Len() {
		t.Fatalf("%d rows, expected %d", s.Rows(), f.Len())
	}
	same := func(name string, got, want any) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%s is %v, expected %v", name, got, want)
		}
	}
	same("flags", s.Uint32s(qm.Flags), f.Flags)
	same("name", s.Uint32s(qm.Name), f.Name)
	same("zone", s.Uint32s(qm.Zone), f.Zone)
	same("cpu", s.Int64s(qm.AllocatableCPU), f.Allocatable.MilliCPU)
	same("memory", s.Int64s(qm.AllocatableMemory), f.Allocatable.Memory)
	same("requested", s.Int64s(qm.RequestedCPU), f.Requested.MilliCPU)
	same("gpu", s.Int64s(qm.Extended), f.ExtendedAllocatable["example.com/gpu"])
	for id, want := range map[uint16][][]uint32{qm.Labels: f.Labels.Values, qm.Taints: f.Taints.Values, qm.Images: f.Images.Values} {
		lists := s.Lists(id)
		for row := range want {
			if got := lists.Row(row); len(got) != len(want[row]) || len(got) > 0 && !reflect.DeepEqual(got, want[row]) {
				t.Fatalf("column %d, row %d is %v, expected %v", id, row, got, want[row])
			}
		}
	}
}

// Random changes of rows, written one by one, leave what a whole write would.
func TestSnapshotFollowsTheFleet(t *testing.T) {
	columns, err := ParseColumns(allColumns)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	nodes := make([]*corev1.Node, 40)
	for i := range nodes {
		if i%7 != 3 {
			nodes[i] = randomNode(r, i)
		}
	}
	f := FleetOf(nodes)
	var changed []int32
	f.Changes = func(since uint64) ([]int32, bool) { return changed, since+1 == f.Generation }
	s := NewSnapshot(columns, f)
	mem := make([]byte, s.Size())
	grown := 0
	for step := range 3000 {
		for !s.Write(mem, f) {
			grown++
			s = s.Grown(f)
			mem = make([]byte, s.Size())
		}
		if step%50 == 0 || step > 2950 {
			check(t, mem, f)
		}
		row := r.IntN(len(nodes))
		n := randomNode(r, step)
		for range step / 300 { // longer and longer lists
			n.Labels[fmt.Sprint("more", r.IntN(100))] = "x"
		}
		f.Nodes[row] = n
		f.Labels.Values[row], f.Taints.Values[row] = nil, nil
		f.set(row, n)
		f.Requested.MilliCPU[row]++
		f.Generation++
		changed = []int32{int32(row)}
	}
	if grown == 0 {
		t.Error("the snapshot never grew: the test means nothing")
	}
}

// Without a change log, with another fleet, or after more rows everything is written.
func TestSnapshotWritesWhole(t *testing.T) {
	columns, err := ParseColumns(allColumns)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 4))
	var nodes []*corev1.Node
	s := (*Snapshot)(nil)
	var mem []byte
	epochs := map[uint32]bool{}
	for i := range 200 {
		nodes = append(nodes, randomNode(r, i))
		f := FleetOf(nodes)
		if s == nil {
			s = NewSnapshot(columns, f)
			mem = make([]byte, s.Size())
		}
		for !s.Write(mem, f) {
			s = s.Grown(f)
			mem = make([]byte, s.Size())
		}
		check(t, mem, f)
		if epoch := qm.SnapshotOf(mem).Epoch(); epochs[epoch] {
			t.Fatalf("epoch %d again for other symbols", epoch)
		} else {
			epochs[epoch] = true
		}
	}
}

func TestPodRecord(t *testing.T) {
	symbols := NewSymbols()
	ssd := symbols.ID("ssd")
	priority := int32(-5)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", Labels: map[string]string{"b": "2", "a": "1"}, Annotations: map[string]string{"x": ""}},
		Spec: corev1.PodSpec{
			Priority: &priority, NodeSelector: map[string]string{"disktype": "ssd"},
			Tolerations: []corev1.Toleration{{Key: "k", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute}, {Key: "q", Value: "v"}},
			Containers: []corev1.Container{
				{Name: "a", Image: "one", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
					"cpu": resource.MustParse("250m"), "memory": resource.MustParse("1Gi"), "ephemeral-storage": resource.MustParse("3"), "example.com/gpu": resource.MustParse("2")}}},
				{Name: "b", Image: "two"},
			},
		},
	}
	data, err := AppendPod(nil, p, symbols, true)
	if err != nil {
		t.Fatal(err)
	}
	g := qm.PodOf(data)
	text := func(s string) qm.Text { return qm.Text{Symbol: symbols.Lookup(s), Value: s} }
	for _, tt := range []struct {
		name      string
		got, want any
	}{
		{"priority", g.Priority(), int32(-5)},
		{"name", g.Name(), "p"},
		{"namespace", g.Namespace(), text("ns")},
		{"cpu", g.CPU(), int64(250)},
		{"memory", g.Memory(), int64(1 << 30)},
		{"storage", g.EphemeralStorage(), int64(3)},
		{"nonzero cpu", g.NonZeroCPU(), int64(350)},
		{"nonzero memory", g.NonZeroMemory(), int64(1<<30 + 200<<20)},
		{"labels", g.Labels(), []qm.Pair{{Key: text("a"), Value: text("1")}, {Key: text("b"), Value: text("2")}}},
		{"annotations", g.Annotations(), []qm.Pair{{Key: text("x"), Value: text("")}}},
		{"selector", g.NodeSelector(), []qm.Pair{{Key: text("disktype"), Value: qm.Text{Symbol: ssd, Value: "ssd"}}}},
		{"tolerations", g.Tolerations(), []qm.Toleration{{Key: text("k"), Value: text(""), Effect: text("NoExecute"), Operator: 1}, {Key: text("q"), Value: text("v"), Effect: text("")}}},
		{"extended", g.ExtendedRequests(), map[string]int64{"example.com/gpu": 2}},
		{"images", g.Images(), []qm.Text{text("one"), text("two")}},
	} {
		if !reflect.DeepEqual(tt.got, tt.want) {
			t.Errorf("%s is %v, expected %v", tt.name, tt.got, tt.want)
		}
	}
	var back corev1.Pod
	if err := back.Unmarshal(g.Raw()); err != nil || back.Name != "p" || back.Spec.NodeSelector["disktype"] != "ssd" {
		t.Errorf("raw pod: %v, %+v", err, back.Spec)
	}
	again, err := AppendPod(data, p, symbols, false)
	if err != nil || len(qm.PodOf(again).Raw()) != 0 {
		t.Errorf("raw pod that was not asked for: %v", err)
	}
}

// A change of one node writes the header and that row's cells and lists, and not a
// byte more: what lies elsewhere in the guest's memory stays, whatever it is.
func TestSnapshotWritesOnlyTheRow(t *testing.T) {
	columns, err := ParseColumns(allColumns)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(5, 6))
	nodes := make([]*corev1.Node, 100)
	for i := range nodes {
		nodes[i] = randomNode(r, i)
	}
	f := FleetOf(nodes)
	var changed []int32
	f.Changes = func(uint64) ([]int32, bool) { return changed, true }
	s := NewSnapshot(columns, f)
	mem := make([]byte, s.Size())
	if !s.Write(mem, f) {
		t.Fatal("no room")
	}
	for row := range int32(100) {
		n := randomNode(r, 1000+int(row))
		f.Nodes[row], f.Labels.Values[row], f.Taints.Values[row] = n, nil, nil
		f.set(int(row), n)
		f.Generation++
		changed = []int32{row}
		poisoned := bytes.Repeat([]byte{0xee}, len(mem))
		if !s.Write(poisoned, f) {
			t.Fatal("no room")
		}
		may := make([]bool, len(mem))
		allow := func(from, size uint32) {
			for i := from; i < from+size; i++ {
				may[i] = true
			}
		}
		allow(0, headerSize+uint32(len(columns))*descriptorSize)
		for i, c := range columns {
			width := uint32(c.element)
			if c.lists != nil {
				width = 8
				span := poisoned[s.offsets[i]+uint32(row)*8:]
				allow(le.Uint32(span), 4*le.Uint32(span[4:]))
			}
			allow(s.offsets[i]+uint32(row)*width, width)
		}
		for i, b := range poisoned {
			if may[i] {
				mem[i] = b
			} else if b != 0xee {
				t.Fatalf("row %d: byte %d of %d was written", row, i, len(mem))
			}
		}
	}
	check(t, mem, f)
}

func BenchmarkSnapshot(b *testing.B) {
	columns, err := ParseColumns(allColumns)
	if err != nil {
		b.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	nodes := make([]*corev1.Node, 1000)
	for i := range nodes {
		nodes[i] = randomNode(r, i)
	}
	f := FleetOf(nodes)
	s := NewSnapshot(columns, f)
	mem := make([]byte, s.Size())
	b.Run("whole", func(b *testing.B) {
		b.SetBytes(int64(s.Size()))
		for b.Loop() {
			s.fleet = nil
			s.Write(mem, f)
		}
	})
	b.Run("row", func(b *testing.B) {
		f.Changes = func(uint64) ([]int32, bool) { return []int32{7}, true }
		for b.Loop() {
			f.Generation++
			s.Write(mem, f)
		}
	})
}
