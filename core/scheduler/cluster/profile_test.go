package cluster

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
)

// specOf parses the spec of a profile.
func specOf(t *testing.T, text string) (spec schedulingv1alpha1.SchedulerProfileSpec) {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(text), &spec); err != nil {
		t.Fatal(err)
	}
	return spec
}

func profileOf(t *testing.T, text string) *Profile {
	t.Helper()
	p, err := NewProfile("p", specOf(t, text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// classicProfile has the scores that upstream dropped, and classic names.
const classicProfile = `
schedulerName: classic
plugins:
  filter:
    disabled: [{name: PodToleratesNodeTaints}]
    enabled: [{name: MaxEBSVolumeCount}, {name: GeneralPredicates}]
  score:
    disabled: [{name: EvenPodsSpreadPriority}]
    enabled:
    - {name: SelectorSpreadPriority, weight: 3}
    - {name: ServiceSpreadingPriority}
    - {name: NodePreferAvoidPodsPriority}
    - {name: EqualPriority, weight: 2}
    - {name: MostRequestedPriority}
`

// devicesProfile gives parts of devices.
const devicesProfile = `
schedulerName: devices
plugins:
  filter: {enabled: [{name: DeviceFragmentation}]}
  score: {enabled: [{name: DeviceFragmentation, weight: 100}]}
args:
  deviceFragmentation:
    resource: example.com/milligpu
    typicalPods:
    - {requests: {cpu: "1", example.com/milligpu: "300"}, weight: 5}
    - {requests: {cpu: 250m, memory: 1Gi, example.com/milligpu: "700"}, weight: 3}
    - {requests: {example.com/milligpu: "1000"}, nodeSelectorTerms: [{matchExpressions: [{key: disk, operator: In, values: [ssd]}]}]}
    - {requests: {cpu: "2", example.com/milligpu: "2000"}, weight: 2}
`

// argsProfile has an argument of every kind.
const argsProfile = `
schedulerName: args
args:
  nodeResourcesFit:
    ignoredResources: [example.com/gpu]
    scoringStrategy:
      type: RequestedToCapacityRatio
      resources: [{name: cpu, weight: 3}, {name: ephemeral-storage}, {name: example.com/gpu, weight: 2}]
      requestedToCapacityRatio: {shape: [{utilization: 0, score: 2}, {utilization: 40, score: 10}, {utilization: 100, score: 0}]}
  nodeResourcesBalancedAllocation:
    resources: [{name: cpu}, {name: memory}, {name: example.com/gpu}]
  nodeAffinity:
    addedAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms: [{matchExpressions: [{key: disk, operator: NotIn, values: [hdd]}]}]
      preferredDuringSchedulingIgnoredDuringExecution:
      - {weight: 7, preference: {matchExpressions: [{key: topology.kubernetes.io/zone, operator: In, values: [b]}]}}
  podTopologySpread:
    defaultingType: List
    defaultConstraints:
    - {maxSkew: 2, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: DoNotSchedule}
    - {maxSkew: 1, topologyKey: disk, whenUnsatisfiable: ScheduleAnyway}
  interPodAffinity: {hardPodAffinityWeight: 20, ignorePreferredTermsOfExistingPods: true}
  defaultPreemption: {minCandidateNodesAbsolute: 200, minCandidateNodesPercentage: 0}
`

func TestProfileErrors(t *testing.T) {
	for spec, want := range map[string]string{
		`plugins: {filter: {enabled: [{name: Nonsense}]}}`:                                                                                                    `spec.plugins.filter.enabled[0].name: Invalid value: "Nonsense": is no built-in plugin`,
		`plugins: {score: {enabled: [{name: NodePorts}]}}`:                                                                                                    `spec.plugins.score.enabled[0].name: Invalid value: "NodePorts"`,
		`plugins: {score: {enabled: [{name: ImageLocality, weight: 101}]}}`:                                                                                   `spec.plugins.score.enabled[0].weight: Invalid value: 101`,
		`plugins: {filter: {enabled: [{name: NodePorts, policy: p}]}}`:                                                                                        `only one of name, policy`,
		`plugins: {score: {enabled: [{}]}}`:                                                                                                                   `set one of name, policy`,
		`plugins: {filter: {disabled: [{name: Nope}]}}`:                                                                                                       `spec.plugins.filter.disabled[0].name`,
		`plugins: {score: {enabled: [{name: MostRequested}, {name: LeastRequested}]}}`:                                                                        `means the scoring strategy LeastAllocated, but the profile has MostAllocated`,
		`plugins: {score: {enabled: [{name: RequestedToCapacityRatio}]}}`:                                                                                     `needs args.nodeResourcesFit.scoringStrategy`,
		`args: {nodeResourcesFit: {scoringStrategy: {type: Tetris}}}`:                                                                                         `spec.args.nodeResourcesFit.scoringStrategy.type: Unsupported value: "Tetris"`,
		`args: {nodeResourcesFit: {scoringStrategy: {type: RequestedToCapacityRatio}}}`:                                                                       `requestedToCapacityRatio: Required value`,
		`args: {nodeResourcesFit: {scoringStrategy: {resources: [{name: cpu, weight: 101}]}}}`:                                                                `resources[0].weight: Invalid value: 101: not in valid range [1, 100]`,
		`args: {nodeResourcesFit: {ignoredResourceGroups: [a/b]}}`:                                                                                            `can't contain '/'`,
		`args: {nodeResourcesBalancedAllocation: {resources: [{name: cpu, weight: 2}]}}`:                                                                      `must be 1`,
		`args: {interPodAffinity: {hardPodAffinityWeight: 101}}`:                                                                                              `not in valid range [0, 100]`,
		`args: {podTopologySpread: {defaultConstraints: [{maxSkew: 1, topologyKey: z, whenUnsatisfiable: ScheduleAnyway}]}}`:                                  `it must be List`,
		`args: {podTopologySpread: {defaultingType: List, defaultConstraints: [{maxSkew: 0, topologyKey: "", whenUnsatisfiable: Maybe, labelSelector: {}}]}}`: `labelSelector: Forbidden`,
		`args: {nodeAffinity: {addedAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Gt, values: [x]}]}]}}}}`: `spec.args.nodeAffinity.addedAffinity`,
		`args: {volumeBinding: {bindTimeoutSeconds: -1}}`:                                           `should not be a negative value`,
		`args: {defaultPreemption: {minCandidateNodesAbsolute: 0, minCandidateNodesPercentage: 0}}`: `cannot be zero at the same time`,
		`queue: {order: Lottery}`:                    `spec.queue.order: Unsupported value`,
		`queue: {weights: {a: 1}}`:                   `only with the order FairShare`,
		`queue: {order: FairShare, weights: {a: 0}}`: `spec.queue.weights[a]`,
		`queue: {label: team}`:                       `spec.queue.label: Forbidden: only with the order FairShare`,
		`queue: {order: FairShare, label: "a b"}`:    `spec.queue.label: Invalid value: "a b"`,
		`queue: {deadlineSeconds: 0}`:                `must be at least 1`,
	} {
		if _, err := NewProfile("x", specOf(t, spec)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", spec, err, want)
		}
	}
}

func TestStrategies(t *testing.T) {
	node := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: v1.NodeStatus{Allocatable: v1.ResourceList{
		v1.ResourceCPU: resource.MustParse("4"), v1.ResourceMemory: resource.MustParse("8Gi"), v1.ResourcePods: resource.MustParse("10"), "example.com/gpu": resource.MustParse("4")}}}
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: v1.PodSpec{Containers: []v1.Container{{Resources: v1.ResourceRequirements{Requests: v1.ResourceList{
		v1.ResourceCPU: resource.MustParse("1"), v1.ResourceMemory: resource.MustParse("4Gi"), "example.com/gpu": resource.MustParse("3")}}}}}}
	for strategy, want := range map[string]int64{
		`{}`:                    (75 + 50) / 2,
		`{type: MostAllocated}`: (25 + 50) / 2,
		`{type: MostAllocated, resources: [{name: cpu}, {name: example.com/gpu, weight: 3}]}`:                                                                                    (25 + 3*75) / 4,
		`{resources: [{name: memory}, {name: example.com/none}]}`:                                                                                                                50,
		`{type: RequestedToCapacityRatio, requestedToCapacityRatio: {shape: [{utilization: 0, score: 0}, {utilization: 100, score: 10}]}}`:                                       38,  // rounded
		`{type: RequestedToCapacityRatio, requestedToCapacityRatio: {shape: [{utilization: 30, score: 10}, {utilization: 50, score: 0}]}}`:                                       100, // rates of 0 are left out
		`{type: RequestedToCapacityRatio, resources: [{name: example.com/gpu}], requestedToCapacityRatio: {shape: [{utilization: 50, score: 0}, {utilization: 100, score: 8}]}}`: 40,
	} {
		p := profileOf(t, "plugins: {score: {disabled: [{name: '*'}], enabled: [{name: NodeResourcesFit}]}}\nargs: {nodeResourcesFit: {scoringStrategy: "+strategy+"}}")
		s := New(1)
		s.SetNode(node)
		c := s.ClassOf(p, pod)
		if out := s.Decide(c, 0); out.Node == nil || out.Score != want {
			t.Errorf("%s: %+v, want the score %d", strategy, out, want)
		}
	}
}
