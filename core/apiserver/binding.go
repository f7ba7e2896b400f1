package apiserver

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/dryrun"
	api "k8s.io/kubernetes/pkg/apis/core"
	podstore "k8s.io/kubernetes/pkg/registry/core/pod/storage"
)

// Reserve has a node keep room for a pod that is about to be bound to it by who is
// not the scheduler, or says why there is none. Done is called with what became of it.
type Reserve func(ctx context.Context, pod types.NamespacedName, node string) (done func(bound bool), err error)

// bindingREST asks for the room, after all that may refuse the request, before
// upstream's storage binds.
type bindingREST struct {
	*podstore.BindingREST
	reserve Reserve
}

func (r *bindingREST) Create(ctx context.Context, name string, obj runtime.Object, validate rest.ValidateObjectFunc, options *metav1.CreateOptions) (runtime.Object, error) {
	binding, ok := obj.(*api.Binding)
	if !ok || r.reserve == nil || dryrun.IsDryRun(options.DryRun) {
		return r.BindingREST.Create(ctx, name, obj, validate, options)
	}
	done, bound := func(bool) {}, false
	defer func() { done(bound) }()
	out, err := r.BindingREST.Create(ctx, name, obj, func(ctx context.Context, obj runtime.Object) (err error) {
		if validate != nil {
			if err := validate(ctx, obj); err != nil {
				return err
			}
		}
		pod := types.NamespacedName{Namespace: apirequest.NamespaceValue(ctx), Name: name}
		reserved, err := r.reserve(ctx, pod, binding.Target.Name)
		if err == nil {
			done = reserved
		}
		return err
	}, options)
	bound = err == nil
	return out, err
}

// legacyBindingREST is the same for the resource "bindings".
type legacyBindingREST struct {
	*podstore.LegacyBindingREST
	binding *bindingREST
}

func (r *legacyBindingREST) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, options *metav1.CreateOptions) (runtime.Object, error) {
	binding, ok := obj.(*api.Binding)
	if !ok {
		return r.LegacyBindingREST.Create(ctx, obj, validate, options)
	}
	return r.binding.Create(ctx, binding.Name, obj, validate, options)
}
