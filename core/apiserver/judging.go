package apiserver

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/waitgroup"
	"k8s.io/apiserver/pkg/admission"
)

// judging counts the requests that are under judgement. Upstream goes on with
// one whose client has left, and the quota's plugin would wait in vain once it
// has ended: it ends when no judgement is under way.
type judging struct {
	admission.Interface
	under *waitgroup.SafeWaitGroup
}

func (j judging) Admit(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	mutation, ok := j.Interface.(admission.MutationInterface)
	if !ok {
		return nil
	}
	return j.judge(func() error { return mutation.Admit(ctx, a, o) })
}

func (j judging) Validate(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	validation, ok := j.Interface.(admission.ValidationInterface)
	if !ok {
		return nil
	}
	return j.judge(func() error { return validation.Validate(ctx, a, o) })
}

func (j judging) judge(f func() error) error {
	if j.under.Add(1) != nil {
		return apierrors.NewServiceUnavailable(ErrClosed.Error())
	}
	defer j.under.Done()
	return f()
}
