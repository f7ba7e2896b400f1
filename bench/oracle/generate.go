package oracle

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Generate makes the cluster of a seed: nodes (seldom more than 24), pods on
// them, and pods to decide on while nodes and pods come, change and go. Names, values and sizes are few, so that they meet often. All
// of it would pass the API's validation.
func Generate(seed uint64, options Options) Case {
	g := generator{rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15)), options}
	var c Case
	if options.InterPodAffinity || options.TopologySpread {
		g.surroundings(&c)
	}
	nodes := g.IntN(25)
	if g.chance(2) {
		nodes += 120
	}
	for i := range nodes {
		c.Nodes = append(c.Nodes, g.node(i))
	}
	if options.Volumes {
		c.Storage = g.storage(c.Nodes)
	}
	if g.chance(50) {
		c.Budgets = g.budgets()
	}
	crowd := g.IntN(7)
	for i := range nodes {
		ports := map[v1.ContainerPort]bool{}
		for j := range g.IntN(crowd + 1) {
			c.Bound = append(c.Bound, g.bound(fmt.Sprintf("bound-%d-%d", i, j), c.Nodes[i].Name, ports))
		}
	}
	if g.chance(10) {
		c.Bound = append(c.Bound, g.bound("stray", "gone", map[v1.ContainerPort]bool{}))
	}
	shapes := make([]*v1.Pod, 1+g.IntN(8))
	for i := range shapes {
		shapes[i] = g.pod("shape")
	}
	restless := g.chance(60)
	for i := range 4 + g.IntN(16) {
		if restless && g.chance(40) {
			c.Steps = append(c.Steps, g.event(c, i))
		}
		pod := shapes[g.IntN(len(shapes))].DeepCopy()
		pod.Name = fmt.Sprintf("pod-%d", i)
		pod.UID = types.UID(pod.Name)
		if options.Volumes && g.chance(8) {
			if own := g.ephemeral(pod, c.Storage); own != nil {
				own.ResourceVersion = "1"
				c.Storage.Claims = append(c.Storage.Claims, own)
			}
		}
		c.Steps = append(c.Steps, Step{Decide: pod})
	}
	return c
}

// surroundings are what affinity and spread read beside nodes and pods.
func (g generator) surroundings(c *Case) {
	for _, name := range []string{"default", "other"} {
		n := &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
		if g.chance(60) {
			n.Labels["team"] = pick(g, "a", "b")
		}
		c.Namespaces = append(c.Namespaces, n)
		meta := metav1.ObjectMeta{Namespace: name, Name: "s"}
		if g.chance(40) {
			c.Services = append(c.Services, &v1.Service{ObjectMeta: meta, Spec: v1.ServiceSpec{Selector: map[string]string{"app": pick(g, "a", "b", "c")}}})
		}
		if g.chance(50) {
			c.ReplicaSets = append(c.ReplicaSets, &appsv1.ReplicaSet{ObjectMeta: meta, Spec: appsv1.ReplicaSetSpec{Selector: g.apps()}})
		}
	}
}

// event is one before the i-th pod is decided on.
func (g generator) event(c Case, i int) Step {
	if c.Storage != nil && g.chance(40) {
		return g.storageEvent(c, i)
	}
	switch roll := g.IntN(100); {
	case roll < 30:
		return Step{Node: g.node(g.IntN(len(c.Nodes) + 2))}
	case roll < 45:
		return Step{NodeGone: fmt.Sprintf("n%d", g.IntN(len(c.Nodes)+1))}
	case roll < 60 && len(c.Bound) > 0:
		return Step{PodGone: c.Bound[g.IntN(len(c.Bound))].Name}
	default:
		return Step{PodGone: fmt.Sprintf("pod-%d", g.IntN(i+1))}
	}
}

