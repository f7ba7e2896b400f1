package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/admit"
	"github.com/quaymaster/quaymaster/runtime/agent/cgroup"
	"github.com/quaymaster/quaymaster/runtime/agent/status"
)

// admit takes the pod to the node, once, or says why not. One that had been taken before this agent began stays.
func (p *pod) admit(ctx context.Context, api *v1.Pod) (*status.Failure, error) {
	p.mu.Lock()
	taken := p.taken
	p.mu.Unlock()
	if taken || api.Status.Phase == v1.PodSucceeded || api.Status.Phase == v1.PodFailed {
		return nil, nil
	}
	need := admit.Of(api)
	if p.sandboxID != "" || api.Status.StartTime != nil {
		p.take(need)
		return nil, nil
	}
	if why := p.unwelcome(api); why != nil {
		return why, nil
	}
	node := p.a.node.Node()
	refused := p.a.room(p, api, need, node)
	if refused != nil && refused.Stale() {
		var err error
		if node, err = p.a.node.Read(ctx); err != nil {
			return nil, err
		}
		refused = p.a.room(p, api, need, node)
	}
	if refused == nil {
		return nil, nil
	}
	if admit.Check(api, need, p.a.others(p, true), node) == nil {
		return nil, errMakesRoom
	}
	if refused.Short != "" && admit.Critical(api) && p.a.preempt(api, need, refused, node) {
		return nil, errMakesRoom
	}
	p.a.event(api, v1.EventTypeWarning, refused.Reason, refused.Message, "")
	return &status.Failure{Reason: refused.Reason, Message: "Pod was rejected: " + refused.Message}, nil
}

func (p *pod) take(need admit.Need) {
	p.mu.Lock()
	p.taken, p.need = true, need
	p.mu.Unlock()
	p.a.weigh()
}

// release gives back what the pod needed, once nothing of it runs.
func (p *pod) release() {
	p.mu.Lock()
	news := p.taken && !p.ended
	p.ended = true
	p.mu.Unlock()
	if news {
		p.a.weigh()
		p.a.retryDeferred()
	}
}

// room takes the pod if it fits beside the others. Pods are looked at one at a time.
func (a *Agent) room(p *pod, api *v1.Pod, need admit.Need, node *v1.Node) *admit.Refusal {
	a.admission.Lock()
	defer a.admission.Unlock()
	refused := admit.Check(api, need, a.others(p, false), node)
	if refused == nil {
		p.take(need)
	}
	return refused
}

// others is what the node's pods need that were taken before; kept leaves out those
// that the API has no more, which have it until their last container has ended.
func (a *Agent) others(but *pod, kept bool) (out []admit.Need) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range a.pods {
		if o == but {
			continue
		}
		o.mu.Lock()
		if o.taken && !o.ended && !(kept && o.gone) {
			out = append(out, o.need)
		}
		o.mu.Unlock()
	}
	return out
}

// errMakesRoom puts off a pod until those that have to go are gone: for a critical
// one they are evicted, for any they may have been deleted without a grace period.
// Upstream's kubelet does not count the latter, and starts the pod beside them.
var errMakesRoom = errors.New("others make room for the pod")

// preempt evicts what has to go for a critical pod, those first that were promised least, and tells whether that is enough.
func (a *Agent) preempt(api *v1.Pod, need admit.Need, refused *admit.Refusal, node *v1.Node) bool {
	type victim struct {
		p    *pod
		api  *v1.Pod
		need admit.Need
		rank int
	}
	var candidates []victim
	var keep []admit.Need
	a.mu.Lock()
	for _, o := range a.pods {
		o.mu.Lock()
		switch {
		case !o.taken || o.ended:
		case admit.Critical(o.api) || o.api.DeletionTimestamp != nil:
			keep = append(keep, o.need)
		default:
			rank := map[v1.PodQOSClass]int{v1.PodQOSBestEffort: 0, v1.PodQOSBurstable: 1, v1.PodQOSGuaranteed: 2}[cgroup.Class(o.api)]
			candidates = append(candidates, victim{o, o.api, o.need, rank})
		}
		o.mu.Unlock()
	}
	a.mu.Unlock()
	slices.SortFunc(candidates, func(x, y victim) int {
		var px, py int32
		if x.api.Spec.Priority != nil {
			px = *x.api.Spec.Priority
		}
		if y.api.Spec.Priority != nil {
			py = *y.api.Spec.Priority
		}
		return cmp.Or(cmp.Compare(x.rank, y.rank), cmp.Compare(px, py), cmp.Compare(amount(y.need, refused.Short), amount(x.need, refused.Short)))
	})
	for n := range candidates {
		if amount(candidates[n].need, refused.Short) == 0 {
			continue // its going would not help
		}
		others := slices.Clone(keep)
		for i, v := range candidates {
			if i > n || amount(v.need, refused.Short) == 0 {
				others = append(others, v.need)
			}
		}
		if again := admit.Check(api, need, others, node); again != nil && again.Short == refused.Short {
			continue
		}
		for _, v := range candidates[:n+1] {
			if amount(v.need, refused.Short) > 0 {
				v.p.dismiss("Preempting", "Preempted in order to admit critical pod", 0)
			}
		}
		return true
	}
	return false
}

// amount is how much of a resource is needed.
func amount(n admit.Need, name v1.ResourceName) int64 {
	switch name {
	case v1.ResourceCPU:
		return n.CPU
	case v1.ResourceMemory:
		return n.Memory
	case v1.ResourceEphemeralStorage:
		return n.Storage
	case v1.ResourcePods:
		return 1
	}
	return n.Other[name]
}

// unwelcome refuses a pod that comes while the machine is about to go or runs short.
func (p *pod) unwelcome(api *v1.Pod) *status.Failure {
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	if p.a.shutdown {
		return &status.Failure{Reason: shutdownRefused, Message: shutdownRefusal}
	}
	if admit.Static(api) {
		return nil
	}
	var why []string
	for _, c := range []v1.NodeConditionType{v1.NodeMemoryPressure, v1.NodeDiskPressure, v1.NodePIDPressure} {
		if p.a.pressures[c] && (c != v1.NodeMemoryPressure || cgroup.Class(api) == v1.PodQOSBestEffort) {
			why = append(why, string(c))
		}
	}
	if len(why) == 0 {
		return nil
	}
	return &status.Failure{Reason: "Evicted", Message: fmt.Sprintf("The node had condition: %v. ", why)}
}
