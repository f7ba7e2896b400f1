package author

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// BenchOptions of Bench; the zero value works.
type BenchOptions struct {
	// Config as JSON.
	Config []byte
	// Nodes of the fleets. nil: 100, 1,000 and 5,000.
	Nodes []int
	// Time to spend on each measurement. 0: 300 ms.
	Time time.Duration
}

// Measurement of one extension point over one fleet. All but Calls are means
// of a call.
type Measurement struct {
	Point policyv1alpha1.ExtensionPoint `json:"point"`
	// Nodes of the fleet; 0 for admission.
	Nodes int `json:"nodes,omitempty"`
	Calls int `json:"calls"`
	// Nanoseconds of a call, and by node.
	Nanoseconds int64 `json:"nanoseconds"`
	PerNode     int64 `json:"nanosecondsPerNode,omitempty"`
	// Native is by node what the fit filter, or the least-allocated score, takes in
	// Go over the same columns, to compare with; 0 for admission.
	Native float64 `json:"nativeNanosecondsPerNode,omitempty"`
	Fuel   int64   `json:"fuel,omitempty"`
	// Memory of the instance in bytes; 0 for engines without instances.
	Memory int64 `json:"memory,omitempty"`
	// Allocated bytes of the host.
	Allocated int64 `json:"allocated"`
}

// benchDeadline is not to end a measurement that a budget would allow.
const benchDeadline = 10 * time.Second

// Bench measures a policy's file at each of its extension points. Each
// call is of another pod; before it the use of a few nodes has changed.
func (e Engines) Bench(ctx context.Context, file string, o BenchOptions) (out []Measurement, err error) {
	if o.Nodes == nil {
		o.Nodes = []int{100, 1000, 5000}
	}
	if o.Time == 0 {
		o.Time = 300 * time.Millisecond
	}
	s, err := read(file)
	if err != nil {
		return nil, err
	}
	engine, err := e.of(s)
	if err != nil {
		return nil, err
	}
	load := s.load(o.Config)
	load.Limits.Deadline = &metav1.Duration{Duration: benchDeadline}
	program, err := engine.Load(ctx, load)
	if err != nil {
		return nil, err
	}
	defer func() {
		if closed := program.Close(); err == nil {
			err = closed
		}
	}()
	b := &bench{program: program, time: o.Time}
	for _, point := range []policyv1alpha1.ExtensionPoint{
		policyv1alpha1.ExtensionFilter, policyv1alpha1.ExtensionScore, policyv1alpha1.ExtensionMutate, policyv1alpha1.ExtensionValidate,
	} {
		if !slices.Contains(program.Points(), point) {
			continue
		}
		sizes := o.Nodes
		if point == policyv1alpha1.ExtensionMutate || point == policyv1alpha1.ExtensionValidate {
			sizes = []int{0}
		}
		for _, n := range sizes {
			m, err := b.measure(ctx, point, n)
			if err != nil {
				return nil, fmt.Errorf("%s: %s over %d nodes: %w", file, point, n, err)
			}
			out = append(out, m)
		}
	}
	return out, nil
}

type bench struct {
	program policies.Program
	time    time.Duration
}

func (b *bench) measure(ctx context.Context, point policyv1alpha1.ExtensionPoint, n int) (Measurement, error) {
	session := b.program.Session()
	call, err := calls(session, point, n)
	if err != nil {
		return Measurement{}, err
	}
	// the first calls grow memory and fill caches
	for i := range 2 {
		if _, err := call(ctx, i); err != nil {
			session.Close()
			return Measurement{}, err
		}
	}
	m := Measurement{Point: point, Nodes: n}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var wall time.Duration
	for began := time.Now(); m.Calls == 0 || time.Since(began) < b.time; m.Calls++ {
		cost, err := call(ctx, m.Calls+2)
		if err != nil {
			session.Close()
			return Measurement{}, err
		}
		wall += cost.Wall
		m.Fuel += cost.Fuel
	}
	runtime.ReadMemStats(&after)
	session.Close()
	count := int64(m.Calls)
	m.Nanoseconds = wall.Nanoseconds() / count
	m.Fuel /= count
	m.Allocated = int64(after.TotalAlloc-before.TotalAlloc) / count
	if n > 0 {
		m.PerNode, m.Native = m.Nanoseconds/int64(n), native(point, n)
	}
	if sized, ok := b.program.(policies.Sized); ok {
		m.Memory = sized.Memory()
	}
	return m, nil
}

