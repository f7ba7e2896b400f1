// Package simulate decides for the pending pods of a cluster that is given as
// objects. It has no server, client, goroutine or clock: the plan is a function
// of its input, made by the code that decides in the server.
package simulate

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
	"github.com/quaymaster/quaymaster/policies"
)

// Options of a simulation; the zero value decides by upstream's default profile.
type Options struct {
	// Profiles beside the default one, which they may replace.
	Profiles []*schedulingv1alpha1.SchedulerProfile
	// Policies that profiles may name; nil has none.
	Policies policies.Scheduling
	// Seed takes part in every tie-break.
	Seed uint64
	// Now is the time that policies see, and the start of pods that have none.
	Now time.Time
	// Explain fills Pod.Nodes.
	Explain bool
}

// Plan is what was decided, in order.
type Plan struct {
	Pods []Pod `json:"pods"`
}

// Pod is one decision. Each pending pod is decided once. One that makes room by
// preemption has no node yet, but a nominated one: the pods decided later find
// its victims gone and the node reserved.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// SchedulerName that decided.
	SchedulerName string `json:"-"`
	// Node chosen, or "".
	Node string `json:"node"`
	// Message says why there is no node; it is upstream's text.
	Message string `json:"message"`
	// NominatedNode is where the pod goes when its victims have ended, or "".
	NominatedNode string `json:"nominatedNode"`
	// Victims to evict for it, as namespace/name, the most important first.
	Victims []string `json:"victims"`
	// Nodes in the order in which they were given; empty without Options.Explain.
	Nodes []Node `json:"nodes"`
}

// Node is how one node was judged.
type Node struct {
	Name   string  `json:"name"`
	Filter *Filter `json:"filter"` // that refused the node first; null when it is feasible
	Scores []Score `json:"scores"`
	Total  int64   `json:"total"` // of the weighted scores
}

// Filter is a refusal; the reason is upstream's text.
type Filter struct {
	Plugin string `json:"plugin"`
	Reason string `json:"reason"`
}

// Score of one plugin or policy.
type Score struct {
	Plugin     string `json:"plugin"`
	Raw        int64  `json:"raw"`
	Normalized int64  `json:"normalized"`
	Weighted   int64  `json:"weighted"`
}

const gated = "Scheduling is blocked due to non-empty scheduling gates" // upstream's text

