package oracle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// Case is a cluster and what happens to it, in order.
type Case struct {
	// With InterPodAffinity or TopologySpread.
	Namespaces  []*v1.Namespace      `json:"namespaces,omitempty"`
	Services    []*v1.Service        `json:"services,omitempty"`
	ReplicaSets []*appsv1.ReplicaSet `json:"replicaSets,omitempty"`

	Budgets []*policyv1.PodDisruptionBudget `json:"budgets,omitempty"`
	// With Volumes.
	Storage *Storage `json:"storage,omitempty"`

	Nodes []*v1.Node `json:"nodes,omitempty"`
	Bound []*v1.Pod  `json:"bound,omitempty"`
	Steps []Step     `json:"steps"`
}

// Step is one of these.
type Step struct {
	// Decide on a pod, and bind it to the node that it gets.
	Decide *v1.Pod `json:"decide,omitempty"`
	// Node is new, or a new version.
	Node *v1.Node `json:"node,omitempty"`
	// NodeGone and PodGone name what is removed. There may be no such thing.
	NodeGone string `json:"nodeGone,omitempty"`
	PodGone  string `json:"podGone,omitempty"`
	// Storage is new, or new versions; StorageGone is removed.
	Storage     *Storage `json:"storage,omitempty"`
	StorageGone *Storage `json:"storageGone,omitempty"`
}

// Kind is what two results differ in.
type Kind string

// In the order in which they are looked for.
const (
	Feasibility Kind = "feasibility"
	Reasons     Kind = "reasons"
	Scores      Kind = "scores"
	Choice      Kind = "choice" // the decision is not in upstream's best set, or differs from our own scan
	Message     Kind = "message"
	Preemption  Kind = "preemption" // whether evicting pods would help
	Victims     Kind = "victims"    // which, and on which node
	Failure     Kind = "failure"    // one side returned an error
)

// Mismatch is the first difference of a case.
type Mismatch struct {
	Kind   Kind
	Detail string
	// Case is the cluster as it was then, and the step.
	Case Case
}

// Tally counts what was compared.
type Tally struct{ Clusters, Pods, Placed, Refused, Preemptible, Preempted, Nodes int }

// Checker compares both sides over one case after another.
type Checker struct {
	upstream *Upstream
	profile  *cluster.Profile
	Tally    Tally
}

// NewChecker makes both sides. It lives until the context ends.
func NewChecker(ctx context.Context, options Options) (*Checker, error) {
	upstream, err := NewUpstream(ctx, options)
	if err != nil {
		return nil, err
	}
	var spec schedulingv1alpha1.SchedulerProfileSpec
	if err := yaml.UnmarshalStrict([]byte(options.Profile), &spec); err != nil {
		return nil, fmt.Errorf("read the profile: %w", err)
	}
	var set schedulingv1alpha1.PluginSet
	for _, name := range options.disabled() {
		set.Disabled = append(set.Disabled, schedulingv1alpha1.PluginRef{Name: name})
	}
	spec.Plugins = schedulingv1alpha1.Plugins{Filter: set, Score: scoresOf(set)}
	profile, err := cluster.NewProfile(v1.DefaultSchedulerName, spec)
	if err != nil {
		return nil, fmt.Errorf("make our profile: %w", err)
	}
	return &Checker{upstream: upstream, profile: profile}, nil
}

// scoresOf keeps the plugins that rate nodes.
func scoresOf(set schedulingv1alpha1.PluginSet) schedulingv1alpha1.PluginSet {
	set.Disabled = slices.DeleteFunc(slices.Clone(set.Disabled), func(ref schedulingv1alpha1.PluginRef) bool {
		plugin, _ := schedulingv1alpha1.ScorePlugin(ref.Name)
		return plugin == ""
	})
	return set
}

