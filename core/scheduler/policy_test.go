package scheduler

import (
	"context"
	"errors"
	"sync"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	framework "k8s.io/client-go/tools/cache/testing"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// host is a policies.Scheduling with one policy, "only", that allows one node.
type host struct {
	mu         sync.Mutex
	allowed    string // "": not loaded
	generation int64
	changed    chan struct{}
	pins       int
}

func (h *host) load(allowed string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.allowed = allowed
	h.generation++
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *host) Pin(string) (policies.Pinned, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.allowed == "" {
		return nil, policies.ErrNotLoaded
	}
	h.pins++
	return &pin{h, h.allowed, h.generation}, nil
}

func (h *host) Changed() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changed
}

type pin struct {
	host       *host
	allowed    string
	generation int64
}

func (p *pin) Provenance() policies.Provenance {
	return policies.Provenance{Policy: "only", Generation: p.generation, Digest: "sha256:" + p.allowed}
}
func (p *pin) Points() []policyv1alpha1.ExtensionPoint { return nil }
func (p *pin) FailurePolicy(policyv1alpha1.ExtensionPoint) policyv1alpha1.FailurePolicy {
	return policyv1alpha1.FailurePolicyFail
}
func (p *pin) Static() bool             { return true }
func (p *pin) Reason(int, uint8) string { return "node(s) not allowed" }
func (p *pin) Release() {
	p.host.mu.Lock()
	defer p.host.mu.Unlock()
	p.host.pins--
}
func (p *pin) Filter(_ context.Context, _ policies.Cycle, _ *v1.Pod, fleet *abi.Fleet, verdicts []uint8) (policies.Cost, error) {
	for row, node := range fleet.Nodes {
		if node != nil && node.Name != p.allowed {
			verdicts[row] = 1
		}
	}
	return policies.Cost{}, nil
}
func (p *pin) Score(context.Context, policies.Cycle, *v1.Pod, *abi.Fleet, []uint8, []int64) (policies.Cost, error) {
	return policies.Cost{}, nil
}

func TestPoliciesAndProfilesChangeLive(t *testing.T) {
	h := &host{changed: make(chan struct{})}
	source := framework.NewFakeControllerSource()
	profiles := cache.NewSharedIndexInformer(source, &schedulingv1alpha1.SchedulerProfile{}, 0, cache.Indexers{})
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() { defer close(ended); profiles.Run(stop) }()
	t.Cleanup(func() { close(stop); <-ended; source.Shutdown() })
	w := newWorld(t, func(o *Options) { o.Policies, o.Profiles = h, profiles })
	w.put(nodeResource, testNode("a", "4", nil))
	w.put(nodeResource, testNode("b", "4", nil))
	pod := func(name string) {
		p := testPod(name, "100m")
		p.Spec.SchedulerName = "picky"
		w.put(podResource, p)
	}
	pod("p1") // before anyone serves its name
	profile := &schedulingv1alpha1.SchedulerProfile{ObjectMeta: metav1.ObjectMeta{Name: "picky"}}
	profile.Spec.Plugins.Filter.Enabled = []schedulingv1alpha1.PluginRef{{Policy: "only"}}
	source.Add(profile)
	eventually(t, "the missing policy is told of", func() bool {
		c := podCondition(w.pod("p1"))
		return c != nil && c.Reason == v1.PodReasonSchedulerError && c.Message == `filter policy "only": policy is not loaded`
	})
	h.load("b")
	w.bound("p1", "b")
	h.load("a")
	pod("p2")
	w.bound("p2", "a")
	h.load("elsewhere")
	pod("p3")
	w.refused("p3", "0/2 nodes are available: 2 node(s) not allowed. "+
		"no new claims to deallocate, preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.")
	d, err := w.sched.Explain(context.Background(), "default", "p3", false)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Policies) != 1 || d.Policies[0].Generation != 3 || d.Nodes[0].Filter.Plugin != "only" {
		t.Errorf("explained as %+v", d)
	}
	h.load("a")
	w.bound("p3", "a")

	// Without the profile nobody serves the name; with a wrong one neither.
	source.Delete(profile)
	eventually(t, "the profile is gone", func() bool {
		_, err := w.sched.Explain(context.Background(), "default", "p1", false)
		return errors.Is(err, ErrNotServed)
	})
	pod("p4")
	wrong := profile.DeepCopy()
	wrong.Spec.Plugins.Filter.Enabled = []schedulingv1alpha1.PluginRef{{Name: "Nonsense"}}
	source.Add(wrong)
	w.put(podResource, testPod("default", "100m"))
	w.bound("default", "")
	if node := w.pod("p4").Spec.NodeName; node != "" {
		t.Errorf("p4 went to %s with no profile", node)
	}
	right := wrong.DeepCopy()
	right.Spec = schedulingv1alpha1.SchedulerProfileSpec{SchedulerName: "picky"}
	source.Modify(right)
	w.bound("p4", "")

	// A bind says which devices the pod has.
	shares := right.DeepCopy()
	shares.Spec.Plugins.Filter.Enabled = []schedulingv1alpha1.PluginRef{{Name: schedulingv1alpha1.DeviceFragmentation}}
	shares.Spec.Args = &schedulingv1alpha1.PluginArgs{DeviceFragmentation: &schedulingv1alpha1.DeviceFragmentationArgs{Resource: "example.com/milligpu"}}
	source.Modify(shares)
	gpus := testNode("gpus", "4", nil)
	gpus.Status.Allocatable["example.com/milligpu"] = resource.MustParse("2000")
	w.put(nodeResource, gpus)
	part := testPod("part", "100m")
	part.Spec.SchedulerName = "picky"
	part.Spec.Containers[0].Resources.Requests["example.com/milligpu"] = resource.MustParse("300")
	w.put(podResource, part)
	w.bound("part", "gpus")
	eventually(t, "the profile with devices is in force", func() bool { // the pod may have been before it
		if w.pod("part").Annotations[schedulingv1alpha1.DevicesAnnotation] == "example.com/milligpu=0" {
			return true
		}
		w.remove(podResource, "default", "part")
		w.put(podResource, part)
		w.bound("part", "gpus")
		return false
	})

	w.cancel()
	eventually(t, "the policies are let go of", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.pins == 0
	})
}
