package simulate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	schedulingv1alpha2 "k8s.io/api/scheduling/v1alpha2"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
)

func node(name, cpu string) *v1.Node {
	return &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name}}, Status: v1.NodeStatus{Allocatable: v1.ResourceList{
		v1.ResourceCPU: resource.MustParse(cpu), v1.ResourceMemory: resource.MustParse("8Gi"), v1.ResourcePods: resource.MustParse("10")}}}
}

func pod(name, cpu string, change ...func(*v1.Pod)) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c",
		Resources: v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu)}}}}}}
	for _, c := range change {
		c(p)
	}
	return p
}

func class(name string) func(*v1.Pod) { return func(p *v1.Pod) { p.Spec.PriorityClassName = name } }
func on(node string) func(*v1.Pod)    { return func(p *v1.Pod) { p.Spec.NodeName = node } }
func app(name string) func(*v1.Pod) {
	return func(p *v1.Pod) { p.Labels = map[string]string{"app": name} }
}
func created(second int64) func(*v1.Pod) {
	return func(p *v1.Pod) { p.CreationTimestamp = metav1.Unix(second, 0) }
}
func nominated(node string) func(*v1.Pod) {
	return func(p *v1.Pod) { p.Status.NominatedNodeName = node }
}

func budget(app string, allowed int32) *policyv1.PodDisruptionBudget {
	return &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: app},
		Spec:   policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}},
		Status: policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: allowed}}
}

func claiming(claim string) func(*v1.Pod) {
	return func(p *v1.Pod) {
		p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}}
	}
}

// local makes a class of local volumes, a volume on each of the nodes, larger from
// one to the next, and three claims.
func local(nodes ...string) (list []runtime.Object) {
	wait, name := storagev1.VolumeBindingWaitForFirstConsumer, "local"
	list = append(list, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: "kubernetes.io/no-provisioner", VolumeBindingMode: &wait})
	modes := []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce}
	for i, n := range nodes {
		size := v1.ResourceList{v1.ResourceStorage: resource.MustParse(fmt.Sprintf("%dGi", i+1))}
		list = append(list, &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "on-" + n}, Status: v1.PersistentVolumeStatus{Phase: v1.VolumeAvailable},
			Spec: v1.PersistentVolumeSpec{StorageClassName: name, Capacity: size, AccessModes: modes, NodeAffinity: &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{
				NodeSelectorTerms: []v1.NodeSelectorTerm{{MatchExpressions: []v1.NodeSelectorRequirement{{Key: "name", Operator: v1.NodeSelectorOpIn, Values: []string{n}}}}}}}}})
	}
	for i, claim := range []string{"first", "second", "third"} {
		size := v1.ResourceList{v1.ResourceStorage: resource.MustParse(fmt.Sprintf("%dGi", max(2-i, 1)))}
		list = append(list, &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: claim}, Spec: v1.PersistentVolumeClaimSpec{
			StorageClassName: &name, AccessModes: modes, Resources: v1.VolumeResourceRequirements{Requests: size}}})
	}
	return list
}

// zones makes a node of that many CPUs in each zone, named as it is.
func zones(list ...string) (nodes []runtime.Object) {
	for i := 0; i < len(list); i += 2 {
		n := node(list[i], list[i+1])
		n.Labels[v1.LabelTopologyZone] = list[i]
		nodes = append(nodes, n)
	}
	return nodes
}

func confinedGroup(name string, minCount int32) *schedulingv1alpha2.PodGroup {
	return &schedulingv1alpha2.PodGroup{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: schedulingv1alpha2.PodGroupSpec{
		SchedulingPolicy:      schedulingv1alpha2.PodGroupSchedulingPolicy{Gang: &schedulingv1alpha2.GangSchedulingPolicy{MinCount: minCount}},
		SchedulingConstraints: &schedulingv1alpha2.PodGroupSchedulingConstraints{Topology: []schedulingv1alpha2.TopologyConstraint{{Key: v1.LabelTopologyZone}}}}}
}

