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
	schedulingv1alpha2 "k8s.io/api/scheduling/v1alpha2"
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

// Run decides for every pending pod, in the order of the scheduler's queue, a gang
// at once. The pods behind a scheduling gate or of a gang of which too few are there,
// those past their deadline, and those of a scheduler that no profile serves, come
// last and are not decided.
func Run(ctx context.Context, objects *Objects, options Options) (*Plan, error) {
	r := &run{options: options, state: cluster.New(options.Seed), budgets: objects.budgets, groups: objects.groups, pinned: map[string]policies.Pinned{}}
	defer r.release()
	if err := r.compile(); err != nil {
		return nil, err
	}
	r.trackShares()
	if err := objects.fill(r.state); err != nil {
		return nil, err
	}
	r.placed = map[gangKey][]types.NamespacedName{}
	for _, pod := range objects.placed {
		if key, ok := gangOf(pod); ok {
			r.placed[key] = append(r.placed[key], keyOf(pod))
		}
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
	turns := r.turns(queue)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		next := turns.next()
		if next == nil {
			break
		}
		decided, err := r.decide(ctx, turns, next)
		if err != nil {
			return nil, fmt.Errorf("pod %s/%s: %w", next.pod.Namespace, next.pod.Name, err)
		}
		plan.Pods = append(plan.Pods, decided...)
	}
	plan.Pods = append(plan.Pods, turns.idle...)
	return plan, nil
}

type run struct {
	options  Options
	state    *cluster.State
	profiles map[string]*cluster.Profile // by scheduler name
	budgets  []*policyv1.PodDisruptionBudget
	groups   map[types.NamespacedName]*schedulingv1alpha2.PodGroup
	placed   map[gangKey][]types.NamespacedName // pods of gangs that have nodes
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
		return cluster.Gated
	}
	return ""
}

func result(pod *v1.Pod, message string) *Pod {
	return &Pod{Namespace: pod.Namespace, Name: pod.Name, SchedulerName: pod.Spec.SchedulerName, Message: message, Victims: []string{}, Nodes: []Node{}}
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
