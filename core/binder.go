package core

import (
	"context"
	"errors"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/admission"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler"
	"github.com/quaymaster/quaymaster/core/storage"
)

// binder commits the scheduler's binds in the store's batches.
type binder struct{ store store }

func (b binder) Commit(ctx context.Context, writes []scheduler.Write) []scheduler.Result {
	in := make([]storage.Write, len(writes))
	for i, write := range writes {
		in[i] = storage.Write(write)
	}
	out := make([]scheduler.Result, len(writes))
	for i, result := range b.store.Commit(ctx, in) {
		var conflict *storage.ConflictError
		if errors.As(result.Err, &conflict) {
			out[i] = scheduler.Result{Revision: conflict.Current, Conflict: true}
		} else {
			out[i] = scheduler.Result{Revision: result.Revision, Err: result.Err}
		}
	}
	return out
}

// CommitAll commits the binds of a gang, all or none.
func (b binder) CommitAll(ctx context.Context, writes []scheduler.Write) scheduler.Result {
	in := make([]storage.Write, len(writes))
	for i, write := range writes {
		in[i] = storage.Write(write)
	}
	revisions, err := b.store.CommitAll(ctx, in)
	var conflict *storage.ConflictError
	switch {
	case errors.As(err, &conflict):
		return scheduler.Result{Revision: conflict.Current, Conflict: true}
	case err != nil || len(revisions) == 0:
		return scheduler.Result{Err: err}
	}
	return scheduler.Result{Revision: revisions[len(revisions)-1]}
}

// reserveTimeout bounds the wait for a scheduler that has not begun, or is ending.
const reserveTimeout = 5 * time.Second

// reserve has the scheduler keep room for a pod that another binds. Where no
// scheduler runs, as in an engine that stands by, there is nobody to ask: the
// storage binds, and who leads learns of it as of every other pod.
func (p *parts) reserve(ctx context.Context, pod types.NamespacedName, node string) (func(bool), error) {
	done := func(bool) {}
	select {
	case <-p.leading:
	default:
		return done, nil
	}
	asked, cancel := context.WithTimeout(ctx, reserveTimeout)
	defer cancel()
	reserved, err := p.scheduler.Reserve(asked, pod, node)
	switch {
	case errors.Is(err, scheduler.ErrNoRoom):
		return nil, apierrors.NewConflict(schema.GroupResource{Resource: "pods/binding"}, pod.Name, err)
	case err != nil: // it is ending, or not there yet
		return done, ctx.Err()
	}
	return reserved, nil
}

// unjudged says that nobody but the storage would see the requests that end a
// preempted pod: there is no audit log, and nothing that can be configured judges
// them. What else judges requests lets the scheduler's pass.
func (p *parts) unjudged() bool {
	if p.options.API.Audit != nil {
		return false
	}
	for _, r := range [...]struct {
		subresource string
		operation   admission.Operation
	}{{"status", admission.Update}, {"", admission.Delete}} {
		if p.server.Judges(podResource, r.subresource, r.operation) {
			return false
		}
		for _, point := range [...]policyv1alpha1.ExtensionPoint{policyv1alpha1.ExtensionMutate, policyv1alpha1.ExtensionValidate} {
			if p.policies.Matches(point, podResource.Group, podResource.Resource, r.subresource, admissionv1.Operation(r.operation)) {
				return false
			}
		}
	}
	return true
}
