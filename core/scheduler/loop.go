package scheduler

import (
	"context"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

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
		if len(s.queue.active.list) > 0 && s.inFlight < maxInFlight {
			s.decide(ctx, s.queue.active.pop())
			continue
		}
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

// setTimer wakes the loop when the next back-off or wait for volumes ends.
func (s *Scheduler) setTimer(ready clock.Timer) {
	now := s.clock.Now()
	least, some := s.untilVolumes(now)
	if len(s.queue.backOff.list) > 0 {
		if d := max(s.queue.backOff.list[0].readyAt.Sub(now), 0); !some || d < least {
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
		if p := s.queue.pods[key]; p != nil {
			s.drop(p)
		}
		s.state.RemovePod(key)
	case m.node != nil:
		s.sawRevision(m.node.ResourceVersion)
		s.state.SetNode(m.node)
	case m.goneN != "":
		s.state.RemoveNode(m.goneN)
		s.checkAllVolumes()
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
	case *v1.PersistentVolume, *v1.PersistentVolumeClaim, *storagev1.StorageClass, *storagev1.CSINode, *storagev1.CSIDriver,
		*storagev1.CSIStorageCapacity, *storagev1.VolumeAttachment:
		s.state.SetStorage(o)
		s.checkAllVolumes()
	default:
		s.state.SetOwner(o)
	}
}

func (s *Scheduler) removeObject(object metav1.Object) {
	switch o := object.(type) {
	case *v1.Namespace:
		s.state.RemoveNamespace(o.Name)
	case *v1.PersistentVolume, *v1.PersistentVolumeClaim, *storagev1.StorageClass, *storagev1.CSINode, *storagev1.CSIDriver,
		*storagev1.CSIStorageCapacity, *storagev1.VolumeAttachment:
		s.state.RemoveStorage(o)
		s.checkAllVolumes()
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
	if pod.Spec.NodeName != "" || cluster.Ended(pod) || pod.DeletionTimestamp != nil || profile == nil {
		if p != nil {
			s.drop(p)
		}
		s.state.SetPod(pod)
		return
	}
	if p == nil {
		if s.state.Placed(key) != nil {
			s.state.RemovePod(key)
		}
		s.queue.sequence++
		p = &pending{key: key, tie: cluster.Tie(pod), sequence: s.queue.sequence, nominated: pod.Status.NominatedNodeName}
		s.queue.pods[key] = p
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
	if len(pod.Spec.SchedulingGates) == 0 {
		s.queue.activate(p)
	}
}

// drop forgets a pending pod.
func (s *Scheduler) drop(p *pending) {
	s.dropVolumes(p)
	s.queue.take(p)
	s.unwoken(p)
	s.state.Free(s.state.Withdraw(p.key))
	s.state.Release(p.class)
	delete(s.queue.pods, p.key)
}

// unwoken ends the trial of a pod taken from a parked class; the next one may
// have its turn.
func (s *Scheduler) unwoken(p *pending) {
	if g := p.woken; g != nil {
		p.woken = nil
		g.woken--
		s.wakeNext(g)
	}
}

// wakeNext takes the first pod of a parked class into the queue when some node
// takes the class and no other pod of it is being tried. So a class of thousands
// costs one decision for each pod that fits, and one more.
func (s *Scheduler) wakeNext(g *group) {
	if g.woken > 0 || s.queue.parked[g.class] != g || g.class.Profile().HasPolicies() {
		return
	}
	if len(g.pods.list) > 0 && s.state.Feasible(g.class) {
		g.woken++
		p := g.pods.list[0]
		p.woken = g
		s.queue.activate(p)
	} else if len(g.pods.list) == 0 {
		delete(s.queue.parked, g.class)
	}
}

// reclass asks anew for the class of a pod that is to be decided: its labels may
// be read by others since, and the owners that spread it may have changed.
func (s *Scheduler) reclass(p *pending) {
	class := s.state.ClassOf(p.profile, p.pod)
	if class != p.class {
		s.unwoken(p)
	}
	s.state.Release(p.class)
	p.class, p.epoch = class, s.state.Epoch()
}

// regroup wakes the parked pods whose classes are out of date.
func (s *Scheduler) regroup() {
	if s.epoch == s.state.Epoch() {
		return
	}
	s.epoch = s.state.Epoch()
	for _, g := range s.queue.parked {
		for len(g.pods.list) > 0 {
			s.queue.activate(g.pods.list[0])
		}
	}
}

// wake looks at the rows where something may fit that did not before, and at
// the counts of other pods that moved.
func (s *Scheduler) wake() {
	s.regroup()
	rows, terms := s.state.TakeFreed(), s.state.TakeFreedTerms()
	since := s.woken
	s.woken = s.state.Fleet().Generation
	storage := s.state.TakeFreedStorage()
	s.wakeWaiting(rows, terms, since)
	if len(s.queue.parked) == 0 {
		return
	}
	if len(storage) > 0 {
		s.wakeGroups(func(g *group) bool { return s.state.ReadsStorage(g.class, storage) })
	}
	if terms {
		s.wakeGroups(func(g *group) bool { return s.state.FreedSince(g.class, since) })
	}
	if len(rows) == 0 {
		return
	}
	seen := make(map[int32]struct{}, len(rows))
	unique := rows[:0]
	for _, row := range rows {
		if _, twice := seen[row]; !twice {
			seen[row] = struct{}{}
			unique = append(unique, row)
		}
	}
	s.wakeGroups(func(g *group) bool {
		return slices.ContainsFunc(unique, func(row int32) bool { return s.state.FeasibleOn(g.class, row) })
	})
}

// wakeGroups tries pods of the parked classes again that something may help.
func (s *Scheduler) wakeGroups(helps func(*group) bool) {
	for _, g := range s.queue.parked {
		switch {
		case !helps(g):
		case g.class.Profile().HasPolicies():
			s.wakeAll(g)
		default:
			s.wakeNext(g)
		}
	}
}

// wakeAll is for classes whose pods a policy may tell apart: each is tried
// again when its back-off ends.
func (s *Scheduler) wakeAll(g *group) {
	now := s.clock.Now()
	for len(g.pods.list) > 0 {
		p := g.pods.list[0]
		if p.readyAt.After(now) {
			s.queue.delay(p, p.readyAt)
		} else {
			s.queue.activate(p)
		}
	}
}

func (s *Scheduler) policiesChanged() {
	s.changed = s.options.Policies.Changed()
	s.unpin()
	s.wakePolicyGroups(0)
}

func (s *Scheduler) flush() { s.wakePolicyGroups(flushAfter) }

func (s *Scheduler) wakePolicyGroups(age time.Duration) {
	now := s.clock.Now()
	for _, g := range s.queue.parked {
		if g.class.Profile().HasPolicies() && now.Sub(g.since) >= age {
			s.wakeAll(g)
		}
	}
}

func (s *Scheduler) endBackOff() {
	if len(s.queue.backOff.list) == 0 {
		return
	}
	for now := s.clock.Now(); len(s.queue.backOff.list) > 0 && !s.queue.backOff.list[0].readyAt.After(now); {
		s.queue.activate(s.queue.backOff.list[0])
	}
}

// decide tries one pod, which is in no heap.
func (s *Scheduler) decide(ctx context.Context, p *pending) {
	if field := p.profile.Unsupported(p.pod); field != "" {
		s.refuse(p, v1.PodReasonUnschedulable, cluster.UnsupportedMessage(field)) // until the pod changes
		return
	}
	if s.awaitsEviction(p) {
		return
	}
	s.reclass(p)
	reserved := s.state.Withdraw(p.key)
	var out cluster.Outcome
	var verdict *cluster.Verdict
	if p.profile.HasPolicies() {
		var err error
		if out, verdict, err = s.state.DecideWithPolicies(ctx, p.class, p.pod, p.tie, s.policiesOf(p.profile)); err != nil {
			if ctx.Err() != nil {
				return
			}
			s.stats.failures.Add(1)
			p.attempts++
			if reserved != "" {
				s.state.Nominate(p.class, p.pod, reserved)
			}
			s.queue.delay(p, s.clock.Now().Add(backOff(p.attempts)))
			s.refuse(p, v1.PodReasonSchedulerError, err.Error())
			s.unwoken(p)
			return
		}
	} else {
		if p.nominated != "" {
			out = s.state.DecideOn(p.class, p.nominated)
		}
		if out.Node == nil {
			if out = s.state.Decide(p.class, p.tie); out.Node == nil {
				verdict = s.state.Verdict(p.class)
			}
			s.audit(ctx, p, out)
		}
	}
	if p.profile.HasPolicies() {
		s.audit(ctx, p, out)
	}
	if out.Node == nil {
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
		s.record(p, out, verdict.Message)
		s.refuse(p, v1.PodReasonUnschedulable, verdict.Message)
		s.unwoken(p)
		return
	}
	s.stats.decisions.Add(1)
	if reserved != out.Node.Name {
		s.state.Free(reserved)
	}
	bound := *p.pod
	bound.Spec.NodeName = out.Node.Name
	bindings, err := s.state.AssumeVolumes(p.class, out.Node.Name)
	if err != nil { // nothing that a decision with this node allows
		s.log.Error("assume volumes", "pod", p.key, "node", out.Node.Name, "error", err)
	}
	s.state.Assume(p.class, &bound)
	s.record(p, out, "")
	p.text, p.nominated = "", ""
	p.bind = &commit{pending: p, pod: p.pod, node: out.Node}
	if bindings == nil {
		s.send(p.bind)
	} else {
		s.bindVolumes(p.bind, bindings)
	}
	s.unwoken(p)
	if g := s.queue.parked[p.class]; g != nil {
		s.wakeNext(g)
	}
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
	scan, err := s.state.Scan(ctx, p.profile, p.pod, p.tie, s.policiesOf(p.profile))
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
	if p.said != text {
		p.said = text
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
		} else if c.result.Conflict && s.queue.pods[p.key] == p && p.pod != c.pod && s.queue.held(p) {
			s.refuse(p, p.reason, p.text) // on the newer version; if there is none yet, when it comes
		}
		return
	}
	if !c.result.Conflict && c.result.Err == nil {
		s.stats.bound.Add(1)
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
		s.queue.delay(p, s.clock.Now().Add(backOff(p.attempts)))
	} else {
		s.stats.conflicts.Add(1)
	}
	if newer != c.pod { // else a newer version is to come, or the pod's end
		s.applyPod(newer)
	}
}
