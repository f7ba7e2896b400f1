package cluster

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestClassicNames has every predicate and priority by the name that schedulers'
// policies knew them by, and what it stands for.
func TestClassicNames(t *testing.T) {
	pressure := TaintToleration // pressure and readiness have long been taints
	for classic, today := range map[string][]string{
		"PodFitsHostPorts": {NodePorts}, "PodFitsPorts": {NodePorts}, "PodFitsHost": {NodeName}, "HostName": {NodeName},
		"PodFitsResources": {NodeResourcesFit}, "MatchNodeSelector": {NodeAffinity}, "PodSelectorMatches": {NodeAffinity},
		"NoVolumeZoneConflict": {VolumeZone}, "NoDiskConflict": {VolumeRestrictions}, "MaxCSIVolumeCount": {NodeVolumeLimits},
		"CheckNodeMemoryPressure": {pressure}, "CheckNodePIDPressure": {pressure}, "CheckNodeDiskPressure": {pressure},
		"CheckNodeCondition": {NodeUnschedulable, TaintToleration}, "CheckNodeUnschedulable": {NodeUnschedulable},
		"PodToleratesNodeTaints": {TaintToleration}, "CheckVolumeBinding": {VolumeBinding}, "MatchInterPodAffinity": {InterPodAffinity},
		"EvenPodsSpread": {PodTopologySpread}, "GeneralPredicates": {NodeName, NodeAffinity, NodePorts, NodeResourcesFit},
		"MaxEBSVolumeCount": {"EBSLimits"}, "MaxGCEPDVolumeCount": {"GCEPDLimits"}, "MaxAzureDiskVolumeCount": {"AzureDiskLimits"}, "MaxCinderVolumeCount": {"CinderLimits"},
	} {
		want := map[string]bool{}
		for _, name := range today {
			want[name] = true
		}
		if p := profileOf(t, "plugins: {filter: {disabled: [{name: '*'}], enabled: [{name: "+classic+"}]}}"); !maps.Equal(p.filters, want) {
			t.Errorf("%s is %v, want %v", classic, p.filters, today)
		}
	}
	for classic, today := range map[string]string{
		"SelectorSpread": SelectorSpread, "SelectorSpreadPriority": SelectorSpread, "ServiceSpreading": ServiceSpreading, "ServiceSpreadingPriority": ServiceSpreading,
		"InterPodAffinityPriority": InterPodAffinity, "LeastRequested": NodeResourcesFit, "LeastRequestedPriority": NodeResourcesFit,
		"MostRequested": NodeResourcesFit, "MostRequestedPriority": NodeResourcesFit, "BalancedResourceAllocation": NodeResourcesBalancedAllocation,
		"NodePreferAvoidPods": NodePreferAvoidPods, "NodePreferAvoidPodsPriority": NodePreferAvoidPods, "NodeAffinityPriority": NodeAffinity,
		"TaintTolerationPriority": TaintToleration, "ImageLocalityPriority": ImageLocality, "EvenPodsSpread": PodTopologySpread, "EqualPriority": EqualPriority,
	} {
		want := map[string]int64{today: 7}
		if p := profileOf(t, "plugins: {score: {disabled: [{name: '*'}], enabled: [{name: "+classic+", weight: 7}]}}"); !maps.Equal(p.scores, want) {
			t.Errorf("%s is %v, want %v", classic, p.scores, want)
		}
	}
	shape := "\nargs: {nodeResourcesFit: {scoringStrategy: {type: RequestedToCapacityRatio, requestedToCapacityRatio: {shape: [{utilization: 0, score: 0}, {utilization: 100, score: 10}]}}}}"
	for _, classic := range []string{"RequestedToCapacityRatio", "RequestedToCapacityRatioPriority"} {
		if p := profileOf(t, "plugins: {score: {disabled: [{name: '*'}], enabled: [{name: "+classic+"}]}}"+shape); p.scores[NodeResourcesFit] != 1 || len(p.scores) != 1 {
			t.Errorf("%s is %v", classic, p.scores)
		}
	}
}