func member(group string) func(*v1.Pod) {
	return func(p *v1.Pod) { p.Spec.SchedulingGroup = &v1.PodSchedulingGroup{PodGroupName: &group} }
}

var high = &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "high"}, Value: 10}

// TestRun writes each decision as pod, node, nominated node and victims.
func TestRun(t *testing.T) {
	for _, tt := range []struct {
		name    string
		objects []runtime.Object
		want    []string
	}{
		{"by priority, then by age, then as given", []runtime.Object{node("a", "10"), high,
			pod("third", "1"), pod("second", "1", created(20)), pod("fourth", "1"), pod("first", "1", created(10)),
			pod("urgent", "1", class("high")), pod("system", "1", class("system-node-critical"))},
			[]string{"system a", "urgent a", "first a", "second a", "third a", "fourth a"}},
		{"the default class", []runtime.Object{node("a", "1"), high, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "usual"}, Value: 20, GlobalDefault: true},
			pod("above", "1", class("high")), pod("usual", "1")},
			[]string{"usual a", "above"}},
		{"a local volume is given out once", append(local("a", "b"), node("a", "4"), node("b", "4"), node("c", "4"),
			pod("one", "1", claiming("first")), pod("two", "1", claiming("second")), pod("three", "1", claiming("third")), pod("four", "1", claiming("none"))),
			[]string{"one b", "two a", "three", "four"}},
		{"a pod finds the node of the one before it full", []runtime.Object{node("a", "1"), pod("one", "1"), pod("two", "1")},
			[]string{"one a", "two"}},
		{"victims are gone and their room is kept", []runtime.Object{node("a", "2"), high, pod("victim", "2", on("a")), pod("late", "1"), pod("later", "1"), pod("urgent", "1", class("high"))},
			[]string{"urgent  a default/victim", "late a", "later"}},
		{"a budget is used up", []runtime.Object{node("a", "1"), node("b", "1"), node("c", "1"), high, budget("web", 1),
			pod("web1", "1", on("a"), app("web")), pod("web2", "1", on("b"), app("web")), pod("batch", "1", on("c"), class("high")),
			pod("u1", "1", func(p *v1.Pod) { p.Spec.Priority = new(int32); *p.Spec.Priority = 5 }),
			pod("u2", "1", func(p *v1.Pod) { p.Spec.Priority = new(int32); *p.Spec.Priority = 4 })},
			nil},
		{"a nominated node is kept, and taken first", []runtime.Object{node("a", "1"), node("b", "1"), high, pod("urgent", "1", class("high"), nominated("b")), pod("other", "1")},
			[]string{"urgent b", "other a"}},
		{"a group in the fullest zone that has room for all of it", append(zones("x", "1", "y", "2", "z", "4"), confinedGroup("g", 2), pod("g0", "1", member("g")), pod("g1", "1", member("g"))),
			[]string{"g0 y", "g1 y"}},
		{"a group that has pods in a zone", append(zones("x", "2", "y", "4"), confinedGroup("g", 2), pod("g0", "1", member("g"), on("y")), pod("g1", "1", member("g"))),
			[]string{"g1 y"}},
		{"a node that is not there", []runtime.Object{node("a", "1"), pod("lost", "1", on("gone")), pod("one", "1", nominated("gone"))},
			[]string{"one a"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var objects Objects
			for _, o := range tt.objects {
				if plays, err := objects.Add(o.DeepCopyObject()); err != nil || !plays {
					t.Fatal(o, plays, err)
				}
			}
			plan, err := Run(t.Context(), &objects, Options{Explain: true, Now: time.Unix(100, 0)})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range plan.Pods {
				got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", p.Name, p.Node, p.NominatedNode, strings.Join(p.Victims, ","))))
				checkBest(t, &p)
			}
			if tt.want != nil && !slices.Equal(got, tt.want) {
				t.Errorf("decided %q, want %q", got, tt.want)
			}
			if tt.want == nil { // the first spares no budget, the second has none left to spare
				if len(plan.Pods[0].Victims) != 1 || len(plan.Pods[1].Victims) != 1 || objects.budgets[0].Status.DisruptionsAllowed != 0 {
					t.Errorf("decided %q, budget %+v", got, objects.budgets[0].Status)
				}
			}
		})
	}
}

