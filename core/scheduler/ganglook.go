package scheduler

import (
	"context"
	"slices"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// explainGroup says how far the gang of a pod is, nil when it has none, and what its
// pods without a node would get now.
func (s *Scheduler) explainGroup(ctx context.Context, pod *v1.Pod) (*decisionv1alpha1.GroupVerdict, error) {
	key, ok := s.gangOf(pod)
	g := s.gangs[key]
	if !ok || g == nil {
		return nil, nil
	}
	needed, ready := s.count(g)
	d := &decisionv1alpha1.GroupVerdict{Name: key.Name, PodGroup: key.podGroup, Placed: int32(len(g.placed)), Needed: int32(max(needed, 0))}
	list := g.untried(func(*pending) bool { return true })
	for name, p := range g.waiting {
		if _, known := g.placed[name]; !known && p.bind != nil {
			d.Placed++
		}
		if !p.deadline.IsZero() && (d.Deadline == nil || p.deadline.Before(d.Deadline.Time)) {
			d.Deadline = &metav1.Time{Time: p.deadline}
		}
	}
	tried := slices.DeleteFunc(slices.Clone(list), func(p *pending) bool { return !s.triable(p) })
	within, elsewhere := cluster.Domain{}, ""
	if len(tried) > 0 {
		within, elsewhere = s.placeGang(ctx, g, tried, needed)
	}
	trials, err := s.state.TryGang(ctx, s.gangOfPods(tried, needed), within)
	if err != nil {
		return nil, err
	}
	fits := 0
	for _, p := range list {
		member := decisionv1alpha1.MemberVerdict{Name: p.key.Name}
		if i := slices.Index(tried, p); i >= 0 {
			member.Message, member.Filters = trials[i].Message, trials[i].Plugins
			if n := trials[i].Node; n != nil {
				member.Node = n.Name
				fits++
			}
		} else if member.Message = cluster.Gated; len(p.pod.Spec.SchedulingGates) == 0 {
			member.Message = p.text // past its deadline
		}
		d.Members = append(d.Members, member)
	}
	if within.Key != "" {
		d.Domain = within.Key + "=" + within.Value
	}
	switch why := s.lacksGroup(g); {
	case why != "":
		d.Message = why
	case needed > ready:
		d.Message = cluster.GangTooSmall
	case g.victims != nil:
		d.Message = cluster.GroupMessage(true, "")
	case elsewhere != "":
		d.Message = elsewhere
	case fits < needed:
		d.Message = cluster.GroupMessage(false, "")
	}
	return d, nil
}
