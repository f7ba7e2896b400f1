package admit_test

import (
	"runtime"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/runtime/agent/admit"
)

func list(pairs ...string) v1.ResourceList {
	out := v1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		out[v1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return out
}

func pod(requests v1.ResourceList, change ...func(*v1.Pod)) *v1.Pod {
	p := &v1.Pod{Spec: v1.PodSpec{NodeName: "n", Containers: []v1.Container{{Resources: v1.ResourceRequirements{Requests: requests}}}}}
	for _, f := range change {
		f(p)
	}
	return p
}

func ports(list ...v1.ContainerPort) func(*v1.Pod) {
	return func(p *v1.Pod) { p.Spec.Containers[0].Ports = list }
}

func TestCheck(t *testing.T) {
	node := func(change ...func(*v1.Node)) *v1.Node {
		n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"zone": "a"}}}
		n.Status.Allocatable = list("cpu", "2", "memory", "1Gi", "pods", "3", "ephemeral-storage", "1Gi", "example.com/gpu", "1")
		for _, f := range change {
			f(n)
		}
		return n
	}
	taint := func(effect v1.TaintEffect) func(*v1.Node) {
		return func(n *v1.Node) { n.Spec.Taints = []v1.Taint{{Key: "k", Effect: effect}} }
	}
	static := func(p *v1.Pod) { p.Annotations = map[string]string{"kubernetes.io/config.source": "file"} }
	one := pod(list("cpu", "1", "memory", "512Mi"))
	for name, test := range map[string]struct {
		pod    *v1.Pod
		others []*v1.Pod
		node   *v1.Node
		reason string
		says   string
	}{
		"fits":      {one, []*v1.Pod{one}, node(), "", ""},
		"cpu":       {one, []*v1.Pod{one, pod(list("cpu", "1m"))}, node(), "OutOfcpu", "Node didn't have enough resource: cpu, requested: 1000, used: 1001, capacity: 2000"},
		"memory":    {pod(list("memory", "600Mi")), []*v1.Pod{one}, node(), "OutOfmemory", "memory, requested: 629145600, used: 536870912, capacity: 1073741824"},
		"storage":   {pod(list("ephemeral-storage", "2Gi")), nil, node(), "OutOfephemeral-storage", "ephemeral-storage"},
		"untold":    {pod(list("ephemeral-storage", "2Gi")), nil, node(func(n *v1.Node) { delete(n.Status.Allocatable, v1.ResourceEphemeralStorage) }), "", ""},
		"pods":      {pod(nil), []*v1.Pod{pod(nil), pod(nil), pod(nil)}, node(), "OutOfpods", "pods, requested: 1, used: 3, capacity: 3"},
		"device":    {pod(list("example.com/gpu", "1")), []*v1.Pod{pod(list("example.com/gpu", "1"))}, node(), "OutOfexample.com/gpu", "used: 1, capacity: 1"},
		"cluster's": {pod(list("example.com/licence", "1")), nil, node(), "", ""},
		"hugepages": {pod(list("hugepages-2Mi", "2Mi")), nil, node(), "OutOfhugepages-2Mi", "capacity: 0"},
		"nothing":   {pod(nil), []*v1.Pod{one, one}, node(), "", ""},
		"selector":  {pod(nil, func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "b"} }), nil, node(), "NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"},
		"selected":  {pod(nil, func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "a"} }), nil, node(), "", ""},
		"name":      {pod(nil, func(p *v1.Pod) { p.Spec.NodeName = "other" }), nil, node(), "NodeName", "requested node name"},
		"port": {pod(nil, ports(v1.ContainerPort{HostPort: 80})), []*v1.Pod{pod(nil, ports(v1.ContainerPort{HostPort: 80, Protocol: v1.ProtocolTCP}))}, node(),
			"NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"},
		"protocols": {pod(nil, ports(v1.ContainerPort{HostPort: 80})), []*v1.Pod{pod(nil, ports(v1.ContainerPort{HostPort: 80, Protocol: v1.ProtocolUDP}))}, node(), "", ""},
		"addresses": {pod(nil, ports(v1.ContainerPort{HostPort: 80, HostIP: "10.0.0.1"})), []*v1.Pod{pod(nil, ports(v1.ContainerPort{HostPort: 80, HostIP: "10.0.0.2"}))}, node(), "", ""},
		"any address": {pod(nil, ports(v1.ContainerPort{HostPort: 80, HostIP: "10.0.0.1"})), []*v1.Pod{pod(nil, ports(v1.ContainerPort{HostPort: 80}))}, node(),
			"NodePorts", "free ports"},
		"sidecar's port": {pod(nil, ports(v1.ContainerPort{HostPort: 80})), []*v1.Pod{pod(nil, func(p *v1.Pod) {
			p.Spec.InitContainers = []v1.Container{{RestartPolicy: ptr.To(v1.ContainerRestartPolicyAlways), Ports: []v1.ContainerPort{{HostPort: 80}}}}
		})}, node(), "NodePorts", ""},
		"host network": {pod(nil, func(p *v1.Pod) {
			p.Spec.HostNetwork, p.Spec.Containers[0].Ports = true, []v1.ContainerPort{{ContainerPort: 80}}
		}), []*v1.Pod{pod(nil, ports(v1.ContainerPort{HostPort: 80}))}, node(), "NodePorts", ""},
		"taint":           {pod(nil), nil, node(taint(v1.TaintEffectNoExecute)), "TaintToleration", "had taints"},
		"taint, static":   {pod(nil, static), nil, node(taint(v1.TaintEffectNoExecute)), "", ""},
		"no new ones":     {pod(nil), nil, node(taint(v1.TaintEffectNoSchedule)), "", ""},
		"tolerated":       {pod(nil, func(p *v1.Pod) { p.Spec.Tolerations = []v1.Toleration{{Operator: v1.TolerationOpExists}} }), nil, node(taint(v1.TaintEffectNoExecute)), "", ""},
		"system":          {pod(nil, func(p *v1.Pod) { p.Spec.OS = &v1.PodOS{Name: v1.Windows} }), nil, node(), "PodOSNotSupported", "OS field"},
		"system's label":  {pod(nil, func(p *v1.Pod) { p.Labels = map[string]string{v1.LabelOSStable: "plan9"} }), nil, node(), "PodOSSelectorNodeLabelDoesNotMatch", ""},
		"its own system":  {pod(nil, func(p *v1.Pod) { p.Spec.OS = &v1.PodOS{Name: v1.OSName(runtime.GOOS)} }), nil, node(), "", ""},
		"strict":          {pod(nil, strict), nil, node(), "SupplementalGroupsPolicyNotSupported", "Strict"},
		"strict, and can": {pod(nil, strict), nil, node(func(n *v1.Node) { n.Status.Features = &v1.NodeFeatures{SupplementalGroupsPolicy: ptr.To(true)} }), "", ""},
	} {
		var others []admit.Need
		for _, o := range test.others {
			others = append(others, admit.Of(o))
		}
		r := admit.Check(test.pod, admit.Of(test.pod), others, test.node)
		switch {
		case r == nil && test.reason != "":
			t.Errorf("%s: admitted, want %s", name, test.reason)
		case r != nil && (r.Reason != test.reason || !strings.Contains(r.Message, test.says)):
			t.Errorf("%s: %s: %s; want %q, %q", name, r.Reason, r.Message, test.reason, test.says)
		}
	}
}

func strict(p *v1.Pod) {
	p.Spec.SecurityContext = &v1.PodSecurityContext{SupplementalGroupsPolicy: ptr.To(v1.SupplementalGroupsPolicyStrict)}
}
