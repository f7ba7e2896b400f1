package scheduler

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"
	schedulingv1alpha2 "k8s.io/api/scheduling/v1alpha2"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

const (
	// maxInFlight bounds the writes that are decided but not committed.
	maxInFlight = 8192
	// Pods that policies refuse are tried again after this long, whatever
	// happened: a policy may read what no event tells of.
	flushAfter = 5 * time.Minute
	flushEvery = 30 * time.Second
	// One in so many decisions is audited, and one part in so many of the time.
	defaultAuditEvery = 1_000
	auditShare        = 100
)

// loop is the one goroutine that owns state, queue and decisions.
func (s *Scheduler) loop(ctx context.Context) {
	defer s.unpin()
	if s.options.Policies != nil {
		s.changed = s.options.Policies.Changed()
	}
	flush := s.clock.NewTimer(flushEvery)
	defer flush.Stop()
	ready := s.clock.NewTimer(time.Hour) // when a back-off ends
	defer ready.Stop()
	var buffer []message
	for ctx.Err() == nil {
		buffer = s.inbox.drain(buffer)
		for i := range buffer {
			s.apply(ctx, &buffer[i])
		}
		select {
		case <-s.changed: // nil without policies; looked at after the inbox: a pod that came after a policy meets it
			s.policiesChanged()
		default:
		}
		s.wake()
		s.endBackOff()
		s.expire()
		if s.queue.active.count > 0 && s.inFlight < maxInFlight {
			s.decide(ctx, s.queue.active.pop())
			continue
		}
		s.gauge()
		s.setTimer(ready)
		select {
		case <-ctx.Done():
		case <-s.inbox.signal:
		case <-s.changed:
			s.policiesChanged()
		case <-ready.C():
			s.checkAllVolumes()
		case <-flush.C():
			flush.Reset(flushEvery)
			s.flush()
		}
	}
}

// setTimer wakes the loop when the next back-off or wait for volumes ends, or the
// gauges may be set.
func (s *Scheduler) setTimer(ready clock.Timer) {
	now := s.clock.Now()
	least, some := s.untilVolumes(now)
	if len(s.queue.backOff.list) > 0 {
		if d := max(s.queue.backOff.list[0].readyAt.Sub(now), 0); !some || d < least {
			least, some = d, true
		}
	}
	if len(s.queue.deadlines) > 0 {
		if d := max(s.queue.deadlines[0].deadline.Sub(now), 0); !some || d < least {
			least, some = d, true
		}
	}
	if s.meters.stale {
		if d := s.untilGauge(now); !some || d < least {
			least, some = d, true
		}
	}
	if some {
		ready.Reset(least)
	}
}

func (s *Scheduler) apply(ctx context.Context, m *message) {
	switch {
	case m.pod != nil:
		s.sawRevision(m.pod.ResourceVersion)
		s.applyPod(m.pod)
	case m.goneP != nil:
		key := types.NamespacedName{Namespace: m.goneP.Namespace, Name: m.goneP.Name}
		s.podEnded(key)
		if p := s.queue.pods[key]; p != nil {
			s.drop(p)
		}
		delete(s.reserved, key)
		s.gangPod(m.goneP, true)
		s.state.RemovePod(key)
		s.queue.active.used(m.goneP)
	case m.node != nil:
		s.sawRevision(m.node.ResourceVersion)
		s.nodeTrouble(m.node)
		s.state.SetNode(m.node)
	case m.goneN != "":
		s.state.RemoveNode(m.goneN)
		s.suspects.Forget(m.goneN)
		s.checkAllVolumes()
		s.nodeGone()
	case m.profiles:
		s.applyProfiles()
	case m.set != nil:
		s.applyObject(m.set)
	case m.gone != nil:
		s.removeObject(m.gone)
	case m.committed != nil:
		for _, c := range m.committed {
			s.committed(c)
		}
	case m.call != nil:
		m.call()
	}
}

// applyObject acts on what decisions read beside nodes and pods.
func (s *Scheduler) applyObject(object metav1.Object) {
	switch o := object.(type) {
	case *v1.Namespace:
		s.state.SetNamespace(o.Name, o.Labels)
		s.queue.active.relane()
	case *v1.PersistentVolume, *v1.PersistentVolumeClaim, *storagev1.StorageClass, *storagev1.CSINode, *storagev1.CSIDriver,
		*storagev1.CSIStorageCapacity, *storagev1.VolumeAttachment:
		s.state.SetStorage(o)
		s.checkAllVolumes()
	case *schedulingv1alpha2.PodGroup:
		s.applyGroup(o)
	default:
		s.state.SetOwner(o)
	}
}

