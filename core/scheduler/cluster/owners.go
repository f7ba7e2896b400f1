package cluster

import (
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// owners are the objects whose selectors say which pods are spread together
// when they name no constraints.
type owners struct {
	services    map[string]map[string]labels.Set // by namespace and name
	controllers map[controllerKey]labels.Selector
}

type controllerKey struct {
	kind string // with its API version
	types.NamespacedName
}

const (
	replicationControllerKind = "v1/ReplicationController"
	replicaSetKind            = "apps/v1/ReplicaSet"
	statefulSetKind           = "apps/v1/StatefulSet"
)

// SetOwner adds a Service, ReplicationController, ReplicaSet or StatefulSet, or
// puts its new version in force.
func (s *State) SetOwner(object metav1.Object) {
	switch o := object.(type) {
	case *v1.Service:
		of := s.owners.services[o.Namespace]
		if of == nil {
			of = map[string]labels.Set{}
			s.owners.services[o.Namespace] = of
		}
		if of[o.Name] = o.Spec.Selector; len(o.Spec.Selector) == 0 {
			delete(of, o.Name)
		}
	case *v1.ReplicationController:
		s.owners.controllers[ownerKey(replicationControllerKind, o)] = labels.SelectorFromSet(o.Spec.Selector)
	case *appsv1.ReplicaSet:
		s.owners.controllers[ownerKey(replicaSetKind, o)] = parse(o.Spec.Selector)
	case *appsv1.StatefulSet:
		s.owners.controllers[ownerKey(statefulSetKind, o)] = parse(o.Spec.Selector)
	}
}

// RemoveOwner forgets what SetOwner added.
func (s *State) RemoveOwner(object metav1.Object) {
	switch o := object.(type) {
	case *v1.Service:
		delete(s.owners.services[o.Namespace], o.Name)
	case *v1.ReplicationController:
		delete(s.owners.controllers, ownerKey(replicationControllerKind, o))
	case *appsv1.ReplicaSet:
		delete(s.owners.controllers, ownerKey(replicaSetKind, o))
	case *appsv1.StatefulSet:
		delete(s.owners.controllers, ownerKey(statefulSetKind, o))
	}
}

func ownerKey(kind string, object metav1.Object) controllerKey {
	return controllerKey{kind, types.NamespacedName{Namespace: object.GetNamespace(), Name: object.GetName()}}
}

// serviceSelector joins the selectors of the pod's services.
func (o *owners) serviceSelector(pod *v1.Pod) (merged labels.Set) {
	of := o.services[pod.Namespace]
	names := make([]string, 0, 4)
	for name, set := range of {
		if set.AsSelectorPreValidated().Matches(labels.Set(pod.Labels)) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		merged = labels.Merge(merged, of[name])
	}
	return merged
}

// selector joins the selectors of the pod's services and of its controller; it
// is empty when there is none.
func (o *owners) selector(pod *v1.Pod) labels.Selector {
	selector := o.serviceSelector(pod).AsSelector()
	if owner := metav1.GetControllerOfNoCopy(pod); owner != nil {
		key := controllerKey{owner.APIVersion + "/" + owner.Kind, types.NamespacedName{Namespace: pod.Namespace, Name: owner.Name}}
		if other := o.controllers[key]; other != nil {
			if requirements, some := other.Requirements(); some {
				selector = selector.Add(requirements...)
			}
		}
	}
	return selector
}
