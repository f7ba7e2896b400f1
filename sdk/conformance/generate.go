package conformance

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// generator makes inputs whose features collide often. words are strings that
// the guest may look for.
type generator struct {
	*rand.Rand
	words []string
	asked []string // those of the configuration, which come up more often
}

func newGenerator(seed uint64, config, manifest []byte) *generator {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 0x716d))}
	var v any
	if json.Unmarshal(config, &v) == nil {
		g.harvest(v)
	}
	g.asked, g.words = g.words, append(slices.Clip(g.words), "a", "b", "ssd", "ü", "x-1")
	if json.Unmarshal(manifest, &v) == nil {
		g.harvest(v)
	}
	slices.Sort(g.words)
	g.words = slices.Compact(g.words)
	return g
}

// harvest takes the strings of a JSON value, keys included, in the order of keys.
func (g *generator) harvest(v any) {
	switch v := v.(type) {
	case string:
		if len(v) < 64 {
			g.words = append(g.words, v)
		}
	case []any:
		for _, e := range v {
			g.harvest(e)
		}
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			g.harvest(key)
			g.harvest(v[key])
		}
	}
}

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

func (g *generator) word() string {
	if len(g.asked) > 0 && g.chance(50) {
		return g.asked[g.IntN(len(g.asked))]
	}
	return g.words[g.IntN(len(g.words))]
}

func (g *generator) pairs() map[string]string {
	out := map[string]string{}
	for range g.IntN(5) {
		out[g.word()] = g.word()
	}
	return out
}

func (g *generator) amounts() corev1.ResourceList {
	out := corev1.ResourceList{}
	for _, x := range []struct {
		name    corev1.ResourceName
		amounts []string
	}{
		{corev1.ResourceCPU, []string{"250m", "1", "3", "7"}}, {corev1.ResourceMemory, []string{"64Mi", "1Gi", "4.5Gi"}}, {corev1.ResourcePods, []string{"1", "3", "110"}},
		{corev1.ResourceEphemeralStorage, []string{"1Gi", "5Gi"}}, {"nvidia.com/gpu", []string{"1", "2", "4"}},
	} {
		if g.chance(70) {
			out[x.name] = resource.MustParse(x.amounts[g.IntN(len(x.amounts))])
		}
	}
	return out
}

func (g *generator) node(name string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: g.pairs(), Annotations: g.pairs()}}
	if g.chance(70) {
		n.Labels[corev1.LabelTopologyZone] = g.word()
	}
	if g.chance(70) {
		n.Labels[corev1.LabelTopologyRegion] = g.word()
	}
	n.Labels[corev1.LabelHostname] = name
	n.Spec.Unschedulable = g.chance(10)
	for range g.IntN(3) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: g.word(), Value: g.word(),
			Effect: []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute, corev1.TaintEffectPreferNoSchedule}[g.IntN(3)]})
	}
	n.Status.Allocatable = g.amounts()
	n.Status.Capacity = n.Status.Allocatable
	for range g.IntN(3) {
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: corev1.NodeConditionType(g.word()),
			Status: []corev1.ConditionStatus{corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionUnknown}[g.IntN(3)]})
	}
	n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue})
	for range g.IntN(3) {
		n.Status.Images = append(n.Status.Images, corev1.ContainerImage{Names: []string{g.word(), "registry.example/" + g.word()}, SizeBytes: g.Int64N(1 << 30)})
	}
	return n
}

func (g *generator) pod(name string) *corev1.Pod {
	p := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name), Labels: g.pairs(), Annotations: g.pairs()}}
	if g.chance(30) {
		p.Namespace = "team"
	}
	priority := int32(g.IntN(5)) - 2
	p.Spec.Priority = &priority
	if g.chance(30) {
		p.Spec.NodeSelector = g.pairs()
	}
	for range g.IntN(3) {
		p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Key: g.word(), Value: g.word(),
			Operator: []corev1.TolerationOperator{"", corev1.TolerationOpEqual, corev1.TolerationOpExists}[g.IntN(3)],
			Effect:   []corev1.TaintEffect{"", corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule}[g.IntN(3)]})
	}
	for i := range 1 + g.IntN(2) {
		requests := g.amounts()
		delete(requests, corev1.ResourcePods)
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: fmt.Sprint("c", i), Image: g.word(), Resources: corev1.ResourceRequirements{Requests: requests}})
	}
	return p
}

// request of an admission: one of a few kinds and operations.
func (g *generator) request(i int) (*admissionv1.AdmissionRequest, error) {
	var object any
	kind, plural := "Pod", "pods"
	if g.chance(60) {
		object = g.pod(fmt.Sprint("p", i))
	} else {
		kind, plural = "ConfigMap", "configmaps"
		object = &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: kind},
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("c", i), Namespace: "default", Labels: g.pairs()}, Data: g.pairs()}
	}
	raw, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	r := &admissionv1.AdmissionRequest{UID: types.UID(fmt.Sprint("u", i)), Name: fmt.Sprint("o", i), Namespace: "default",
		Kind: metav1.GroupVersionKind{Version: "v1", Kind: kind}, Resource: metav1.GroupVersionResource{Version: "v1", Resource: plural}}
	switch r.Operation = []admissionv1.Operation{admissionv1.Create, admissionv1.Create, admissionv1.Update, admissionv1.Delete}[g.IntN(4)]; r.Operation {
	case admissionv1.Delete:
		r.OldObject = runtime.RawExtension{Raw: raw}
	case admissionv1.Update:
		r.OldObject = runtime.RawExtension{Raw: raw}
		fallthrough
	default:
		r.Object = runtime.RawExtension{Raw: raw}
	}
	return r, nil
}