// checkBest compares a decision with its explanation.
func checkBest(t *testing.T, p *Pod) {
	t.Helper()
	best, feasible := int64(-1), 0
	for _, n := range p.Nodes {
		if n.Filter == nil {
			feasible++
			best = max(best, n.Total)
		}
	}
	if (p.Node != "") != (feasible > 0) || (p.Node == "") != (p.Message != "") {
		t.Errorf("%s: node %q and message %q with %d feasible nodes", p.Name, p.Node, p.Message, feasible)
	}
	for _, n := range p.Nodes {
		if n.Name == p.Node && n.Total != best {
			t.Errorf("%s: %s has %d, the best %d", p.Name, n.Name, n.Total, best)
		}
	}
}

// TestRunWithDevices fills devices by a profile, whose score is in the answer.
func TestRunWithDevices(t *testing.T) {
	const gpu = "example.com/milligpu"
	weight := int32(100)
	profile := &schedulingv1alpha1.SchedulerProfile{ObjectMeta: metav1.ObjectMeta{Name: "default-scheduler"}}
	profile.Spec.Plugins.Filter.Enabled = []schedulingv1alpha1.PluginRef{{Name: schedulingv1alpha1.DeviceFragmentation}}
	profile.Spec.Plugins.Score.Enabled = []schedulingv1alpha1.PluginRef{{Name: schedulingv1alpha1.DeviceFragmentation, Weight: &weight}}
	units := func(of v1.ResourceList, n string) { of[gpu] = resource.MustParse(n) }
	typical := schedulingv1alpha1.TypicalPod{Requests: v1.ResourceList{}}
	units(typical.Requests, "600")
	profile.Spec.Args = &schedulingv1alpha1.PluginArgs{DeviceFragmentation: &schedulingv1alpha1.DeviceFragmentationArgs{Resource: gpu, TypicalPods: []schedulingv1alpha1.TypicalPod{typical}}}
	a, b := node("a", "8"), node("b", "8")
	units(a.Status.Allocatable, "3000")
	units(b.Status.Allocatable, "1000")
	objects := Objects{}
	asks := func(name, n string) *v1.Pod {
		return pod(name, "1", func(p *v1.Pod) {
			p.Spec.SchedulerName = profile.Name
			units(p.Spec.Containers[0].Resources.Requests, n)
		})
	}
	for _, o := range []runtime.Object{a, b, asks("one", "600"), asks("two", "400"), asks("three", "600"), asks("four", "600"), asks("five", "600"), asks("six", "700")} {
		if _, err := objects.Add(o); err != nil {
			t.Fatal(err)
		}
	}
	plan, err := Run(t.Context(), &objects, Options{Explain: true, Profiles: []*schedulingv1alpha1.SchedulerProfile{profile}})
	if err != nil {
		t.Fatal(err)
	}
	p := plan.Pods
	if p[1].Node != p[0].Node || p[4].Node == "" || p[5].Node != "" {
		t.Errorf("decided %+v", p)
	}
	if want := "0/2 nodes are available: 1 Insufficient " + gpu + ", 1 node(s) had no device with room for the pod."; !strings.HasPrefix(p[5].Message, want) {
		t.Errorf("message %q, want %q", p[5].Message, want)
	}
	for _, n := range plan.Pods[1].Nodes {
		i := slices.IndexFunc(n.Scores, func(s Score) bool { return s.Plugin == schedulingv1alpha1.DeviceFragmentation })
		if i < 0 || n.Scores[i].Weighted < 100*n.Scores[i].Normalized || (n.Scores[i].Raw < 0) != (n.Name == p[0].Node) {
			t.Errorf("%s: scores %+v", n.Name, n.Scores)
		}
	}
	checkBest(t, &p[1])
}

func TestRunEnds(t *testing.T) {
	var objects Objects
	if _, err := objects.Add(pod("one", "1")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, &objects, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
