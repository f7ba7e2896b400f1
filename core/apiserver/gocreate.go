package apiserver

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"
)

// CreateAs is Create as a request of that user agent would do it: with options,
// its record in managedFields, and a request's time limit. Only ordinary creates
// of built-in, namespaced kinds can be done so; see Ordinary.
func (d *Direct) CreateAs(ctx context.Context, gvr schema.GroupVersionResource, namespace string, object runtime.Object, options metav1.CreateOptions, agent string) (runtime.Object, error) {
	one := d.server.ordinaries.kinds[path{gvr, ""}]
	if one == nil || one.measured["create"] == nil {
		return nil, fmt.Errorf("%s cannot be created without a request", gvr.GroupResource())
	}
	object = object.DeepCopyObject()
	m := accessor(object)
	c, err := d.call(gvr, "", namespace, m.GetName())
	if err != nil {
		return nil, err
	}
	rest.WipeObjectMetaSystemFields(m)
	if err := rest.EnsureObjectNamespaceMatchesRequestNamespace(namespace, m); err != nil {
		return nil, err
	}
	internal, err := c.in(object)
	if err != nil {
		return nil, err
	}
	ctx = context.WithValue(c.context(ctx, "create"), asWrittenKey{}, true)
	created, err := one.store(ctx, namespace, internal, &options, agent)
	if err != nil {
		return nil, err
	}
	return c.out(created)
}

// Ordinary says that a create of the object with these options asks for nothing
// that only a request's handler does.
func Ordinary(object metav1.Object, options *metav1.CreateOptions) bool {
	return len(options.DryRun) == 0 && len(validation.ValidateCreateOptions(options)) == 0 && !hasDuplicates(object.GetOwnerReferences())
}