// Check returns the first mismatch of the case, or nil.
func (c *Checker) Check(ctx context.Context, seed uint64, in Case) *Mismatch {
	c.Tally.Clusters++
	r := &run{Checker: c, ours: cluster.New(seed), budgets: in.Budgets}
	if err := c.upstream.Load(ctx, in); err != nil {
		return &Mismatch{Failure, err.Error(), in}
	}
	for _, n := range in.Namespaces {
		r.ours.SetNamespace(n.Name, n.Labels)
	}
	for _, service := range in.Services {
		r.ours.SetOwner(service)
	}
	for _, set := range in.ReplicaSets {
		r.ours.SetOwner(set)
	}
	for _, node := range in.Nodes {
		r.setNode(ctx, node)
	}
	if in.Storage != nil {
		r.storage = &Storage{}
		in.Storage.each(func(object metav1.Object) {
			r.storage.put(object, false)
			r.ours.SetStorage(object)
		})
	}
	for _, pod := range in.Bound {
		if err := c.upstream.Bind(ctx, pod); err != nil {
			return &Mismatch{Failure, err.Error(), in}
		}
		r.ours.SetPod(pod)
		r.bound = append(r.bound, pod)
	}
	for _, step := range in.Steps {
		if kind, detail := r.step(ctx, step); kind != "" {
			now := in
			now.Nodes, now.Bound, now.Storage, now.Steps = r.nodes, r.bound, r.storage, []Step{step}
			return &Mismatch{kind, detail, now}
		}
	}
	return nil
}

// run is one case under way.
type run struct {
	*Checker
	ours    *cluster.State
	nodes   []*v1.Node
	bound   []*v1.Pod
	budgets []*policyv1.PodDisruptionBudget
	storage *Storage
	version int
}

func (r *run) setStorage(object metav1.Object, gone bool) error {
	r.version++
	object.SetResourceVersion(strconv.Itoa(1_000_000 + r.version))
	r.storage.put(object, gone)
	if gone {
		r.ours.RemoveStorage(object)
	} else {
		r.ours.SetStorage(object)
	}
	return r.upstream.SetStorage(object, gone)
}

// bindVolumes is what the controllers of volumes do once the pod has its node.
func (r *run) bindVolumes(class *cluster.Class, node *v1.Node) error {
	b, err := r.ours.AssumeVolumes(class, node.Name)
	if err != nil || b == nil {
		return err
	}
	for _, p := range b.Volumes {
		ref := p.Spec.ClaimRef
		c := r.ours.Claim(types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}).DeepCopy()
		p = p.DeepCopy()
		bind(c, p)
		if err := errors.Join(r.setStorage(p, false), r.setStorage(c, false)); err != nil {
			return err
		}
	}
	for _, c := range b.Claims {
		c = c.DeepCopy()
		p := made(c, node, csiDriver)
		bind(c, p)
		if err := errors.Join(r.setStorage(p, false), r.setStorage(c, false)); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) setNode(ctx context.Context, node *v1.Node) {
	i := slices.IndexFunc(r.nodes, func(n *v1.Node) bool { return n.Name == node.Name })
	if i < 0 {
		r.upstream.SetNode(ctx, nil, node)
		r.nodes = append(r.nodes, node)
	} else {
		r.upstream.SetNode(ctx, r.nodes[i], node)
		r.nodes[i] = node
	}
	r.ours.SetNode(node)
}

func (r *run) step(ctx context.Context, step Step) (Kind, string) {
	var err error
	switch {
	case step.Node != nil:
		r.setNode(ctx, step.Node)
	case step.NodeGone != "":
		if i := slices.IndexFunc(r.nodes, func(n *v1.Node) bool { return n.Name == step.NodeGone }); i >= 0 {
			err = r.upstream.RemoveNode(ctx, r.nodes[i])
			r.ours.RemoveNode(step.NodeGone)
			r.nodes = slices.Delete(r.nodes, i, i+1)
		}
	case step.PodGone != "":
		if i := slices.IndexFunc(r.bound, func(p *v1.Pod) bool { return p.Name == step.PodGone }); i >= 0 {
			pod := r.bound[i]
			err = r.upstream.Unbind(ctx, pod)
			r.ours.RemovePod(types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name})
			r.bound = slices.Delete(r.bound, i, i+1)
		}
	case step.Storage != nil && r.storage != nil:
		step.Storage.each(func(object metav1.Object) { err = errors.Join(err, r.setStorage(object, false)) })
	case step.StorageGone != nil && r.storage != nil:
		step.StorageGone.each(func(object metav1.Object) { err = errors.Join(err, r.setStorage(object, true)) })
	case step.Decide != nil:
		pod := step.Decide
		node, kind, detail := r.decide(ctx, pod)
		if kind != "" {
			return kind, fmt.Sprintf("pod %s: %s", pod.Name, detail)
		}
		if node != "" {
			placed := pod.DeepCopy()
			placed.Spec.NodeName = node
			placed.Status.StartTime = &metav1.Time{Time: time.Unix(1_700_002_000+int64(len(r.bound)), 0).UTC()}
			class := r.ours.ClassOf(r.profile, pod)
			err = r.bindVolumes(class, r.ours.Node(node))
			r.ours.Assume(class, placed)
			r.ours.Release(class)
			err = errors.Join(err, r.upstream.Bind(ctx, placed))
			r.bound = append(r.bound, placed)
		}
	}
	if err != nil {
		return Failure, err.Error()
	}
	return "", ""
}

