package scheduler

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/quaymaster/quaymaster/core/scheduler/suspect"
)

// reasonHeldBack is the condition's of a pod whose kind brings nodes down.
const reasonHeldBack = "HeldBack"

// nodeTrouble heeds that a node falls into trouble, or was in it when it was first seen.
func (s *Scheduler) nodeTrouble(node *v1.Node) {
	since, _ := suspect.Trouble(node)
	if before, _ := suspect.Trouble(s.state.Node(node.Name)); !since.IsZero() && before.IsZero() {
		s.suspects.Node(node.Name, since, s.state.PodsOn(node.Name))
	}
}

// podEnded heeds that a pod is to leave its node.
func (s *Scheduler) podEnded(key types.NamespacedName) {
	if pod := s.state.Placed(key); pod != nil {
		s.suspects.Ended(pod, s.clock.Now())
	}
}

// heldBack has a pod wait whose kind had started on nodes shortly before they fell into trouble.
func (s *Scheduler) heldBack(p *pending) bool {
	now := s.clock.Now()
	until, why := s.suspects.Held(p.pod, now)
	if why == "" {
		return false
	}
	s.unwoken(p)
	if p.nominated != "" {
		s.state.Free(s.state.Withdraw(p.key))
		p.nominated = ""
	}
	s.queue.delay(p, until, queuedFailure)
	s.refuse(p, reasonHeldBack, why)
	return true
}
