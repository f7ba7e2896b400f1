package conformance

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"hash"
	"hash/fnv"
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	resourcehelper "k8s.io/component-helpers/resource"

	"k8s.io/apimachinery/pkg/api/resource"
)

var update = flag.Bool("update", false, "write cases.json anew")

// stream is the digest that guests/probe.c makes, from the objects alone.
type stream struct{ hash.Hash64 }

func newStream() stream { return stream{fnv.New64a()} }

func (s stream) number(n int64) { _ = binary.Write(s, binary.LittleEndian, n) }
func (s stream) text(t string)  { s.Write(append([]byte(t), 0xff)) }

func (s stream) pairs(m map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		s.text(k)
		s.text(m[k])
	}
	s.number(int64(len(m)))
}

var nonZero = corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("200Mi")}

func requested(pod *corev1.Pod, missing corev1.ResourceList) corev1.ResourceList {
	return resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{NonMissingContainerRequests: missing})
}

func (s stream) pod(c *Case) {
	p := c.Pod
	requests, filled := requested(p, nil), requested(p, nonZero)
	s.number(int64(*p.Spec.Priority))
	s.number(requests.Cpu().MilliValue())
	s.number(requests.Memory().Value())
	s.number(requests.StorageEphemeral().Value())
	s.number(filled.Cpu().MilliValue())
	s.number(filled.Memory().Value())
	s.text(p.Name)
	s.text(p.Namespace)
	s.pairs(p.Labels)
	s.pairs(p.Annotations)
	s.pairs(p.Spec.NodeSelector)
	for _, t := range p.Spec.Tolerations {
		s.text(t.Key)
		s.text(t.Value)
		s.text(string(t.Effect))
		s.number(map[corev1.TolerationOperator]int64{corev1.TolerationOpExists: 1}[t.Operator])
	}
	if q, ok := requests["nvidia.com/gpu"]; ok {
		s.text("nvidia.com/gpu")
		s.number(q.Value())
	}
	for i := range p.Spec.Containers {
		s.text(p.Spec.Containers[i].Image)
	}
	s.number(c.Time.UnixNano())
	for _, m := range c.ConfigMaps {
		if m.Namespace == p.Namespace && m.Name == "probe" {
			s.number(1)
			s.text(m.Data["value"])
			return
		}
	}
	s.number(0)
}

func (s stream) node(n *corev1.Node, running []*corev1.Pod) {
	flags := int64(1)
	if n.Spec.Unschedulable {
		flags |= 2
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			flags |= 4
		}
	}
	s.number(flags)
	s.text(n.Name)
	s.text(n.Labels[corev1.LabelTopologyZone])
	s.text(n.Labels[corev1.LabelTopologyRegion])
	used, filled, pods, gpus := [3]int64{}, [2]int64{}, int64(0), int64(0)
	for _, p := range running {
		if p.Spec.NodeName != n.Name {
			continue
		}
		requests, more := requested(p, nil), requested(p, nonZero)
		for i, v := range []int64{requests.Cpu().MilliValue(), requests.Memory().Value(), requests.StorageEphemeral().Value()} {
			used[i] += v
		}
		gpu := requests["nvidia.com/gpu"]
		pods, gpus = pods+1, gpus+gpu.Value()
		filled[0], filled[1] = filled[0]+more.Cpu().MilliValue(), filled[1]+more.Memory().Value()
	}
	a := n.Status.Allocatable
	gpu := a["nvidia.com/gpu"]
	for _, v := range []int64{a.Cpu().MilliValue(), a.Memory().Value(), a.StorageEphemeral().Value(), a.Pods().Value(),
		used[0], used[1], used[2], pods, filled[0], filled[1], gpu.Value(), gpus} {
		s.number(v)
	}
	count := int64(0)
	for _, k := range slices.Sorted(maps.Keys(n.Labels)) {
		s.text(k)
		s.text(n.Labels[k])
		count += 2
	}
	s.number(count)
	for _, t := range n.Spec.Taints {
		s.text(t.Key)
		s.text(t.Value)
		s.text(string(t.Effect))
	}
	s.number(int64(3 * len(n.Spec.Taints)))
	count = 0
	for _, image := range n.Status.Images {
		for _, name := range image.Names {
			s.text(name)
			count++
		}
	}
	s.number(count)
}

// answered fills in what probe must answer to a pod.
func answered(c *Case) {
	n := len(c.Nodes)
	c.Want = Want{Verdicts: make([]int, n), Reasons: make([]string, n), Scores: make([]int64, n)}
	for row, node := range c.Nodes {
		if node == nil {
			continue
		}
		s := newStream()
		s.pod(c)
		s.node(node, c.Running)
		switch h := s.Sum64(); h % 4 {
		case 0:
			c.Want.Verdicts[row], c.Want.Reasons[row] = int(1+(h>>8)%2), fmt.Sprintf("%016x", h)
		case 1:
			c.Want.Verdicts[row], c.Want.Reasons[row] = 250, fmt.Sprintf("%016x", h)
		default:
			c.Want.Scores[row] = 100 - int64((h>>16)%101)
		}
	}
}