// native measures what a built-in plugin does for each of n nodes.
func native(point policyv1alpha1.ExtensionPoint, n int) float64 {
	const least = 10 * time.Millisecond
	f := benchFleet(n)
	verdicts, scores := make([]uint8, n), make([]int64, n)
	calls, began := 0, time.Now()
	for ; calls == 0 || time.Since(began) < least; calls++ {
		wanted := int64(250 + calls%2)
		for row := range n {
			free := f.Allocatable.MilliCPU[row] - f.Requested.MilliCPU[row] - wanted
			memory := f.Allocatable.Memory[row] - f.Requested.Memory[row] - wanted<<20
			switch {
			case point == policyv1alpha1.ExtensionScore:
				scores[row] = (100*free/max(1, f.Allocatable.MilliCPU[row]) + 100*memory/max(1, f.Allocatable.Memory[row])) / 2
			case free < 0 || memory < 0 || f.Requested.Pods[row]+1 > f.Allocatable.Pods[row]:
				verdicts[row] = 1
			}
		}
	}
	return float64(time.Since(began).Nanoseconds()) / float64(calls) / float64(n)
}

// calls returns the i-th call of an endless series.
func calls(s policies.Session, point policyv1alpha1.ExtensionPoint, n int) (func(context.Context, int) (policies.Cost, error), error) {
	cycle := policies.Cycle{Time: testTime, Seed: 1}
	pods := []*corev1.Pod{benchPod(0), benchPod(1), benchPod(2)}
	if point == policyv1alpha1.ExtensionMutate || point == policyv1alpha1.ExtensionValidate {
		var requests []*admissionv1.AdmissionRequest
		for _, pod := range pods {
			raw, err := json.Marshal(pod)
			if err != nil {
				return nil, err
			}
			r := &admissionv1.AdmissionRequest{Object: apiruntime.RawExtension{Raw: raw}}
			if err := completeRequest(r); err != nil {
				return nil, err
			}
			requests = append(requests, r)
		}
		return func(ctx context.Context, i int) (policies.Cost, error) {
			_, cost, err := s.Admit(ctx, cycle, point, requests[i%len(requests)])
			return cost, err
		}, nil
	}
	fleet := benchFleet(n)
	verdicts, scores := make([]uint8, n), make([]int64, n)
	return func(ctx context.Context, i int) (policies.Cost, error) {
		fleet.Generation++
		row := i % n
		fleet.Requested.MilliCPU[row] += 10
		fleet.Changes = func(since uint64) ([]int32, bool) {
			return []int32{int32(row)}, since+1 >= fleet.Generation
		}
		pod := pods[i%len(pods)]
		if point == policyv1alpha1.ExtensionFilter {
			return s.Filter(ctx, cycle, pod, fleet, verdicts)
		}
		return s.Score(ctx, cycle, pod, fleet, verdicts, scores)
	}, nil
}

func benchPod(i int) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("pod-%d", i), Namespace: "default", Labels: map[string]string{"app": "web", "team": fmt.Sprintf("t%d", i)}},
		Spec: corev1.PodSpec{
			NodeSelector: map[string]string{"disktype": "ssd"},
			Tolerations:  []corev1.Toleration{{Key: "dedicated", Operator: corev1.TolerationOpExists}},
			Containers: []corev1.Container{{Name: "main", Image: "web:1.0", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("250m"), corev1.ResourceMemory: resource.MustParse("256Mi"),
			}}}},
		},
	}
}

// benchFleet has n nodes in eight zones, a third with an SSD, a tenth tainted.
func benchFleet(n int) *abi.Fleet {
	nodes := make([]*corev1.Node, n)
	for i := range nodes {
		name := fmt.Sprintf("node-%05d", i)
		node := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
				corev1.LabelHostname: name, corev1.LabelTopologyZone: fmt.Sprintf("zone-%d", i%8), corev1.LabelTopologyRegion: "region",
				corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64", "disktype": []string{"hdd", "hdd", "ssd"}[i%3], "team": fmt.Sprintf("t%d", i%5),
			}},
			Status: corev1.NodeStatus{
				Allocatable: corev1.ResourceList{
					corev1.ResourceCPU: resource.MustParse("32"), corev1.ResourceMemory: resource.MustParse("128Gi"),
					corev1.ResourceEphemeralStorage: resource.MustParse("500Gi"), corev1.ResourcePods: resource.MustParse("110"),
				},
				Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			},
		}
		if i%10 == 0 {
			node.Spec.Taints = []corev1.Taint{{Key: "dedicated", Value: "x", Effect: corev1.TaintEffectNoSchedule}}
		}
		nodes[i] = node
	}
	return abi.FleetOf(nodes)
}
