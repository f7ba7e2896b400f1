package cluster

import (
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
)

const milliGPU = "example.com/milligpu"

func gpuNode(name, units string) *v1.Node {
	return &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1.NodeStatus{Allocatable: v1.ResourceList{
		v1.ResourceCPU: resource.MustParse("16"), v1.ResourceMemory: resource.MustParse("64Gi"), v1.ResourcePods: resource.MustParse("100"), milliGPU: resource.MustParse(units)}}}
}

func gpuPod(name, units string) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c",
		Resources: v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("1"), milliGPU: resource.MustParse(units)}}}}}}
}

// TestDevices places pods one after the other; each line is the pod's units and
// where it goes, "" for nowhere, and with which devices.
func TestDevices(t *testing.T) {
	profile := profileOf(t, devicesProfile)
	for _, tt := range []struct {
		name  string
		nodes []*v1.Node
		pods  [][3]string
	}{
		{"parts share a device", []*v1.Node{gpuNode("a", "2000")}, [][3]string{{"300", "a", "0"}, {"700", "a", "0"}, {"1000", "a", "1"}, {"1", "", ""}}},
		{"what the sum has is on no device", []*v1.Node{gpuNode("a", "2000")}, [][3]string{{"700", "a", "0"}, {"700", "a", "1"}, {"600", "", ""}, {"300", "a", "0"}}},
		{"whole devices", []*v1.Node{gpuNode("a", "1000"), gpuNode("b", "2000")}, [][3]string{{"2000", "b", "0,1"}, {"2000", "", ""}, {"1000", "a", "0"}}},
		{"more than one and less than two", []*v1.Node{gpuNode("a", "4000")}, [][3]string{{"1500", "", ""}}},
		{"half a device is none", []*v1.Node{gpuNode("a", "1500")}, [][3]string{{"1000", "a", "0"}, {"300", "", ""}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := New(1)
			for _, n := range tt.nodes {
				s.SetNode(n)
			}
			for i, want := range tt.pods {
				pod := gpuPod(fmt.Sprint("p", i), want[0])
				c := s.ClassOf(profile, pod)
				name, on := "", ""
				if out := s.Decide(c, 1); out.Node != nil {
					name, pod.Spec.NodeName = out.Node.Name, out.Node.Name
					s.Assume(c, pod)
					on = pod.Annotations[schedulingv1alpha1.DevicesAnnotation]
				}
				if want[2] != "" {
					want[2] = milliGPU + "=" + want[2]
				}
				if name != want[1] || on != want[2] {
					t.Errorf("pod %d of %s units is on %q with %q, want %q with %q", i, want[0], name, on, want[1], want[2])
				}
				s.Release(c)
			}
			checkColumns(t, s)
		})
	}
}

// TestDevicesOfAnnotation: a pod that comes with an annotation has those devices,
// one with a wrong annotation gets some, and a node that grows or comes later has
// room for those that had none.
func TestDevicesOfAnnotation(t *testing.T) {
	s, profile := New(1), profileOf(t, devicesProfile)
	s.SetNode(gpuNode("a", "2000"))
	place := func(name, units, node, annotation string) {
		pod := gpuPod(name, units)
		pod.Spec.NodeName = node
		pod.Annotations = map[string]string{schedulingv1alpha1.DevicesAnnotation: annotation}
		s.SetPod(pod)
	}
	place("before", "400", "a", milliGPU+"=1")
	c := s.ClassOf(profile, gpuPod("asks", "300"))
	place("wrong", "500", "a", milliGPU+"=x")
	place("two", "1000", "a", milliGPU+"=0,1")
	place("later", "250", "late", milliGPU+"=0;example.com/other=7")
	s.SetNode(gpuNode("late", "1000"))
	free := func(node string) string { return fmt.Sprint(c.pool.free[s.nodes[node].row]) }
	if a, late := free("a"), free("late"); a != "[0 100]" || late != "[750]" {
		t.Errorf("free are %s and %s", a, late)
	}
	s.SetNode(gpuNode("a", "1000"))
	s.SetNode(gpuNode("a", "3000"))
	if a := free("a"); a != "[0 100 1000]" {
		t.Errorf("free are %s when the node has grown", a)
	}
	e, err := s.Explain(t.Context(), profile, gpuPod("large", "900"), Policies{}, ExplainOptions{All: true})
	if err != nil || e.Node == nil || e.Node.Name != "a" {
		t.Fatal(e, err)
	}
	s.RemovePod(keyOf(gpuPod("two", "1")))
	if a := free("a"); a != "[1000 100 1000]" {
		t.Errorf("free are %s when a pod has gone", a)
	}
	s.RemoveNode("a")
	s.SetNode(gpuNode("a", "2000"))
	if a := free("a"); a != "[1000 100]" {
		t.Errorf("free are %s when the node has come again", a)
	}
	checkColumns(t, s)
}