func (s *Scheduler) removeObject(object metav1.Object) {
	switch o := object.(type) {
	case *v1.Namespace:
		s.state.RemoveNamespace(o.Name)
		s.queue.active.relane()
	case *v1.PersistentVolume, *v1.PersistentVolumeClaim, *storagev1.StorageClass, *storagev1.CSINode, *storagev1.CSIDriver,
		*storagev1.CSIStorageCapacity, *storagev1.VolumeAttachment:
		s.state.RemoveStorage(o)
		s.checkAllVolumes()
	case *schedulingv1alpha2.PodGroup: // asked for when it is read
	default:
		s.state.RemoveOwner(o)
	}
}

// applyPod acts on the newest version of a pod.
func (s *Scheduler) applyPod(pod *v1.Pod) {
	key := types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
	p := s.queue.pods[key]
	if p != nil && p.pod.UID != pod.UID { // deleted and made again between two events
		s.drop(p)
		s.state.RemovePod(key)
		p = nil
	}
	profile := s.profiles[pod.Spec.SchedulerName]
	if s.reserves(pod) {
		return
	}
	if pod.Spec.NodeName != "" || cluster.Ended(pod) || pod.DeletionTimestamp != nil || profile == nil {
		s.gangPod(pod, pod.Spec.NodeName == "" || cluster.Ended(pod)) // first: the gang of one pod is not forgotten between
		if p != nil {
			s.drop(p)
		}
		if cluster.Ended(pod) {
			s.podEnded(key)
		}
		s.state.SetPod(pod)
		s.queue.active.used(pod)
		return
	}
	if p == nil {
		if s.state.Placed(key) != nil {
			s.state.RemovePod(key)
		}
		s.queue.sequence++
		p = &pending{key: key, tie: cluster.Tie(pod), sequence: s.queue.sequence, nominated: pod.Status.NominatedNodeName, since: s.clock.Now()}
		s.queue.pods[key] = p
		if name, ok := s.gangOf(pod); ok && profile.Gangs(pod) { // the label of a pod that has no node yet may change: it stays in its gang
			p.gang = s.gang(name)
			p.gang.waiting[key] = p
		}
		s.queue.time(p, profile.DeadlineOf(pod, pod.CreationTimestamp.Time))
	} else if p.bind != nil { // bind in flight: it fails if this version was there first
		p.pod = pod
		return
	}
	class := s.state.ClassOf(profile, pod)
	same := p.class == class && p.epoch == s.state.Epoch() && p.pod != nil && len(p.pod.Spec.SchedulingGates) == len(pod.Spec.SchedulingGates)
	p.pod = pod
	if same {
		s.state.Release(class) // held already
		if s.queue.held(p) && p.text != "" {
			s.refuse(p, p.reason, p.text) // should this version not say so yet
		}
		if p.in != nil || s.queue.held(p) || len(pod.Spec.SchedulingGates) > 0 {
			return
		}
	} else {
		s.queue.take(p)
		s.unwoken(p)
		if p.class != nil {
			s.state.Release(p.class)
		}
		p.class, p.profile = class, profile
	}
	p.epoch = s.state.Epoch()
	if p.nominated != "" {
		s.state.Nominate(class, pod, p.nominated)
	}
	p.priority = 0
	if pod.Spec.Priority != nil {
		p.priority = *pod.Spec.Priority
	}
	switch {
	case len(pod.Spec.SchedulingGates) > 0:
		s.queue.incoming(gatedQueue, queuedAdd)
	case p.gang != nil:
		s.admit(p)
	default:
		s.queue.activate(p, queuedAdd)
	}
}

// drop forgets a pending pod.
func (s *Scheduler) drop(p *pending) {
	s.dropVolumes(p)
	s.queue.take(p)
	s.queue.time(p, time.Time{})
	if g := p.gang; g != nil {
		delete(g.waiting, p.key)
		s.shrunk(g)
		s.forgetGang(g)
		if p.bind != nil && p.bind.gang != nil {
			delete(s.queue.pods, p.key)
			s.undoGang(p.bind.gang)
		}
	}
	s.unwoken(p)
	s.state.Free(s.state.Withdraw(p.key))
	s.state.Release(p.class)
	delete(s.queue.pods, p.key)
}