// TestDroppedScores rates nodes by what upstream's scores were before it dropped them,
// reckoned by hand: of the share of other pods with their selector on the node, and two
// thirds by its zone's where it has one.
func TestDroppedScores(t *testing.T) {
	const service, set = "service", "set"
	yes := true
	owned := []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: set, UID: "set", Controller: &yes}}
	placed := []map[string]string{ // labels of the pods on each of four nodes: a is the service's, b the replica set's, too
		{"a": "1", "b": "1"}, {"a": "1"}, {"a": "1", "b": "1"}, nil, {"a": "1"},
	}
	on := []string{"n0", "n0", "n1", "n2", "n3"}
	for _, c := range []struct {
		name, score string
		zones       []string
		change      func(*v1.Pod)
		want        []int64
	}{
		{"by service", SelectorSpread, nil, nil, []int64{0, 50, 100, 50}},
		{"by service and zone", SelectorSpread, []string{"x", "x", "y", "y"}, nil, []int64{0, 16, 77, 61}},
		{"where one node has no zone", SelectorSpread, []string{"x", "x", "y", ""}, nil, []int64{0, 16, 100, 50}},
		{"by service and replica set", SelectorSpread, nil, func(p *v1.Pod) { p.OwnerReferences = owned }, []int64{0, 0, 100, 100}},
		{"of another namespace", SelectorSpread, nil, func(p *v1.Pod) { p.Namespace = "other" }, []int64{100, 100, 100, 100}},
		{"services alone", ServiceSpreading, nil, func(p *v1.Pod) { p.OwnerReferences = owned }, []int64{0, 50, 100, 50}},
		{"services alone, of none", ServiceSpreading, nil, func(p *v1.Pod) { p.Labels = nil; p.OwnerReferences = owned }, []int64{100, 100, 100, 100}},
		{"avoided", NodePreferAvoidPods, nil, func(p *v1.Pod) { p.OwnerReferences = owned }, []int64{100, 0, 100, 100}},
		{"avoided by another controller", NodePreferAvoidPods, nil, nil, []int64{100, 100, 100, 100}},
		{"equal", EqualPriority, nil, nil, []int64{1, 1, 1, 1}},
	} {
		t.Run(c.score+" "+c.name, func(t *testing.T) {
			s := New(1)
			for i := range 4 {
				n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%d", i), Labels: map[string]string{}}, Status: v1.NodeStatus{Allocatable: v1.ResourceList{
					v1.ResourceCPU: resource.MustParse("4"), v1.ResourceMemory: resource.MustParse("8Gi"), v1.ResourcePods: resource.MustParse("10")}}}
				if c.zones != nil && c.zones[i] != "" {
					n.Labels[v1.LabelTopologyZone] = c.zones[i]
				}
				if i == 1 {
					n.Annotations = map[string]string{v1.PreferAvoidPodsAnnotationKey: `{"preferAvoidPods":[{"podSignature":{"podController":{"kind":"ReplicaSet","uid":"set"}}}]}`}
				}
				s.SetNode(n)
			}
			s.SetOwner(&v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: service}, Spec: v1.ServiceSpec{Selector: map[string]string{"a": "1"}}})
			s.SetOwner(&appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: set}, Spec: appsv1.ReplicaSetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"b": "1"}}}})
			for i, labels := range placed {
				p := benchPod(0)
				p.Namespace, p.Name, p.Labels, p.Spec.NodeName = "default", fmt.Sprintf("p%d", i), labels, on[i]
				s.SetPod(p)
			}
			pod := benchPod(0)
			pod.Namespace, pod.Name, pod.Labels = "default", "new", map[string]string{"a": "1", "b": "1"}
			if c.change != nil {
				c.change(pod)
			}
			profile := profileOf(t, "plugins: {score: {disabled: [{name: '*'}], enabled: [{name: "+c.score+", weight: 3}]}}")
			scan, err := s.Scan(context.Background(), profile, pod, 0, Policies{})
			if err != nil {
				t.Fatal(err)
			}
			best := int64(0)
			for i, n := range scan.Nodes {
				if len(n.Scores) != 1 || n.Scores[0].Normalized != c.want[i] || n.Total != 3*c.want[i] {
					t.Errorf("%s: %+v, want %d by %s", n.Node.Name, n.Scores, c.want[i], c.score)
				}
				best = max(best, 3*c.want[i])
			}
			if out := s.Decide(s.ClassOf(profile, pod), 0); out.Node == nil || out.Score != best {
				t.Errorf("decided %s, want a node of %d", describe(out), best)
			}
		})
	}
}