// reviewed fills in what probe must answer to a request.
func reviewed(t *testing.T, c *Case) {
	t.Helper()
	r := c.Request
	seen := fmt.Sprintf("%s %s %s %s", r.Kind.Kind, r.Operation, r.Namespace, r.Name)
	c.Want.Answer = &Answer{Allowed: true, Warnings: []string{seen}, AuditAnnotations: map[string]string{"seen": seen}}
	var object *struct{ Metadata metav1.ObjectMeta }
	if len(r.Object.Raw) > 0 {
		if err := json.Unmarshal(r.Object.Raw, &object); err != nil {
			t.Fatal(err)
		}
	}
	switch {
	case object == nil:
	case object.Metadata.Labels["deny"] != "":
		c.Want.Answer.Allowed, c.Want.Answer.Code, c.Want.Answer.Message = false, 422, seen
	case c.Point == "Mutate" && object.Metadata.Labels["probe/~"] == "":
		patch := fmt.Sprintf(`{"op":"add","path":"/metadata/labels/probe~1~0","value":%q}`, seen)
		if object.Metadata.Labels == nil {
			patch = `{"op":"add","path":"/metadata/labels","value":{}},` + patch
		}
		c.Want.Answer.Patch = json.RawMessage("[" + patch + "]")
	}
}

func makeCases(t *testing.T) (all []Case) {
	t.Helper()
	at := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	for seed := range uint64(6) {
		g := newGenerator(seed, nil, nil)
		c := Case{Name: fmt.Sprint("probe, columns ", seed), Guest: "probe.wasm", Time: at}
		for i := range 3 + 4*seed {
			var node *corev1.Node
			if !g.chance(15) {
				node = g.node(fmt.Sprint("n", i))
				if g.chance(50) {
					pod := g.pod(fmt.Sprint("r", i))
					pod.Spec.NodeName = node.Name
					c.Running = append(c.Running, pod)
				}
			}
			c.Nodes = append(c.Nodes, node)
		}
		c.Pod = g.pod("p")
		if seed%2 == 0 {
			c.ConfigMaps = []*corev1.ConfigMap{{ObjectMeta: metav1.ObjectMeta{Name: "probe", Namespace: c.Pod.Namespace}, Data: map[string]string{"other": "x", "value": "read ü"}}}
		}
		answered(&c)
		all = append(all, c)
	}
	g := newGenerator(7, []byte(`["deny"]`), nil)
	for i := range 10 {
		request, err := g.request(i)
		if err != nil {
			t.Fatal(err)
		}
		c := Case{Name: fmt.Sprint("probe, request ", i), Guest: "probe.wasm", Time: at, Request: request, Point: "Validate"}
		if i%2 == 0 {
			c.Point = "Mutate"
		}
		reviewed(t, &c)
		all = append(all, c)
	}
	fault := func(name, fails, text string) Case {
		return Case{Name: "faults, " + cmp.Or(name, "none"), Guest: "faults.wasm", Config: json.RawMessage(fmt.Sprintf(`{"fault":%q}`, name)), Fuel: 3_000_000, Time: at,
			Want: Want{Fails: fails, Text: text}}
	}
	node := func(name, label string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{label: "x"}}}
	}
	none := fault("", "", "")
	none.Want = Want{Verdicts: []int{0, 0, 1}, Reasons: []string{"", "", "node(s) had the label a"}, Scores: []int64{50, 0, 0}}
	refused := fault("config", "", "")
	refused.Want = Want{Load: "Configure", Text: "the configuration is refused"}
	scheduling := []Case{none, refused, fault("trap", "trap", ""), fault("loop", "fuel", ""), fault("recursion", "trap", ""), fault("memory", "trap", ""), fault("pointer", "trap", ""),
		fault("status", "result", "the call is refused"), fault("verdict", "result", ""), fault("score", "result", ""), fault("negative", "result", "")}
	for _, c := range scheduling {
		c.Pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "fault", Namespace: "default"}}
		c.Nodes = []*corev1.Node{node("n1", "b"), nil, node("n2", "a")}
		all = append(all, c)
	}
	for _, c := range []Case{fault("outside", "result", ""), fault("long", "result", ""), fault("text", "result", "")} {
		request, err := newGenerator(1, nil, nil).request(0)
		if err != nil {
			t.Fatal(err)
		}
		request.Name = "fault"
		c.Request, c.Point = request, "Validate"
		all = append(all, c)
	}
	return all
}

// TestCasesAreOfTheObjects: cases.json holds what the objects, not the guests, say.
func TestCasesAreOfTheObjects(t *testing.T) {
	want, err := json.MarshalIndent(makeCases(t), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if *update {
		if err := os.WriteFile("cases.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("cases.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("cases.json is not what the objects make: run the test with -update and look at what changed")
	}
}