func (r *run) decide(ctx context.Context, pod *v1.Pod) (node string, kind Kind, detail string) {
	c, ours := r.Checker, r.ours
	want, err := c.upstream.Decide(ctx, pod)
	if err != nil {
		return "", Failure, err.Error()
	}
	if field := c.profile.Unsupported(pod); field != "" {
		return "", Failure, field + " is not implemented here"
	}
	scan, err := ours.Scan(ctx, c.profile, pod, cluster.Tie(pod), cluster.Policies{})
	if err != nil {
		return "", Failure, err.Error()
	}
	class := ours.ClassOf(c.profile, pod)
	defer ours.Release(class)
	out := ours.Decide(class, cluster.Tie(pod))
	c.Tally.Pods++
	c.Tally.Nodes += len(want.Nodes)
	if kind, detail = compareNodes(resultOf(scan), want.Nodes); kind != "" {
		return "", kind, detail
	}
	if out != scan.Outcome {
		return "", Choice, fmt.Sprintf("decided %s, our scan says %s", describe(out), describe(scan.Outcome))
	}
	if out.Node != nil {
		c.Tally.Placed++
		if !slices.Contains(want.Best, out.Node.Name) {
			return "", Choice, fmt.Sprintf("decided %s, upstream's best are %v", describe(out), want.Best)
		}
		return out.Node.Name, "", ""
	}
	c.Tally.Refused++
	if want.Nominated != "" {
		c.Tally.Preemptible++
	}
	verdict := ours.Verdict(class)
	if verdict.Message != want.Message {
		return "", Message, fmt.Sprintf("message\n  ours:     %s\n  upstream: %s", verdict.Message, want.Message)
	}
	if helps := want.Nominated != ""; verdict.Preemptible != helps {
		return "", Preemption, fmt.Sprintf("ours says that preemption helps: %t; upstream nominates %q with the victims %v", verdict.Preemptible, want.Nominated, want.Victims)
	}
	if want.Nominated == "" {
		return "", "", ""
	}
	kind, detail = r.preempt(class, verdict, pod, want)
	return "", kind, detail
}

// preempt compares whom both sides would evict, and where.
func (r *run) preempt(class *cluster.Class, verdict *cluster.Verdict, pod *v1.Pod, want *Result) (Kind, string) {
	p := r.ours.Preempt(class, verdict, cluster.Tie(pod), r.budgets, time.Unix(1_800_000_000, 0))
	if p == nil {
		return Victims, fmt.Sprintf("ours evicts none, upstream %v on %s", want.Victims, want.Nominated)
	}
	r.Tally.Preempted++
	there := want
	if p.Node.Name != want.Nominated { // as good a node, or there were too many to look at them all
		var err error
		if there, err = want.on(p.Node.Name); err != nil {
			return Failure, err.Error()
		}
		if a, b := r.rank(p.Node.Name, there), r.rank(want.Nominated, want); a != b && len(r.nodes) <= 100 && !r.ending(p.Node.Name) && !r.ending(want.Nominated) {
			return Victims, fmt.Sprintf("ours chose %s %v, upstream %s %v", p.Node.Name, a, want.Nominated, b)
		}
	}
	var victims []string
	for _, v := range p.Victims {
		if v.DeletionTimestamp == nil { // upstream does not tell of those that end already
			victims = append(victims, v.Name)
		}
	}
	slices.Sort(victims)
	if !slices.Equal(victims, there.Victims) || len(victims) > 0 && int64(p.Violations) != there.Violations {
		return Victims, fmt.Sprintf("on %s ours evicts %v (%d beyond budgets), upstream %v (%d)", p.Node.Name, victims, p.Violations, there.Victims, there.Violations)
	}
	return "", ""
}