// decide tries one pod, which is in no heap, or its whole gang.
func (s *Scheduler) decide(ctx context.Context, p *pending) {
	if field := p.profile.Unsupported(p.pod); field != "" {
		s.refuse(p, v1.PodReasonUnschedulable, cluster.UnsupportedMessage(field)) // until the pod changes
		return
	}
	if s.awaitsEviction(p) || s.heldBack(p) {
		return
	}
	if p.gang != nil {
		if why := s.lacksGroup(p.gang); why != "" {
			s.queue.group(p)
			s.refuse(p, v1.PodReasonUnschedulable, why)
			return
		}
		if missing, _ := s.count(p.gang); missing > 0 || s.topologyKey(p.gang) != "" {
			s.decideGang(ctx, p)
			return
		}
	}
	began := s.clock.Now()
	reserved := s.state.Withdraw(p.key)
	out, verdict, err := s.attempt(ctx, p)
	switch {
	case err != nil && ctx.Err() != nil:
	case err != nil:
		s.stats.failures.Add(1)
		s.meters.took(p, resultError, s.clock.Since(began))
		p.attempts++
		if reserved != "" {
			s.state.Nominate(p.class, p.pod, reserved)
		}
		s.queue.delay(p, s.clock.Now().Add(backOff(p.attempts)), queuedFailure)
		s.refuse(p, v1.PodReasonSchedulerError, err.Error())
		s.unwoken(p)
	case out.Node == nil:
		s.unschedulable(p, out, verdict, reserved, began)
	default:
		if reserved != out.Node.Name {
			s.state.Free(reserved)
		}
		if c := s.assume(p, out, began); c.bindings != nil {
			s.bindVolumes(c)
		} else {
			s.send(c)
		}
		s.unwoken(p)
		if g := s.queue.parked[p.class]; g != nil {
			s.wakeNext(g)
		}
	}
}

// attempt decides where the pod would go now.
func (s *Scheduler) attempt(ctx context.Context, p *pending) (out cluster.Outcome, verdict *cluster.Verdict, err error) {
	s.reclass(p)
	p.position = s.state.Position()
	began := s.clock.Now()
	defer func() {
		s.meters.algorithm.Observe(s.clock.Since(began).Seconds())
		if p.refusers = nil; verdict != nil {
			p.refusers = verdict.Plugins
		}
	}()
	if p.profile.HasPolicies() {
		if out, verdict, err = s.state.DecideWithPolicies(ctx, p.class, p.pod, p.tie, s.policiesOf(p.profile)); err != nil {
			return out, nil, err
		}
		s.audit(ctx, p, out)
		return out, verdict, nil
	}
	if p.nominated != "" {
		out = s.state.DecideOn(p.class, p.nominated)
	}
	if out.Node == nil {
		if out = s.state.Decide(p.class, p.tie); out.Node == nil {
			verdict = s.state.Verdict(p.class)
		}
		s.audit(ctx, p, out)
	}
	return out, verdict, nil
}

// unschedulable preempts for the pod, or holds it until something may help it.
func (s *Scheduler) unschedulable(p *pending, out cluster.Outcome, verdict *cluster.Verdict, reserved string, began time.Time) {
	s.stats.unschedulable.Add(1)
	p.attempts++
	now := s.clock.Now()
	p.readyAt = now.Add(backOff(p.attempts))
	if verdict = s.preempt(p, verdict, now); p.nominated != "" {
		s.queue.wait(p)
	} else {
		s.queue.park(p, now)
	}
	if reserved != p.nominated {
		s.state.Free(reserved)
	}
	s.meters.took(p, resultUnschedulable, s.clock.Since(began))
	s.record(p, out, verdict.Message)
	s.refuse(p, v1.PodReasonUnschedulable, verdict.Message)
	s.unwoken(p)
}

// assume counts the pod on its node. The bind is to be sent by the caller, and its
// volumes to be bound first.
func (s *Scheduler) assume(p *pending, out cluster.Outcome, began time.Time) *commit {
	s.stats.decisions.Add(1)
	bound := *p.pod
	bound.Spec.NodeName = out.Node.Name
	bindings, err := s.state.AssumeVolumes(p.class, out.Node.Name)
	if err != nil { // nothing that a decision with this node allows
		s.log.Error("assume volumes", "pod", p.key, "node", out.Node.Name, "error", err)
	}
	s.state.Assume(p.class, &bound)
	s.queue.active.used(p.pod)
	s.record(p, out, "")
	p.bind = &commit{pending: p, pod: p.pod, node: out.Node, began: began, bindings: bindings, nominated: p.nominated}
	p.text, p.nominated = "", ""
	if p.class.HasDevices() {
		p.bind.devices = bound.Annotations[schedulingv1alpha1.DevicesAnnotation]
	}
	return p.bind
}

