package simulate

import (
	"cmp"
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	schedulingv1alpha2 "k8s.io/api/scheduling/v1alpha2"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// Objects are a cluster and the pods that wait to be placed in it. Make them
// with Add.
type Objects struct {
	nodes      []*v1.Node
	placed     []*v1.Pod
	pending    []*v1.Pod
	namespaces []*v1.Namespace
	owners     []metav1.Object // services and controllers, by whose selectors pods spread
	storage    []metav1.Object // claims, volumes and what they depend on
	budgets    []*policyv1.PodDisruptionBudget
	classes    map[string]*schedulingv1.PriorityClass
	groups     map[types.NamespacedName]*schedulingv1alpha2.PodGroup

	seen map[identity]bool
}

type identity struct {
	kind string
	types.NamespacedName
}

// systemClasses are always there.
var systemClasses = map[string]int32{"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}

// Add takes an object with its defaults filled in, which it may change: a
// namespace is "default" when none is given. It says whether objects of that kind
// play a part. The error names the field of an object that is wrong.
func (o *Objects) Add(object runtime.Object) (plays bool, err error) {
	accessor, ok := object.(metav1.Object)
	if !ok {
		return false, nil
	}
	switch object.(type) {
	case *v1.Node, *v1.Namespace, *schedulingv1.PriorityClass, *v1.PersistentVolume, *storagev1.StorageClass, *storagev1.CSINode, *storagev1.CSIDriver,
		*storagev1.VolumeAttachment:
	default:
		if accessor.GetNamespace() == "" {
			accessor.SetNamespace(metav1.NamespaceDefault)
		}
	}
	if err := check(object); err != nil {
		return false, err
	}
	switch x := object.(type) {
	case *v1.Node:
		o.nodes = append(o.nodes, x)
	case *v1.Pod:
		switch {
		case cluster.Ended(x):
		case x.Spec.NodeName != "":
			o.placed = append(o.placed, x)
		case x.DeletionTimestamp == nil:
			o.pending = append(o.pending, x)
		}
	case *v1.Namespace:
		o.namespaces = append(o.namespaces, x)
	case *v1.Service, *v1.ReplicationController, *appsv1.ReplicaSet, *appsv1.StatefulSet:
		o.owners = append(o.owners, accessor)
	case *v1.PersistentVolumeClaim, *v1.PersistentVolume, *storagev1.StorageClass, *storagev1.CSINode, *storagev1.CSIDriver,
		*storagev1.CSIStorageCapacity, *storagev1.VolumeAttachment:
		o.storage = append(o.storage, accessor)
	case *policyv1.PodDisruptionBudget:
		o.budgets = append(o.budgets, x.DeepCopy()) // its status follows the evictions
	case *schedulingv1alpha2.PodGroup:
		if o.groups == nil {
			o.groups = map[types.NamespacedName]*schedulingv1alpha2.PodGroup{}
		}
		o.groups[types.NamespacedName{Namespace: x.Namespace, Name: x.Name}] = x
	case *schedulingv1.PriorityClass:
		if o.classes == nil {
			o.classes = map[string]*schedulingv1.PriorityClass{}
		}
		o.classes[x.Name] = x
	default:
		return false, nil
	}
	id := identity{fmt.Sprintf("%T", object), types.NamespacedName{Namespace: accessor.GetNamespace(), Name: accessor.GetName()}}
	if o.seen[id] {
		return false, fmt.Errorf("metadata.name: the object is there twice")
	}
	if o.seen == nil {
		o.seen = map[identity]bool{}
	}
	o.seen[id] = true
	return true, nil
}

// Nodes is the number of nodes.
func (o *Objects) Nodes() int { return len(o.nodes) }

// Asked says that a pending pod names the scheduler.
func (o *Objects) Asked(schedulerName string) bool {
	return slices.ContainsFunc(o.pending, func(pod *v1.Pod) bool { return pod.Spec.SchedulerName == schedulerName })
}

// queue returns the pending pods in the order of the scheduler's queue: by
// priority, then by creation; those without a time of it last, as they were added.
func (o *Objects) queue() ([]*v1.Pod, error) {
	list := make([]*v1.Pod, len(o.pending))
	for i, pod := range o.pending {
		var err error
		if list[i], err = o.prioritized(pod); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(list, func(a, b *v1.Pod) int {
		x, y := &a.CreationTimestamp, &b.CreationTimestamp
		return cmp.Or(
			cmp.Compare(*b.Spec.Priority, *a.Spec.Priority),
			cmp.Compare(rank(x), rank(y)),
			x.Time.Compare(y.Time))
	})
	return list, nil
}

func rank(t *metav1.Time) int {
	if t.IsZero() {
		return 1
	}
	return 0
}

// prioritized gives the pod the priority of its class, as admission does.
func (o *Objects) prioritized(pod *v1.Pod) (*v1.Pod, error) {
	if pod.Spec.Priority != nil {
		return pod, nil
	}
	out := *pod
	var class *schedulingv1.PriorityClass
	if name := pod.Spec.PriorityClassName; name == "" {
		for _, c := range o.classes {
			if c.GlobalDefault && (class == nil || c.Value < class.Value) {
				class = c
			}
		}
	} else if class = o.classes[name]; class == nil {
		value, system := systemClasses[name]
		if !system {
			return nil, fmt.Errorf("pod %s/%s: spec.priorityClassName: no PriorityClass %q was given", pod.Namespace, pod.Name, name)
		}
		class = &schedulingv1.PriorityClass{Value: value}
	}
	priority := int32(0)
	if class != nil {
		priority = class.Value
		if out.Spec.PreemptionPolicy == nil {
			out.Spec.PreemptionPolicy = class.PreemptionPolicy
		}
	}
	out.Spec.Priority = &priority
	return &out, nil
}

// fill puts the cluster into the state, without the pods that wait.
func (o *Objects) fill(s *cluster.State) error {
	for _, x := range o.namespaces {
		s.SetNamespace(x.Name, x.Labels)
	}
	for _, x := range o.owners {
		s.SetOwner(x)
	}
	for _, x := range o.nodes {
		s.SetNode(x)
	}
	for _, x := range o.storage {
		s.SetStorage(x)
	}
	for _, x := range o.placed {
		pod, err := o.prioritized(x)
		if err != nil {
			return err
		}
		s.SetPod(pod)
	}
	return nil
}