// ending says that a pod on the node ends already.
func (r *run) ending(node string) bool {
	return slices.ContainsFunc(r.bound, func(pod *v1.Pod) bool { return pod.Spec.NodeName == node && pod.DeletionTimestamp != nil })
}

// rank is what candidates are ordered by; equal ones are as good as each other.
func (r *run) rank(node string, of *Result) [5]int64 {
	rank := [5]int64{of.Violations, math.MinInt64, 0, int64(len(of.Victims)), 0}
	for _, pod := range r.bound {
		if pod.Spec.NodeName != node || !slices.Contains(of.Victims, pod.Name) {
			continue
		}
		priority := int64(ptr.Deref(pod.Spec.Priority, 0))
		rank[2] += priority
		start := int64(0)
		if pod.Status.StartTime != nil {
			start = -pod.Status.StartTime.UnixNano()
		}
		if priority > rank[1] {
			rank[1], rank[4] = priority, start
		} else if priority == rank[1] {
			rank[4] = max(rank[4], start)
		}
	}
	return rank
}

func resultOf(scan *cluster.Scan) map[string]NodeResult {
	nodes := make(map[string]NodeResult, len(scan.Nodes))
	for _, n := range scan.Nodes {
		result := NodeResult{Plugin: n.Plugin, Reasons: n.Reasons, Total: n.Total}
		if n.Plugin == "" {
			result.Scores = map[string]int64{}
			for _, score := range n.Scores {
				result.Scores[score.Plugin] += score.Weighted
			}
		}
		nodes[n.Node.Name] = result
	}
	return nodes
}

// compareNodes returns the first difference of the most basic kind.
func compareNodes(ours, upstream map[string]NodeResult) (Kind, string) {
	names := slices.Sorted(maps.Keys(upstream))
	if len(ours) != len(upstream) {
		return Feasibility, fmt.Sprintf("ours saw the nodes %v, upstream %v", slices.Sorted(maps.Keys(ours)), names)
	}
	for _, kind := range []Kind{Feasibility, Reasons, Scores} {
		for _, name := range names {
			a, b := ours[name], upstream[name]
			same := true
			switch kind {
			case Feasibility:
				same = (len(a.Reasons) == 0) == (len(b.Reasons) == 0)
			case Reasons:
				same = (b.Plugin == "" || a.Plugin == b.Plugin) && slices.Equal(slices.Sorted(slices.Values(a.Reasons)), slices.Sorted(slices.Values(b.Reasons)))
			case Scores:
				same = a.Total == b.Total && sameScores(a.Scores, b.Scores)
			}
			if !same {
				return kind, fmt.Sprintf("node %s\n  ours:     %s\n  upstream: %s", name, a, b)
			}
		}
	}
	return "", ""
}

// sameScores takes a plugin that was skipped for one that scored 0.
func sameScores(a, b map[string]int64) bool {
	for _, pair := range [][2]map[string]int64{{a, b}, {b, a}} {
		for plugin, score := range pair[0] {
			if pair[1][plugin] != score {
				return false
			}
		}
	}
	return true
}

// String is one line: what refused the node, or its scores.
func (r NodeResult) String() string {
	if len(r.Reasons) > 0 {
		return fmt.Sprintf("refused by %q: %s", r.Plugin, strings.Join(r.Reasons, ", "))
	}
	return fmt.Sprintf("total %d of %v", r.Total, r.Scores)
}

func describe(o cluster.Outcome) string {
	if o.Node == nil {
		return fmt.Sprintf("no node (%d of %d feasible)", o.Feasible, o.Evaluated)
	}
	return fmt.Sprintf("%s (score %d, %d of %d feasible)", o.Node.Name, o.Score, o.Feasible, o.Evaluated)
}
