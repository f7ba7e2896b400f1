package core

import (
	"context"
	"errors"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	"github.com/quaymaster/quaymaster/core/apiserver"
	"github.com/quaymaster/quaymaster/core/scheduler"
)

// explain answers the virtual resource "decisions"; nil is a pod that is not there.
func (p *parts) explain(ctx context.Context, namespace, pod string, view apiserver.DecisionView) (*decisionv1alpha1.Decision, error) {
	var d *decisionv1alpha1.Decision
	var err error
	if view == apiserver.TakenDecision {
		d, err = p.scheduler.ExplainTaken(ctx, namespace, pod)
	} else {
		d, err = p.scheduler.Explain(ctx, namespace, pod, view == apiserver.FullDecision)
	}
	switch {
	case errors.Is(err, scheduler.ErrPodNotFound):
		return nil, nil
	case errors.Is(err, scheduler.ErrNotKept):
		return nil, apierrors.NewResourceExpired(err.Error())
	}
	return d, err
}
