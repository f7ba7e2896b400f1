package core

import (
	"context"
	"errors"

	admissionv1 "k8s.io/api/admission/v1"
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
		in[i] = storage.Write{Key: write.Key, Value: write.Value, Expect: write.Expect}
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
		in[i] = storage.Write{Key: write.Key, Value: write.Value, Expect: write.Expect}
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
