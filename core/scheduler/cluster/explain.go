package cluster

import (
	"context"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
)

// Explanation is a Scan with what follows from it.
type Explanation struct {
	*Scan
	// Message says why no node takes the pod, or is "".
	Message string
	// RunnerUp is the best of the other feasible nodes, Margin points behind;
	// nil when there is none.
	RunnerUp *v1.Node
	Margin   int64
	// Preemption that would make room, when no node takes the pod; nil when none
	// would.
	Preemption *Preemption
	// Changes, the smallest first, each of which would let the pod run. They have
	// been tried.
	Changes []Change
	// Details of the nodes of the scan, by index; nil unless they were asked for.
	Details []Detail
}

// Detail is what there is to say of a node that a filter refused.
type Detail struct {
	// Failures of all filters, in their order, not only of the first.
	Failures []Failure
	// Preemption on this node, or why evictions do not help there.
	Preemption *Preemption
	Helpless   string
}

// ExplainOptions of Explain; the zero value tells what costs little.
type ExplainOptions struct {
	// All fills Explanation.Details.
	All bool
	// Budgets limit preemption; Now is the start of pods that have none.
	Budgets []*policyv1.PodDisruptionBudget
	Now     time.Time
}

// Explain scans for a pod that may be bound already, as if it were not there,
// and says what follows. The state is afterwards as it was.
func (s *State) Explain(ctx context.Context, profile *Profile, pod *v1.Pod, p Policies, options ExplainOptions) (*Explanation, error) {
	defer s.pause()()
	key := keyOf(pod)
	if placed := s.Placed(key); placed != nil {
		freed, terms, devices := s.freed, s.freedTallies, s.pods[key].devices
		s.RemovePod(key)
		defer func() {
			s.setPod(key, placed, devices)
			s.freed, s.freedTallies = freed, terms // nothing became free in the end
		}()
	}
	defer s.setAside(key)()
	if pod.Spec.NodeName != "" {
		free := *pod
		free.Spec.NodeName = ""
		free.Status.ContainerStatuses = nil
		pod = &free
	}
	tie := Tie(pod)
	scan, err := s.Scan(ctx, profile, pod, tie, p)
	if err != nil {
		return nil, err
	}
	e := &Explanation{Scan: scan}
	e.rank()
	if scan.Node != nil && !options.All {
		return e, nil
	}
	c := s.ClassOf(profile, pod)
	defer s.Release(c)
	var verdict *Verdict
	if scan.Node == nil {
		if profile.HasPolicies() {
			if _, verdict, err = s.DecideWithPolicies(ctx, c, pod, tie, p); err != nil {
				return nil, err
			}
		} else {
			verdict = s.Verdict(c)
		}
		e.Message = verdict.Message
		e.Preemption = s.Preempt(c, verdict, tie, options.Budgets, options.Now)
	}
	details, err := s.details(ctx, profile, pod, p, scan)
	if err != nil {
		return nil, err
	}
	if scan.Node == nil {
		e.Changes = s.remedies(ctx, profile, pod, p, scan, details)
	}
	if options.All {
		e.Details = details
		s.explainPreemption(c, e, options)
	}
	return e, nil
}

// rank finds the runner-up.
func (e *Explanation) rank() {
	if e.Node == nil {
		return
	}
	for i := range e.Nodes {
		if n := &e.Nodes[i]; n.Plugin == "" && n.Node != e.Node && (e.RunnerUp == nil || e.Score-n.Total < e.Margin) {
			e.RunnerUp, e.Margin = n.Node, e.Score-n.Total
		}
	}
}

// details lists the failures of every refused node, those of policies too.
func (s *State) details(ctx context.Context, profile *Profile, pod *v1.Pod, p Policies, scan *Scan) ([]Detail, error) {
	list := make([]Detail, len(scan.Nodes))
	x := s.newFailures(profile, pod)
	var run *policyRun
	if len(profile.Filters) > 0 {
		run = &policyRun{}
		if err := s.runFilters(ctx, profile, pod, p, run); err != nil {
			return nil, err
		}
	}
	for i := range scan.Nodes {
		from := &scan.Nodes[i]
		if from.Plugin == "" {
			continue
		}
		n := s.nodes[from.Node.Name]
		all := x.of(n)
		if run != nil {
			all = append(all, run.failures(profile, p, n.row)...)
		}
		if !slices.ContainsFunc(all, func(f Failure) bool { return f.Plugin == from.Plugin }) { // a policy, say
			all = append(all, Failure{Plugin: from.Plugin, Reason: strings.Join(from.Reasons, ", ")})
		}
		list[i].Failures = all
	}
	return list, nil
}

// explainPreemption says, for each refused node, whom to evict there or why that
// does not help.
func (s *State) explainPreemption(c *Class, e *Explanation, options ExplainOptions) {
	limits := newBudgets(options.Budgets)
	for i := range e.Nodes {
		from, to := &e.Nodes[i], &e.Details[i]
		if from.Plugin == "" {
			continue
		}
		n := s.nodes[from.Node.Name]
		why, resolvable := s.refusedBeside(c, n.row)
		switch {
		case c.never:
			to.Helpless = "not eligible due to preemptionPolicy=Never"
		case c.factor.reason[n.row] != refusedNot || why == nil || !resolvable:
			to.Helpless = notHelpful
		default:
			victims, left := s.victims(c, n, limits, options.Now)
			to.Preemption, to.Helpless = victims, strings.Join(left, ", ")
		}
	}
}