// Run decides for every pending pod, in the order of the scheduler's queue. The
// pods behind a scheduling gate, and those of a scheduler that no profile serves,
// come last and are not decided.
func Run(ctx context.Context, objects *Objects, options Options) (*Plan, error) {
	r := &run{options: options, state: cluster.New(options.Seed), budgets: objects.budgets, pinned: map[string]policies.Pinned{}}
	defer r.release()
	if err := r.compile(); err != nil {
		return nil, err
	}
	if err := objects.fill(r.state); err != nil {
		return nil, err
	}
	queue, err := objects.queue()
	if err != nil {
		return nil, err
	}
	for _, pod := range queue {
		if name := pod.Status.NominatedNodeName; name != "" && r.waiting(pod) == "" {
			c := r.state.ClassOf(r.profileOf(pod), pod)
			r.state.Nominate(c, pod, name)
			r.state.Release(c)
		}
	}
	plan := &Plan{Pods: []Pod{}}
	var last []Pod
	for _, pod := range queue {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if why := r.waiting(pod); why != "" {
			last = append(last, *result(pod, why))
			continue
		}
		decided, err := r.decide(ctx, pod)
		if err != nil {
			return nil, fmt.Errorf("pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
		plan.Pods = append(plan.Pods, *decided)
	}
	plan.Pods = append(plan.Pods, last...)
	return plan, nil
}

type run struct {
	options  Options
	state    *cluster.State
	profiles map[string]*cluster.Profile // by scheduler name
	budgets  []*policyv1.PodDisruptionBudget
	pinned   map[string]policies.Pinned
}

// compile makes the profiles and pins their policies.
func (r *run) compile() error {
	r.profiles = map[string]*cluster.Profile{cluster.DefaultSchedulerName: cluster.DefaultProfile()}
	served := map[string]string{}
	for _, object := range r.options.Profiles {
		profile, err := cluster.NewProfile(object.Name, object.Spec)
		if err != nil {
			return err
		}
		if first, twice := served[profile.Name]; twice {
			return fmt.Errorf("the scheduler profiles %q and %q both serve the scheduler name %q", first, object.Name, profile.Name)
		}
		served[profile.Name] = object.Name
		r.profiles[profile.Name] = profile
		var names []string
		for _, f := range profile.Filters {
			names = append(names, f.Policy)
		}
		for _, f := range profile.Scores {
			names = append(names, f.Policy)
		}
		for _, name := range names {
			if r.pinned[name] != nil {
				continue
			}
			if r.options.Policies == nil {
				return fmt.Errorf("scheduler profile %q names the policy %q, and no policies were given", object.Name, name)
			}
			if r.pinned[name], err = r.options.Policies.Pin(name); err != nil {
				delete(r.pinned, name)
				return fmt.Errorf("scheduler profile %q: %w", object.Name, err)
			}
		}
	}
	return nil
}

func (r *run) release() {
	for _, pinned := range r.pinned {
		pinned.Release()
	}
}

func (r *run) profileOf(pod *v1.Pod) *cluster.Profile {
	if pod.Spec.SchedulerName == "" {
		return r.profiles[cluster.DefaultSchedulerName]
	}
	return r.profiles[pod.Spec.SchedulerName]
}

// waiting says why the pod is not decided at all, or "".
func (r *run) waiting(pod *v1.Pod) string {
	if r.profileOf(pod) == nil {
		return fmt.Sprintf("no profile serves the scheduler name %q", pod.Spec.SchedulerName)
	}
	if len(pod.Spec.SchedulingGates) > 0 {
		return gated
	}
	return ""
}

func result(pod *v1.Pod, message string) *Pod {
	return &Pod{Namespace: pod.Namespace, Name: pod.Name, SchedulerName: pod.Spec.SchedulerName, Message: message, Victims: []string{}, Nodes: []Node{}}
}

// decide takes the steps of the server's loop for one pod.
func (r *run) decide(ctx context.Context, pod *v1.Pod) (*Pod, error) {
	s, profile := r.state, r.profileOf(pod)
	decided := result(pod, "")
	if field := profile.Unsupported(pod); field != "" {
		decided.Message = cluster.UnsupportedMessage(field)
		return decided, nil
	}
	c := s.ClassOf(profile, pod)
	defer s.Release(c)
	tie := cluster.Tie(pod)
	nominated := s.Withdraw(types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name})
	p := cluster.Policies{Cycle: policies.Cycle{Time: r.options.Now, Seed: r.options.Seed}, Pinned: r.pinned}
	if r.options.Explain {
		scan, err := s.Scan(ctx, profile, pod, tie, p)
		if err != nil {
			return nil, err
		}
		decided.Nodes = nodesOf(scan)
	}
	var out cluster.Outcome
	var verdict *cluster.Verdict
	var err error
	if profile.HasPolicies() {
		if out, verdict, err = s.DecideWithPolicies(ctx, c, pod, tie, p); err != nil {
			return nil, err
		}
	} else {
		if nominated != "" {
			out = s.DecideOn(c, nominated)
		}
		if out.Node == nil {
			out = s.Decide(c, tie)
		}
		if out.Node == nil {
			verdict = s.Verdict(c)
		}
	}
	if out.Node != nil {
		decided.Node = out.Node.Name
		bound := *pod
		bound.Spec.NodeName = out.Node.Name
		if _, err := s.AssumeVolumes(c, out.Node.Name); err != nil {
			return nil, err
		}
		s.Assume(c, &bound)
		return decided, nil
	}
	if nominated != "" && s.AwaitsVictims(c, nominated) {
		s.Nominate(c, pod, nominated)
		decided.Message, decided.NominatedNode = verdict.AwaitsVictims(), nominated
		return decided, nil
	}
	decided.Message = verdict.Message
	r.preempt(c, verdict, pod, tie, decided)
	return decided, nil
}

func (r *run) preempt(c *cluster.Class, verdict *cluster.Verdict, pod *v1.Pod, tie uint64, decided *Pod) {
	choice := r.state.Preempt(c, verdict, tie, r.budgets, r.options.Now)
	if choice == nil {
		return
	}
	for _, victim := range choice.Victims {
		decided.Victims = append(decided.Victims, victim.Namespace+"/"+victim.Name)
		r.state.RemovePod(types.NamespacedName{Namespace: victim.Namespace, Name: victim.Name})
		r.disrupt(victim)
	}
	for _, key := range r.state.Outranked(c, choice.Node.Name) {
		r.state.Withdraw(key)
	}
	decided.NominatedNode = choice.Node.Name
	r.state.Nominate(c, pod, choice.Node.Name)
}

// disrupt takes an evicted pod off what its budgets allow.
func (r *run) disrupt(victim *v1.Pod) {
	for _, budget := range r.budgets {
		selector, err := metav1.LabelSelectorAsSelector(budget.Spec.Selector)
		if err == nil && budget.Namespace == victim.Namespace && selector.Matches(labels.Set(victim.Labels)) && budget.Status.DisruptionsAllowed > 0 {
			budget.Status.DisruptionsAllowed--
		}
	}
}

func nodesOf(scan *cluster.Scan) []Node {
	list := make([]Node, len(scan.Nodes))
	for i := range scan.Nodes {
		from, to := &scan.Nodes[i], &list[i]
		*to = Node{Name: from.Node.Name, Scores: []Score{}, Total: from.Total}
		if from.Plugin != "" {
			to.Filter = &Filter{from.Plugin, strings.Join(from.Reasons, ", ")}
		}
		for _, score := range from.Scores {
			to.Scores = append(to.Scores, Score(score))
		}
	}
	return slices.Clip(list)
}
