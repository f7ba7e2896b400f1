package qm_test

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	qm "github.com/quaymaster/quaymaster/sdk/go"
)

func TestViews(t *testing.T) {
	meta := metav1.ObjectMeta{Name: "n", Namespace: "ns", Labels: map[string]string{"a": "1", "empty": ""}, Annotations: map[string]string{"b": "2"}}
	priority := int32(-7)
	node := corev1.Node{
		ObjectMeta: meta,
		Spec:       corev1.NodeSpec{Unschedulable: true, Taints: []corev1.Taint{{Key: "k", Value: "v", Effect: corev1.TaintEffectNoSchedule}, {Key: "q"}}},
		Status: corev1.NodeStatus{
			Capacity:    corev1.ResourceList{"cpu": resource.MustParse("8")},
			Allocatable: corev1.ResourceList{"cpu": resource.MustParse("7500m"), "memory": resource.MustParse("1.5Gi")},
			Conditions:  []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}, {Type: "Disk", Status: corev1.ConditionUnknown}},
			Images:      []corev1.ContainerImage{{Names: []string{"x:1", "x:2"}, SizeBytes: 7}, {Names: []string{"y"}}},
		},
	}
	pod := corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{
		Priority: &priority, SchedulerName: "s", ServiceAccountName: "sa", NodeSelector: map[string]string{"disk": "ssd"},
		Tolerations:    []corev1.Toleration{{Key: "k", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute}},
		InitContainers: []corev1.Container{{Name: "i", Image: "init"}},
		Containers: []corev1.Container{{Name: "c", Image: "web", Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{"cpu": resource.MustParse("250m")}, Limits: corev1.ResourceList{"memory": resource.MustParse("1Mi")},
		}}},
	}}
	nodeData, err := node.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	podData, err := pod.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	n, p := qm.NodeOf(nodeData), qm.PodViewOf(podData)
	text := func(value string, ok bool) any { return []any{value, ok} }
	var images, some []string
	n.Images(func(name string) bool { images = append(images, name); return true })
	n.Images(func(name string) bool { some = append(some, name); return false })
	c := p.Containers()[0]
	for _, tt := range []struct {
		name      string
		got, want any
	}{
		{"name", n.Name(), "n"}, {"label", text(n.Label("a")), text("1", true)}, {"empty label", text(n.Label("empty")), text("", true)},
		{"no label", text(n.Label("b")), text("", false)}, {"annotation", text(p.Annotation("b")), text("2", true)},
		{"unschedulable", n.Unschedulable(), true}, {"taints", n.Taints(), []qm.Taint{{"k", "v", "NoSchedule"}, {"q", "", ""}}},
		{"condition", n.Condition("Disk"), "Unknown"}, {"no condition", n.Condition("None"), ""},
		{"capacity", n.Capacity("cpu").Value(), int64(8)}, {"allocatable", n.Allocatable("cpu").Milli(), int64(7500)},
		{"memory", n.Allocatable("memory").Value(), int64(3 << 29)}, {"none", n.Allocatable("gpu"), qm.Quantity("")},
		{"images", images, []string{"x:1", "x:2", "y"}}, {"the first image", some, []string{"x:1"}},
		{"namespace", p.Namespace(), "ns"}, {"priority", p.Priority(), int32(-7)}, {"scheduler", p.SchedulerName(), "s"},
		{"service account", p.ServiceAccount(), "sa"}, {"selector", text(p.NodeSelector("disk")), text("ssd", true)},
		{"tolerations", p.Tolerations(), []qm.PodToleration{{"k", "Exists", "", "NoExecute"}}},
		{"init", p.InitContainers()[0].Image(), "init"}, {"container", c.Name() + c.Image(), "cweb"},
		{"request", c.Request("cpu").Milli(), int64(250)}, {"limit", c.Limit("memory").Value(), int64(1 << 20)},
	} {
		if !reflect.DeepEqual(tt.got, tt.want) {
			t.Errorf("%s is %v, expected %v", tt.name, tt.got, tt.want)
		}
	}
	for cut := range nodeData {
		n := qm.NodeOf(nodeData[:cut])
		n.Taints()
		n.Images(func(string) bool { return true })
	}
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte{0x0a, 3, 1, 2, 3, 0x10, 0xff, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		length := 0
		for f, rest, ok := qm.Message(data).Next(); ok; f, rest, ok = rest.Next() {
			if length += len(f.Bytes) + 1; length > len(data) {
				t.Fatalf("%d bytes of fields in %d", length, len(data))
			}
		}
		p := qm.PodViewOf(data)
		p.Containers()
		p.Tolerations()
	})
}
