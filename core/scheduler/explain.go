package scheduler

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/types"

	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	"github.com/quaymaster/quaymaster/core/decision"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// Explain says where the pod would go on the state of now and why: for a bound
// one as if it were not there, beside the decision as it was taken. All adds, for
// each refused node, every failing filter and what preemption would do there.
func (s *Scheduler) Explain(ctx context.Context, namespace, name string, all bool) (d *decisionv1alpha1.Decision, err error) {
	if ended := s.ask(ctx, func() { d, err = s.explain(ctx, namespace, name, all) }); ended != nil {
		return nil, fmt.Errorf("explain pod %s/%s: %w", namespace, name, ended)
	}
	return d, err
}

// ask calls f between two decisions, in the goroutine that owns the state.
func (s *Scheduler) ask(ctx context.Context, f func()) error {
	done := make(chan struct{})
	s.inbox.put(message{call: func() {
		f()
		close(done)
	}})
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.stopped:
		return ErrStopped
	}
}

func (s *Scheduler) explain(ctx context.Context, namespace, name string, all bool) (*decisionv1alpha1.Decision, error) {
	pod, err := s.pods.Pods(namespace).Get(name)
	if err != nil {
		return nil, fmt.Errorf("explain pod %s/%s: %w", namespace, name, ErrPodNotFound)
	}
	profile := s.profiles[pod.Spec.SchedulerName]
	if profile == nil {
		return nil, fmt.Errorf("explain pod %s/%s of scheduler %q: %w", namespace, name, pod.Spec.SchedulerName, ErrNotServed)
	}
	budgets, err := s.budgets.List(everything)
	if err != nil {
		return nil, fmt.Errorf("explain pod %s/%s: list disruption budgets: %w", namespace, name, err)
	}
	explained, err := s.state.Explain(ctx, profile, pod, s.policiesOf(profile), cluster.ExplainOptions{All: all, Budgets: budgets, Now: s.clock.Now()})
	if err != nil {
		return nil, fmt.Errorf("explain pod %s/%s: %w", namespace, name, err)
	}
	if field := profile.Unsupported(pod); field != "" {
		explained.Node, explained.Message = nil, cluster.UnsupportedMessage(field)
	}
	key := types.NamespacedName{Namespace: namespace, Name: name}
	d := decision.From(key, profile.Name, explained)
	d.Policies = s.versions(profile)
	if d.Group, err = s.explainGroup(ctx, pod); err != nil {
		return nil, fmt.Errorf("explain the group of pod %s/%s: %w", namespace, name, err)
	}
	d.Taken = s.ledger.Taken(key, pod.UID)
	return d, nil
}

// ExplainTaken gives the matrix of the pod's last decision as it was taken: the
// nodes and pods that the scheduler knew then, by the profile of then. It is
// computed again and told only if the outcome is the one that was taken; else, and
// when the ledger or the state's past no longer reach back so far, it is ErrNotKept.
func (s *Scheduler) ExplainTaken(ctx context.Context, namespace, name string) (*decisionv1alpha1.Decision, error) {
	fail := func(err error) (*decisionv1alpha1.Decision, error) {
		return nil, fmt.Errorf("explain the decision taken for pod %s/%s: %w", namespace, name, err)
	}
	pod, err := s.pods.Pods(namespace).Get(name)
	if err != nil {
		return fail(ErrPodNotFound)
	}
	key := types.NamespacedName{Namespace: namespace, Name: name}
	taken, basis := s.ledger.TakenOn(key, pod.UID)
	if taken == nil {
		return fail(fmt.Errorf("%w: it has none, or those of other pods have taken its place", ErrNotKept))
	}
	var past *cluster.Rewound
	if ended := s.ask(ctx, func() { past, err = s.state.Rewind(basis.Position) }); ended != nil {
		return fail(ended)
	}
	if err != nil {
		return fail(fmt.Errorf("%w: %w", ErrNotKept, err))
	}
	free := *pod
	free.Spec.NodeName, free.Status.NominatedNodeName = "", ""
	state := past.State(basis.Profile, key)
	explain := func(p cluster.Policies) (*cluster.Explanation, error) {
		return state.Explain(ctx, basis.Profile, &free, p, cluster.ExplainOptions{All: true, Now: taken.Time.Time})
	}
	var explained *cluster.Explanation
	if basis.Profile.HasPolicies() { // those of now, which the goroutine of Run holds
		if ended := s.ask(ctx, func() { explained, err = explain(s.policiesOf(basis.Profile)) }); ended != nil {
			err = errors.Join(err, ended)
		}
	} else {
		explained, err = explain(cluster.Policies{})
	}
	if err != nil {
		return fail(err)
	}
	d := decision.From(key, basis.Profile.Name, explained)
	d.Taken, d.Policies = taken, taken.Policies
	if d.Node != taken.Node || explained.Score != taken.Score || int32(explained.Feasible) != taken.Feasible || int32(explained.Evaluated) != taken.Evaluated {
		return fail(fmt.Errorf("%w: policies, namespaces, owners or volumes that it depended on are others now", ErrNotKept))
	}
	return d, nil
}