// unassume takes back what assume did.
func (s *Scheduler) unassume(c *commit) {
	s.dropVolumes(c.pending)
	c.pending.bind = nil
	s.state.RemovePod(c.pending.key)
	s.queue.active.used(c.pending.pod)
}

// audit scans again, without what the class remembers, one in so many decisions.
func (s *Scheduler) audit(ctx context.Context, p *pending, out cluster.Outcome) {
	every, began := int64(s.options.AuditEvery), time.Time{}
	if every == 0 {
		every = defaultAuditEvery
	}
	if n := s.stats.decisions.Load() + s.stats.unschedulable.Load(); every < 0 || n%every != every-1 {
		return
	}
	if s.options.AuditEvery == 0 {
		if began = s.clock.Now(); began.Before(s.auditAt) {
			return
		}
		defer func() { s.auditAt = began.Add(auditShare * s.clock.Since(began)) }()
	}
	if p.within.Key != "" && !p.profile.Confines() {
		return // nothing that a scan reads says where the pod may go
	}
	scan, err := s.state.Scan(ctx, p.profile, p.within.Confine(p.pod), p.tie, s.policiesOf(p.profile))
	if err != nil {
		return // a policy that failed; its next decision says so
	}
	s.stats.audited.Add(1)
	if scan.Outcome != out {
		s.stats.mismatches.Add(1)
		s.log.Error("a decision differs from a full scan", "pod", p.key, "decided", out.Node, "scan", scan.Node)
	}
}

// refuse tells of a pod that got no node: its condition, and an event.
func (s *Scheduler) refuse(p *pending, reason, text string) {
	p.reason, p.text = reason, text
	if p.said != text || p.told != p.attempts { // each attempt is told; more of the same make a series
		p.said, p.told = text, p.attempts
		s.reports.put(report{pod: p.pod, kind: v1.EventTypeWarning, reason: "FailedScheduling", action: "Scheduling", note: text})
	}
	if c := podCondition(p.pod); p.pod.Status.NominatedNodeName == p.nominated && c != nil && c.Status == v1.ConditionFalse && c.Reason == reason && c.Message == text {
		return
	}
	s.send(&commit{pending: p, pod: p.pod, reason: reason, text: text, nominated: p.nominated})
}

// committed acts on what became of a write.
func (s *Scheduler) committed(c *commit) {
	s.inFlight--
	p := c.pending
	if c.node == nil {
		if c.result.Err != nil {
			s.stats.failures.Add(1)
			s.log.Warn("write the condition of an unschedulable pod", "pod", p.key, "error", c.result.Err)
			s.again = append(s.again, func() {
				if s.queue.pods[p.key] == p && p.bind == nil && p.reason == c.reason && p.text == c.text {
					s.refuse(p, p.reason, p.text)
				}
			})
		} else if c.result.Conflict && s.queue.pods[p.key] == p && p.pod != c.pod && s.queue.held(p) {
			s.refuse(p, p.reason, p.text) // on the newer version; if there is none yet, when it comes
		}
		return
	}
	if !c.result.Conflict && c.result.Err == nil {
		s.stats.bound.Add(1)
		s.meters.scheduled(p, c.began, s.clock.Now())
		s.reports.put(report{pod: c.pod, kind: v1.EventTypeNormal, reason: "Scheduled", action: "Binding",
			note: "Successfully assigned " + p.key.String() + " to " + c.node.Name})
		return
	}
	if s.queue.pods[p.key] != p || p.bind != c {
		return // bound by someone else, deleted, or another pod by now
	}
	p.bind = nil
	s.state.RemovePod(p.key)
	p.attempts++
	newer := p.pod
	if c.result.Err != nil {
		s.stats.failures.Add(1)
		s.log.Warn("bind pod", "pod", p.key, "node", c.node.Name, "error", c.result.Err)
		s.meters.took(p, resultError, s.clock.Since(c.began))
		s.queue.delay(p, s.clock.Now().Add(backOff(p.attempts)), queuedFailure)
	} else {
		s.stats.conflicts.Add(1)
		if c.gang != nil { // another pod of the gang was newer, perhaps
			s.queue.delay(p, s.clock.Now().Add(backOff(p.attempts)), queuedFailure)
		}
		if c.nominated != "" { // what it got others evicted for is not for anyone else meanwhile
			p.nominated = c.nominated
			s.state.Nominate(p.class, p.pod, p.nominated)
		}
	}
	if newer != c.pod { // else a newer version is to come, or the pod's end
		s.applyPod(newer)
	}
}
