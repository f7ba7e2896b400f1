package cluster

import (
	"context"

	v1 "k8s.io/api/core/v1"
)

// MemberTrial is what a member of a gang would get beside those before it.
type MemberTrial struct {
	Node *v1.Node // nil: none
	// Message says why there is none, and Plugins which filters refuse nodes.
	Message string
	Plugins []string
}

// TryGang says what each member would get, in their order, on the domain, as the
// members are decided; it stops at no quorum. The state is afterwards as it was.
func (s *State) TryGang(ctx context.Context, g *Gang, d Domain) ([]MemberTrial, error) {
	defer s.pause()()
	freed, terms := s.freed, s.freedTallies
	defer func() { s.freed, s.freedTallies = freed, terms }()
	for _, m := range g.Members {
		defer s.setAside(keyOf(m.Pod))()
	}
	t := &gangTrial{s: s, members: make([]trialMember, len(g.Members))}
	defer t.end()
	list := make([]MemberTrial, len(g.Members))
	for i := range t.members {
		m := &t.members[i]
		m.Member = g.Members[i]
		m.class = s.ClassWithin(m.Profile, m.Pod, d)
		var out Outcome
		var verdict *Verdict
		var err error
		if m.Profile.HasPolicies() {
			if out, verdict, err = s.DecideWithPolicies(ctx, m.class, m.Pod, m.Tie, g.Policies); err != nil {
				return nil, err
			}
		} else if out = s.Decide(m.class, m.Tie); out.Node == nil {
			verdict = s.Verdict(m.class)
		}
		if out.Node == nil {
			list[i].Message, list[i].Plugins = verdict.Message, verdict.Plugins
			continue
		}
		list[i].Node = out.Node
		t.assume(m, s.nodes[out.Node.Name])
	}
	return list, nil
}
