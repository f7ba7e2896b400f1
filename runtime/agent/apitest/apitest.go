// Package apitest gives tests of a node's parts a fake API that keeps writers from undoing each other's changes, as an API server does:
// client-go's own has no resource versions, and its write of a status takes the rest of the object back to what the writer knew.
package apitest

import (
	"errors"
	"strconv"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// New returns a fake API whose pods and nodes have resource versions from the first write on: an update of another version than the stored
// one is a conflict, without a version it is not, and an update of a status changes nothing else. What a patch changes has a new version.
func New(objects ...runtime.Object) *fake.Clientset {
	c := fake.NewClientset(objects...)
	version := 0 // reactions come one at a time
	next := func(o metav1.Object) {
		version++
		o.SetResourceVersion(strconv.Itoa(version))
	}
	plain := clienttesting.ObjectReaction(c.Tracker())
	for _, resource := range []string{"pods", "nodes"} {
		c.PrependReactor("create", resource, func(a clienttesting.Action) (bool, runtime.Object, error) {
			if o, ok := a.(clienttesting.CreateAction).GetObject().(metav1.Object); ok && a.GetSubresource() == "" {
				next(o)
			}
			return false, nil, nil
		})
		c.PrependReactor("update", resource, func(a clienttesting.Action) (bool, runtime.Object, error) {
			asked := a.(clienttesting.UpdateAction).GetObject().DeepCopyObject()
			to, err := meta.Accessor(asked)
			if err != nil {
				return true, nil, err
			}
			stored, err := c.Tracker().Get(a.GetResource(), a.GetNamespace(), to.GetName())
			if err != nil {
				return true, nil, err
			}
			if v := to.GetResourceVersion(); v != "" && v != stored.(metav1.Object).GetResourceVersion() {
				return true, nil, apierrors.NewConflict(a.GetResource().GroupResource(), to.GetName(), errors.New("the object has been modified"))
			}
			if a.GetSubresource() == "status" {
				asked = withStatus(stored, asked)
			}
			next(asked.(metav1.Object))
			return true, asked.DeepCopyObject(), c.Tracker().Update(a.GetResource(), asked, a.GetNamespace())
		})
		c.PrependReactor("patch", resource, func(a clienttesting.Action) (bool, runtime.Object, error) {
			_, o, err := plain(a)
			if err != nil {
				return true, nil, err
			}
			next(o.(metav1.Object))
			return true, o.DeepCopyObject(), c.Tracker().Update(a.GetResource(), o, a.GetNamespace())
		})
	}
	return c
}

// withStatus is the stored object with the other's status.
func withStatus(stored, asked runtime.Object) runtime.Object {
	switch o := stored.(type) {
	case *v1.Pod:
		o.Status = asked.(*v1.Pod).Status
	case *v1.Node:
		o.Status = asked.(*v1.Node).Status
	}
	return stored
}