// TestDeviceSteps: a change that would let the pod run is told and has been tried.
func TestDeviceSteps(t *testing.T) {
	s, profile := New(1), profileOf(t, devicesProfile)
	s.SetNode(gpuNode("a", "2000"))
	for i, units := range []string{"700", "800"} {
		pod := gpuPod(fmt.Sprint("on", i), units)
		pod.Spec.NodeName = "a"
		s.SetPod(pod)
	}
	e, err := s.Explain(t.Context(), profile, gpuPod("p", "400"), Policies{}, ExplainOptions{All: true})
	if err != nil {
		t.Fatal(err)
	}
	f := e.Details[0].Failures
	if len(f) != 1 || f[0].Plugin != DeviceFragmentation || f[0].Wanted != milliGPU+"=400 on one device" || f[0].Found != "at most 300 free on one of 2 devices" {
		t.Errorf("failures %+v", f)
	}
	if len(e.Changes) != 1 || e.Changes[0].Steps[0].Action != "request 100 less "+milliGPU+": 300" {
		t.Errorf("changes %+v", e.Changes)
	}
}

// BenchmarkDevices decides for pods of 60 shapes over 1,500 nodes of 8 devices.
func BenchmarkDevices(b *testing.B) {
	s := New(1)
	for i := range 1500 {
		n := gpuNode(fmt.Sprint("n", i), "8000")
		n.Status.Allocatable[v1.ResourceCPU] = resource.MustParse("9600")
		n.Status.Allocatable[v1.ResourcePods] = resource.MustParse("100000")
		s.SetNode(n)
	}
	args := &schedulingv1alpha1.DeviceFragmentationArgs{Resource: milliGPU}
	var shapes []*v1.Pod
	for i := range 60 {
		pod := gpuPod("p", fmt.Sprint(20+i*15))
		shapes = append(shapes, pod)
		args.TypicalPods = append(args.TypicalPods, schedulingv1alpha1.TypicalPod{Requests: pod.Spec.Containers[0].Resources.Requests, Weight: int32(1 + i%7)})
	}
	weight := int32(100)
	plugins := schedulingv1alpha1.Plugins{Filter: schedulingv1alpha1.PluginSet{Enabled: []schedulingv1alpha1.PluginRef{{Name: DeviceFragmentation}}},
		Score: schedulingv1alpha1.PluginSet{Enabled: []schedulingv1alpha1.PluginRef{{Name: DeviceFragmentation, Weight: &weight}}}}
	profile, err := NewProfile("devices", schedulingv1alpha1.SchedulerProfileSpec{Plugins: plugins, Args: &schedulingv1alpha1.PluginArgs{DeviceFragmentation: args}})
	if err != nil {
		b.Fatal(err)
	}
	classes := make([]*Class, len(shapes))
	for i := range classes {
		classes[i] = s.ClassOf(profile, shapes[i])
	}
	const most = 15_000
	b.ResetTimer()
	begin := cpuTime(b)
	for i := range b.N {
		pod := *shapes[i%len(shapes)]
		pod.Name = fmt.Sprint("p", i%most)
		s.RemovePod(keyOf(&pod))
		out := s.Decide(classes[i%len(shapes)], uint64(i))
		if out.Node == nil {
			b.Fatal("no node")
		}
		pod.Spec.NodeName = out.Node.Name
		s.Assume(classes[i%len(shapes)], &pod)
	}
	reportRate(b, begin)
}