// storageEvent changes what volumes depend on.
func (g generator) storageEvent(c Case, i int) Step {
	version := strconv.Itoa(1_000_000 + i)
	var s Storage
	switch roll := g.IntN(100); {
	case roll < 30:
		p := g.volume(g.IntN(16), len(c.Nodes))
		p.ResourceVersion = version
		s.Volumes = append(s.Volumes, p)
	case roll < 60:
		x := g.claim(pick(g, "default", "other"), "claim-"+strconv.Itoa(g.IntN(claims)), &Storage{})
		x.ResourceVersion = version
		s.Claims = append(s.Claims, x)
	case roll < 75:
		s.CSINodes = append(s.CSINodes, g.csiNode(fmt.Sprintf("n%d", g.IntN(len(c.Nodes)+1))))
	case roll < 85:
		s.Capacities = append(s.Capacities, g.capacity(g.IntN(4)))
	default:
		if len(c.Storage.Classes) > 0 {
			s.Classes = append(s.Classes, c.Storage.Classes[g.IntN(len(c.Storage.Classes))])
		}
	}
	if g.chance(20) {
		return Step{StorageGone: &s}
	}
	return Step{Storage: &s}
}

// budgets allow for few disruptions.
func (g generator) budgets() (list []*policyv1.PodDisruptionBudget) {
	for i := range 1 + g.IntN(3) {
		b := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: pick(g, "default", "default", "other"), Name: "b" + strconv.Itoa(i)},
			Spec: policyv1.PodDisruptionBudgetSpec{Selector: g.apps()}}
		b.Status.DisruptionsAllowed = int32(g.IntN(3))
		if g.chance(10) {
			b.Status.DisruptedPods = map[string]metav1.Time{"bound-0-0": {}}
		}
		list = append(list, b)
	}
	return list
}

type generator struct {
	*rand.Rand
	options Options
}

func (g generator) chance(percent int) bool { return g.IntN(100) < percent }

func pick[T any](g generator, of ...T) T { return of[g.IntN(len(of))] }

// quantity is one of these, or any below the limit.
func (g generator) quantity(limit int, unit string, of ...string) resource.Quantity {
	if g.chance(30) {
		return resource.MustParse(strconv.Itoa(g.IntN(limit)) + unit)
	}
	return resource.MustParse(pick(g, of...))
}

const gpu, license = "example.com/gpu", "license"

var (
	images   = []string{"web", "db:2", "registry.example.com:5000/big", "registry.example.com:5000/base:1", "web@sha256:0e1f", "other"}
	onNodes  = []string{"web:latest", "db:2", "registry.example.com:5000/big:latest", "registry.example.com:5000/base:1", "web@sha256:0e1f", "unused:1"}
	keys     = []string{"disk", v1.LabelTopologyZone, "cores", license}
	taints   = []string{"user", "gpu", v1.TaintNodeUnschedulable}
	effects  = []v1.TaintEffect{v1.TaintEffectNoSchedule, v1.TaintEffectNoExecute, v1.TaintEffectPreferNoSchedule, v1.TaintEffectPreferNoSchedule}
	topology = []string{v1.LabelTopologyZone, v1.LabelTopologyZone, v1.LabelHostname, "disk"}
)

func (g generator) node(i int) *v1.Node {
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%d", i), Labels: map[string]string{}}}
	n.Labels[v1.LabelHostname] = n.Name
	if g.chance(60) {
		n.Labels["disk"] = pick(g, "ssd", "hdd")
	}
	if g.chance(70) {
		n.Labels[v1.LabelTopologyZone] = pick(g, "a", "b", "c")
	}
	if g.chance(40) {
		n.Labels["cores"] = pick(g, "4", "16", "many")
	}
	if g.chance(10) {
		n.Labels[license] = ""
	}
	n.Spec.Unschedulable = g.chance(6)
	seen := map[string]bool{}
	for range g.IntN(4) {
		t := v1.Taint{Key: pick(g, taints...), Value: pick(g, "", "x", "y"), Effect: pick(g, effects...)}
		if id := t.Key + string(t.Effect); g.chance(40) && !seen[id] {
			seen[id] = true
			n.Spec.Taints = append(n.Spec.Taints, t)
		}
	}
	n.Status.Allocatable = v1.ResourceList{
		v1.ResourceCPU:    g.quantity(10_000, "m", "500m", "1", "2", "3900m", "7", "64"),
		v1.ResourceMemory: g.quantity(8<<20, "Ki", "512Mi", "1Gi", "3Gi", "8000M", "16123456Ki", "6Ti"),
		v1.ResourcePods:   resource.MustParse(pick(g, "1", "3", "6", "110", "110")),
	}
	if g.chance(40) {
		n.Status.Allocatable[v1.ResourceEphemeralStorage] = resource.MustParse(pick(g, "1Gi", "10Gi", "0"))
	}
	if g.chance(30) {
		n.Status.Allocatable[gpu] = resource.MustParse(pick(g, "0", "1", "4"))
	}
	if g.chance(10) {
		n.Status.Allocatable["hugepages-2Mi"] = resource.MustParse("64Mi")
	}
	if g.chance(5) {
		delete(n.Status.Allocatable, pick(g, v1.ResourceCPU, v1.ResourceMemory, v1.ResourcePods))
	}
	for _, name := range onNodes {
		if g.chance(30) {
			image := v1.ContainerImage{Names: []string{name}, SizeBytes: pick(g, 0, int64(g.IntN(60)), int64(g.IntN(3000))) << 20}
			if g.chance(10) {
				image.Names = append(image.Names, pick(g, onNodes...))
			}
			n.Status.Images = append(n.Status.Images, image)
		}
	}
	return n
}