// TestInTreeVolumeLimits: the filters that upstream dropped when in-tree volumes became
// drivers' count each volume once, by the limits that they last had.
func TestInTreeVolumeLimits(t *testing.T) {
	ebs := func(id string) v1.VolumeSource {
		return v1.VolumeSource{AWSElasticBlockStore: &v1.AWSElasticBlockStoreVolumeSource{VolumeID: id}}
	}
	gce := func(id string) v1.VolumeSource {
		return v1.VolumeSource{GCEPersistentDisk: &v1.GCEPersistentDiskVolumeSource{PDName: id, ReadOnly: true}}
	}
	azure := func(id string) v1.VolumeSource {
		return v1.VolumeSource{AzureDisk: &v1.AzureDiskVolumeSource{DiskName: id}}
	}
	cinder := func(id string) v1.VolumeSource {
		return v1.VolumeSource{Cinder: &v1.CinderVolumeSource{VolumeID: id}}
	}
	nothing := func(*v1.Node) {}
	for _, c := range []struct {
		filter, what string
		volume       func(string) v1.VolumeSource
		most         int
		node         func(*v1.Node)
	}{
		{"EBSLimits", "of itself", ebs, 39, nothing},
		{"EBSLimits", "of an instance type", ebs, 25, func(n *v1.Node) { n.Labels[v1.LabelInstanceTypeStable] = "m5.large" }},
		{"EBSLimits", "of the node", ebs, 2, func(n *v1.Node) { n.Status.Allocatable["attachable-volumes-aws-ebs"] = resource.MustParse("2") }},
		{"GCEPDLimits", "of itself", gce, 16, nothing},
		{"AzureDiskLimits", "of itself", azure, 16, nothing},
		{"AzureDiskLimits", "of the node", azure, 3, func(n *v1.Node) { n.Status.Allocatable["attachable-volumes-azure-disk"] = resource.MustParse("3") }},
		{"CinderLimits", "of itself", cinder, 256, nothing},
	} {
		t.Run(c.filter+" "+c.what, func(t *testing.T) {
			s := New(1)
			node := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{}}, Status: v1.NodeStatus{Allocatable: v1.ResourceList{
				v1.ResourceCPU: resource.MustParse("4"), v1.ResourceMemory: resource.MustParse("8Gi"), v1.ResourcePods: resource.MustParse("10")}}}
			c.node(node)
			s.SetNode(node)
			with := func(name string, ids ...int) *v1.Pod {
				p := benchPod(0)
				p.Namespace, p.Name = "default", name
				for _, id := range ids {
					p.Spec.Volumes = append(p.Spec.Volumes, v1.Volume{Name: fmt.Sprint(id), VolumeSource: c.volume(fmt.Sprintf("v%d", id))})
				}
				return p
			}
			var all []int
			for i := range c.most - 1 {
				all = append(all, i)
			}
			there := with("there", all...)
			there.Spec.NodeName = "n"
			s.SetPod(there)
			profile := profileOf(t, "plugins: {filter: {disabled: [{name: VolumeRestrictions}, {name: NodeVolumeLimits}], enabled: [{name: "+c.filter+"}]}}")
			takes := func(pod *v1.Pod, want bool) {
				t.Helper()
				class := s.ClassOf(profile, pod)
				if out := s.Decide(class, 0); (out.Node != nil) != want {
					t.Errorf("%s: %s", pod.Name, describe(out))
				}
				if message := s.Verdict(class).Message; !want && !strings.Contains(message, "1 node(s) exceed max volume count") {
					t.Errorf("%s: %q", pod.Name, message)
				}
			}
			takes(with("the last", c.most), true)
			takes(with("one too many", c.most, c.most+1), false)
			takes(with("of which one is there", 0, c.most), true)
			off := profileOf(t, "plugins: {filter: {disabled: [{name: VolumeRestrictions}, {name: NodeVolumeLimits}]}}")
			if out := s.Decide(s.ClassOf(off, with("without the filter", c.most, c.most+1)), 0); out.Node == nil {
				t.Error("the default profile has the filter")
			}
			s.SetStorage(&storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "n", Annotations: map[string]string{
				v1.MigratedPluginsAnnotationKey: "kubernetes.io/aws-ebs,kubernetes.io/gce-pd,kubernetes.io/azure-disk,kubernetes.io/cinder"}}})
			takes(with("of a driver by now", c.most, c.most+1), true)
		})
	}
}
