package scheduler

import (
	"context"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// volumeBind is the wait for the claims of a pod whose node is decided: they are
// told which volume they get, or on which node to make one, and bound by those
// who look after volumes. Then the pod is bound.
type volumeBind struct {
	deadline time.Time
	written  bool
}

const volumeTimeout = 30 * time.Second // of the writes

// bindVolumes writes what the claims are to get, and waits for it.
func (s *Scheduler) bindVolumes(c *commit) {
	b := c.bindings
	c.volumes = &volumeBind{deadline: s.clock.Now().Add(c.pending.profile.BindTimeout)}
	s.binding[c] = struct{}{}
	volumes, claims := b.Volumes, b.Claims
	s.jobs.put(func(ctx context.Context) {
		volumes, claims, err := s.writeVolumes(ctx, volumes, claims)
		s.inbox.put(message{call: func() {
			if _, waits := s.binding[c]; !waits {
				return
			}
			// Reverting needs the names only; waiting needs the new versions.
			copy(b.Volumes, volumes)
			copy(b.Claims, claims)
			if c.volumes.written = true; err != nil {
				s.volumesFailed(c, err)
				return
			}
			s.checkVolumes(c)
		}})
	})
}

// writeVolumes returns what the API made of the volumes and claims that it took.
func (s *Scheduler) writeVolumes(ctx context.Context, volumes []*v1.PersistentVolume, claims []*v1.PersistentVolumeClaim) (
	doneVolumes []*v1.PersistentVolume, doneClaims []*v1.PersistentVolumeClaim, err error) {
	ctx, cancel := context.WithTimeout(ctx, volumeTimeout)
	defer cancel()
	core := s.options.Client.CoreV1()
	for _, p := range volumes {
		done, err := core.PersistentVolumes().Update(ctx, p, metav1.UpdateOptions{})
		if err != nil {
			return doneVolumes, doneClaims, fmt.Errorf("give volume %q to its claim: %w", p.Name, err)
		}
		doneVolumes = append(doneVolumes, done)
	}
	for _, x := range claims {
		done, err := core.PersistentVolumeClaims(x.Namespace).Update(ctx, x, metav1.UpdateOptions{})
		if err != nil {
			return doneVolumes, doneClaims, fmt.Errorf("select the node of claim %s/%s: %w", x.Namespace, x.Name, err)
		}
		doneClaims = append(doneClaims, done)
	}
	return doneVolumes, doneClaims, nil
}

// checkVolumes binds the pod if its claims are bound.
func (s *Scheduler) checkVolumes(c *commit) {
	if !c.volumes.written {
		return
	}
	waits, err := s.state.Waits(c.bindings)
	switch {
	case err != nil:
		s.volumesFailed(c, err)
	case !waits:
		delete(s.binding, c)
		if c.gang != nil {
			s.sendGang(c.gang)
			return
		}
		c.pod = c.pending.pod // there may be a newer version by now
		s.send(c)
	case !s.clock.Now().Before(c.volumes.deadline):
		s.volumesFailed(c, context.DeadlineExceeded)
	}
}

func (s *Scheduler) checkAllVolumes() {
	for c := range s.binding {
		s.checkVolumes(c)
	}
}

// volumesFailed gives the pod's node and volumes back; it is tried again.
func (s *Scheduler) volumesFailed(c *commit, err error) {
	p := c.pending
	s.unassume(c)
	p.attempts++
	s.stats.failures.Add(1)
	s.meters.took(p, resultError, s.clock.Since(c.began))
	s.queue.delay(p, s.clock.Now().Add(backOff(p.attempts)), queuedFailure)
	if c.gang != nil {
		s.undoGang(c.gang)
	}
	s.refuse(p, v1.PodReasonSchedulerError, fmt.Sprintf("running PreBind plugin %q: binding volumes: %s", cluster.VolumeBinding, err))
}

// dropVolumes ends the wait for the pod's volumes, if there is one.
func (s *Scheduler) dropVolumes(p *pending) {
	if c := p.bind; c != nil && c.bindings != nil {
		delete(s.binding, c)
		s.state.RevertVolumes(c.bindings)
	}
}

// untilVolumes is how long until the first wait ends.
func (s *Scheduler) untilVolumes(now time.Time) (least time.Duration, some bool) {
	for c := range s.binding {
		if d := c.volumes.deadline.Sub(now); !some || d < least {
			least, some = d, true
		}
	}
	return max(least, 0), some
}