func (g generator) container(name string) v1.Container {
	c := v1.Container{Name: name, Image: pick(g, images...)}
	requests := v1.ResourceList{}
	if g.chance(70) {
		requests[v1.ResourceCPU] = g.quantity(1500, "m", "0", "1m", "100m", "250m", "0.3335", "1", "2")
	}
	if g.chance(70) {
		requests[v1.ResourceMemory] = g.quantity(2<<30, "", "0", "64Mi", "100M", "300Mi", "1Gi", "1500000500m")
	}
	if g.chance(10) {
		requests[v1.ResourceEphemeralStorage] = resource.MustParse(pick(g, "0", "500Mi", "4Gi"))
	}
	if g.chance(12) {
		requests[gpu] = resource.MustParse(pick(g, "0", "1", "2"))
	}
	if g.chance(3) {
		requests["example.com/none"] = resource.MustParse("1")
	}
	if g.chance(3) {
		requests["hugepages-2Mi"] = resource.MustParse("32Mi")
	}
	if len(requests) > 0 {
		c.Resources.Requests = requests
	}
	for range g.IntN(3) {
		if g.chance(12) {
			c.Ports = append(c.Ports, v1.ContainerPort{ContainerPort: 80, HostPort: pick[int32](g, 0, 80, 81),
				HostIP: pick(g, "", "0.0.0.0", "127.0.0.1", "10.0.0.1", "::"), Protocol: pick(g, v1.ProtocolTCP, v1.ProtocolTCP, v1.ProtocolUDP)})
		}
	}
	return c
}

func (g generator) pod(name string) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pick(g, "default", "default", "default", "other"), Name: name, UID: types.UID(name)}}
	for i := range 1 + g.IntN(8)/5 + g.IntN(8)/7 {
		p.Spec.Containers = append(p.Spec.Containers, g.container("c"+strconv.Itoa(i)))
	}
	always := v1.ContainerRestartPolicyAlways
	for i := range g.IntN(10) / 7 {
		c := g.container("i" + strconv.Itoa(i))
		if g.chance(50) {
			c.RestartPolicy = &always
		}
		p.Spec.InitContainers = append(p.Spec.InitContainers, c)
	}
	if g.chance(10) {
		p.Spec.Overhead = v1.ResourceList{v1.ResourceCPU: resource.MustParse("50m"), v1.ResourceMemory: resource.MustParse("30Mi")}
	}
	if g.options.PodLevelResources && g.chance(20) {
		g.podLevelResources(p)
	}
	if g.chance(5) {
		p.Spec.Volumes = []v1.Volume{{Name: "image", VolumeSource: v1.VolumeSource{Image: &v1.ImageVolumeSource{Reference: pick(g, images...)}}}}
	}
	if g.chance(70) {
		priority := pick[int32](g, 0, 0, -5, 10, 1000)
		p.Spec.Priority = &priority
	}
	if g.chance(10) {
		policy := pick(g, v1.PreemptNever, v1.PreemptLowerPriority)
		p.Spec.PreemptionPolicy = &policy
	}
	if g.chance(15) {
		p.Spec.NodeSelector = map[string]string{"disk": pick(g, "ssd", "hdd", "tape")}
		if g.chance(30) {
			p.Spec.NodeSelector[v1.LabelTopologyZone] = pick(g, "a", "b")
		}
	}
	for range g.IntN(4) {
		if g.chance(50) {
			p.Spec.Tolerations = append(p.Spec.Tolerations, g.toleration())
		}
	}
	g.nodeAffinity(p)
	if g.options.Volumes && g.chance(60) {
		g.volumes(p)
	}
	if g.chance(70) {
		p.Labels = map[string]string{"app": pick(g, "a", "b", "c"), "version": pick(g, "1", "2")}
	}
	if g.options.InterPodAffinity || g.options.TopologySpread {
		if g.chance(30) {
			controller := true
			p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "s", UID: "s", Controller: &controller}}
		}
	}
	if g.options.InterPodAffinity {
		g.podAffinity(p)
	}
	if g.options.TopologySpread && g.chance(50) {
		g.spread(p)
	}
	return p
}

