package oracle

import (
	"flag"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

var (
	clusters = flag.Int("clusters", 300, "number of random clusters")
	seed     = flag.Uint64("seed", 0, "seed of the first cluster; the others count up from it")
	reports  = flag.Int("reports", 2, "mismatches of each kind to shrink and report")
)

// groups of clusters, by what the pods ask for.
var groups = []struct {
	name    string
	options Options
}{
	{"basic", Options{}},
	{"relations", Options{InterPodAffinity: true, TopologySpread: true}},
	{"pod-level-resources", Options{PodLevelResources: true}},
	{"volumes", Options{Volumes: true}},
	{"arguments", Options{InterPodAffinity: true, TopologySpread: true, Profile: arguments}},
	{"most-allocated", Options{InterPodAffinity: true, TopologySpread: true, Profile: mostAllocated}},
}

// Arguments of every plugin that has some; the names of fields are upstream's.
const (
	arguments = `args:
  nodeResourcesFit:
    ignoredResources: [example.com/none]
    ignoredResourceGroups: [example.org]
    scoringStrategy:
      type: RequestedToCapacityRatio
      resources: [{name: cpu, weight: 3}, {name: ephemeral-storage, weight: 1}, {name: example.com/gpu, weight: 2}]
      requestedToCapacityRatio: {shape: [{utilization: 0, score: 2}, {utilization: 40, score: 10}, {utilization: 100, score: 0}]}
  nodeResourcesBalancedAllocation:
    resources: [{name: cpu, weight: 1}, {name: memory, weight: 1}, {name: example.com/gpu, weight: 1}]
  nodeAffinity:
    addedAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms: [{matchExpressions: [{key: cores, operator: NotIn, values: [many]}]}]
      preferredDuringSchedulingIgnoredDuringExecution:
      - {weight: 7, preference: {matchExpressions: [{key: topology.kubernetes.io/zone, operator: In, values: [b]}]}}
  podTopologySpread:
    defaultingType: List
    defaultConstraints:
    - {maxSkew: 2, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: DoNotSchedule}
    - {maxSkew: 1, topologyKey: disk, whenUnsatisfiable: ScheduleAnyway}
  interPodAffinity: {hardPodAffinityWeight: 20, ignorePreferredTermsOfExistingPods: true}
  defaultPreemption: {minCandidateNodesAbsolute: 1000, minCandidateNodesPercentage: 0}
`
	mostAllocated = `args:
  nodeResourcesFit:
    scoringStrategy: {type: MostAllocated, resources: [{name: cpu, weight: 1}, {name: memory, weight: 2}, {name: hugepages-2Mi, weight: 1}]}
  interPodAffinity: {hardPodAffinityWeight: 0}
  podTopologySpread: {defaultingType: List}
`
)

func checker(t *testing.T, options Options) *Checker {
	t.Helper()
	c, err := NewChecker(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// shrunk reports the smallest case with a mismatch of the same kind.
func shrunk(t *testing.T, c *Checker, seed uint64, whole Case, m *Mismatch) string {
	t.Helper()
	var last *Mismatch
	fails := func(in Case) bool {
		found := c.Check(t.Context(), seed, in)
		if found == nil || found.Kind != m.Kind {
			return false
		}
		last = found
		return true
	}
	start := m.Case
	if !fails(start) {
		start = whole // what came before matters
	}
	text, err := Shrink(start, fails)
	if err != nil {
		t.Fatal(err)
	}
	return last.Detail + "\n---\n" + text
}

// TestAgainstUpstream compares every decision over random clusters of each group.
func TestAgainstUpstream(t *testing.T) {
	for _, group := range groups {
		t.Run(group.name, func(t *testing.T) { compare(t, group.options) })
	}
}

func compare(t *testing.T, options Options) {
	c := checker(t, options)
	found := map[Kind]int{}
	for s := *seed; s < *seed+uint64(*clusters); s++ {
		whole := Generate(s, options)
		m := c.Check(t.Context(), s, whole)
		if m == nil {
			continue
		}
		if found[m.Kind]++; found[m.Kind] <= *reports {
			tally := c.Tally
			t.Errorf("seed %d: %s: %s\nshrunk: %s", s, m.Kind, m.Detail, shrunk(t, c, s, whole, m))
			c.Tally = tally
		} else {
			t.Fail()
		}
	}
	t.Logf("%+v; clusters with mismatches: %v", c.Tally, found)
	if n := c.Tally; len(found) == 0 && *clusters >= 100 &&
		(n.Placed < 2**clusters || n.Refused < *clusters || n.Preemptible < *clusters/10) {
		t.Error("the clusters are too tame to say anything")
	}
}

// TestMismatchShrinks gives our side a wrong profile: the checker has to notice,
// and the case has to become small.
func TestMismatchShrinks(t *testing.T) {
	for _, test := range []struct {
		plugin string
		kind   Kind
		nodes  int // at most
	}{
		{cluster.TaintToleration, Feasibility, 1},
		{cluster.NodeResourcesBalancedAllocation, Scores, 1},
		{cluster.NodePorts, Feasibility, 1},
	} {
		t.Run(test.plugin, func(t *testing.T) {
			c := checker(t, Options{})
			set := schedulingv1alpha1.PluginSet{Disabled: []schedulingv1alpha1.PluginRef{{Name: test.plugin}}}
			plugins := schedulingv1alpha1.Plugins{Filter: set}
			if test.kind == Scores {
				plugins = schedulingv1alpha1.Plugins{Score: set}
			}
			profile, err := cluster.NewProfile(v1.DefaultSchedulerName, schedulingv1alpha1.SchedulerProfileSpec{Plugins: plugins})
			if err != nil {
				t.Fatal(err)
			}
			c.profile = profile
			for s := range uint64(300) {
				whole := Generate(s, Options{})
				m := c.Check(t.Context(), s, whole)
				if m == nil || m.Kind != test.kind {
					continue
				}
				report := shrunk(t, c, s, whole, m)
				var small Case
				if err := yaml.Unmarshal([]byte(report[strings.LastIndex(report, "\n---\n"):]), &small); err != nil {
					t.Fatal(err)
				}
				if len(small.Nodes) > test.nodes || len(small.Steps) != 1 || len(report) > 2500 {
					t.Errorf("shrunk only to\n%s", report)
				}
				return
			}
			t.Fatal("no mismatch was found")
		})
	}
}