// bound is a pod on a node, which may be too small for it. The host ports that
// the node's pods have are given: two pods never share one, because upstream
// forgets the port of both when it looks at the node without one of them.
func (g generator) bound(name, node string, taken map[v1.ContainerPort]bool) *v1.Pod {
	p := g.pod(name)
	p.Spec.NodeName = node
	p.Status.StartTime = &metav1.Time{Time: time.Unix(int64(1_700_000_000+g.IntN(1000)), 0).UTC()}
	if g.chance(5) {
		p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1_700_001_000, 0).UTC()}
	}
	resized := g.chance(8)
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			list[i].Ports = slices.DeleteFunc(list[i].Ports, func(port v1.ContainerPort) bool {
				if port.HostIP == "" {
					port.HostIP = "0.0.0.0"
				}
				before := taken[port]
				taken[port] = true
				return before && port.HostPort > 0
			})
		}
	}
	if !resized {
		return p
	}
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; c.RestartPolicy != nil && len(c.Resources.Requests) > 0 {
			actual, allocated := g.resized(c.Resources.Requests)
			p.Status.InitContainerStatuses = append(p.Status.InitContainerStatuses, v1.ContainerStatus{Name: c.Name, Resources: actual, AllocatedResources: allocated})
		}
	}
	for i := range p.Spec.Containers {
		c := v1.ContainerStatus{Name: p.Spec.Containers[i].Name}
		if requests := p.Spec.Containers[i].Resources.Requests; len(requests) > 0 {
			c.Resources, c.AllocatedResources = g.resized(requests)
		}
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, c)
	}
	if p.Spec.Resources != nil {
		p.Status.Resources, p.Status.AllocatedResources = g.resized(p.Spec.Resources.Requests)
	}
	if g.chance(30) {
		p.Status.Conditions = []v1.PodCondition{{Type: v1.PodResizePending, Status: v1.ConditionTrue, Reason: pick(g, v1.PodReasonInfeasible, v1.PodReasonDeferred)}}
	}
	return p
}

// resized is the status of resources that are not at what the spec asks for.
func (g generator) resized(requests v1.ResourceList) (actual *v1.ResourceRequirements, allocated v1.ResourceList) {
	actual, allocated = &v1.ResourceRequirements{Requests: requests.DeepCopy()}, requests.DeepCopy()
	for _, list := range []v1.ResourceList{actual.Requests, allocated} {
		if _, asked := list[v1.ResourceCPU]; asked {
			list[v1.ResourceCPU] = resource.MustParse(pick(g, "100m", "700m", "1500m"))
		}
		if _, asked := list[v1.ResourceMemory]; asked {
			list[v1.ResourceMemory] = resource.MustParse(pick(g, "32Mi", "2Gi"))
		}
	}
	return actual, allocated
}

// podLevelResources are at least what the containers ask for together.
func (g generator) podLevelResources(p *v1.Pod) {
	sum := resourcehelper.AggregateContainerRequests(p, resourcehelper.PodResourcesOptions{})
	requests := v1.ResourceList{}
	for name, more := range map[v1.ResourceName]string{v1.ResourceCPU: "300m", v1.ResourceMemory: "200Mi"} {
		if quantity, asked := sum[name]; asked || name == v1.ResourceCPU {
			quantity.Add(resource.MustParse(more))
			requests[name] = quantity
		}
	}
	p.Spec.Resources = &v1.ResourceRequirements{Requests: requests}
}
