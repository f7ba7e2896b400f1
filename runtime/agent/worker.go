package agent

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/runtime/agent/admit"
	"github.com/quaymaster/quaymaster/runtime/agent/probe"
	"github.com/quaymaster/quaymaster/runtime/agent/status"
)

// pod is one pod on the node. A goroutine works on it only while there is
// something to do: steps of one pod come one after the other, pods run side by
// side.
type pod struct {
	a   *Agent
	uid types.UID

	mu        sync.Mutex
	api       *v1.Pod // the newest object, from the source or from our own write
	gone      bool    // the API has it no more
	taken     bool    // admitted to the node: what it needs counts
	need      admit.Need
	ended     bool // nothing of it runs or will: what it needs counts no more
	deferred  bool // a change of resources waits for room
	dirty     bool // something happened since the last step began
	urgent    bool // and not in the runtime alone
	holding   bool // a step failed: the next one comes when its time has come, or something urgent does
	working   bool // a worker runs
	timer     clock.Timer
	interrupt context.CancelFunc            // of a stop that waits for a grace period
	verdict   *status.Failure               // why the node wants it to end; the worker takes it up
	stale     bool                          // volumes are to be brought up to date
	shown     []*runtimeapi.ContainerStatus // for logs

	// The worker's own.
	adopted   bool // looked for sandboxes that were there before the agent
	sandboxID string
	attempt   uint32 // of the next sandbox
	strays    bool   // a sandbox failed, and the runtime may have kept it
	fresh     *fresh // the sandbox, if this step made it
	rt        status.Runtime
	waiting   map[string]status.Waiting
	backoff   backOffs
	pullErr   map[string]error // the last one, by image
	failures  int              // steps in a row that failed
	finished  bool             // nothing of it will run again
	volumes   bool             // they are made
	probes    *probe.Pod       // nil where containers cannot be asked
	failure   *status.Failure  // why the node ended the pod
	resized   []string         // instances that were ended for other resources
	told      string           // why a change of resources waits, as the event had it

	hooked map[string]bool // containers whose preStop hook was begun; guarded by mu
}

func (a *Agent) newPod(uid types.UID, api *v1.Pod) *pod {
	p := &pod{a: a, uid: uid, api: api}
	p.probes = a.newProbes(p)
	return p
}

// PodSet is how the source hands over a pod that is new or changed.
func (a *Agent) PodSet(obj *v1.Pod) {
	a.mu.Lock()
	p := a.pods[obj.UID]
	if p == nil {
		p = a.newPod(obj.UID, obj)
		a.pods[obj.UID] = p
		a.mu.Unlock()
		p.kick()
		return
	}
	a.mu.Unlock()
	if p.set(obj) {
		p.kick()
	}
}

// set takes a newer object and tells whether there is something to do.
func (p *pod) set(obj *v1.Pod) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.api
	if obj.ResourceVersion == old.ResourceVersion && obj.ResourceVersion != "" {
		p.api = obj // the source holds it anyway, and what answered a write is not held as well
		return false
	}
	if older(obj.ResourceVersion, old.ResourceVersion) {
		return false
	}
	p.api = obj
	if deadline(obj).Before(deadline(old)) && p.interrupt != nil {
		p.interrupt()
	}
	if !obj.DeletionTimestamp.Equal(old.DeletionTimestamp) {
		return true
	}
	if p.a.volumes != nil && (!maps.Equal(obj.Labels, old.Labels) || !maps.Equal(obj.Annotations, old.Annotations)) {
		p.stale = true // the downward API shows them
		return true
	}
	return !apiequality.Semantic.DeepEqual(obj.Status, old.Status) || obj.Generation != old.Generation ||
		!apiequality.Semantic.DeepEqual(obj.Spec, old.Spec)
}

// deadline is when a pod that is being deleted is to be gone.
func deadline(p *v1.Pod) time.Time {
	if p.DeletionTimestamp == nil {
		return time.Unix(1<<40, 0)
	}
	return p.DeletionTimestamp.Time
}

// older compares resource versions, which are decimal numbers without leading zeros.
func older(a, b string) bool {
	return a != "" && (len(a) < len(b) || len(a) == len(b) && a < b)
}

// PodGone is how the source tells of a pod that is deleted.
func (a *Agent) PodGone(obj *v1.Pod) {
	a.mu.Lock()
	p := a.pods[obj.UID]
	a.mu.Unlock()
	if p == nil {
		return
	}
	p.mu.Lock()
	p.gone = true
	if p.interrupt != nil {
		p.interrupt()
	}
	p.mu.Unlock()
	p.kick()
}

// changed is how the generator of pod events tells of a change in the runtime.
func (a *Agent) changed(uid types.UID) {
	a.mu.Lock()
	p := a.pods[uid]
	a.mu.Unlock()
	if p != nil {
		p.nudge(false)
	}
}

// relisted finds pods that the runtime has and the API has not: they were
// deleted while no agent was here.
func (a *Agent) relisted(known map[types.UID][]*runtimeapi.PodSandbox) {
	a.mu.Lock()
	if a.left == nil {
		a.left = make(map[types.UID]bool, len(known))
		for uid := range known {
			a.left[uid] = true
		}
	}
	a.mu.Unlock()
	if !a.opts.Pods.HasSynced() {
		return
	}
	for uid, sandboxes := range known {
		a.mu.Lock()
		_, ok := a.pods[uid]
		var p *pod
		if !ok {
			m := sandboxes[0].GetMetadata()
			orphan := &v1.Pod{}
			orphan.Name, orphan.Namespace, orphan.UID = m.GetName(), m.GetNamespace(), uid
			p = a.newPod(uid, orphan)
			p.gone = true
			a.pods[uid] = p
		}
		a.mu.Unlock()
		if p != nil {
			p.kick()
		}
	}
}

// kick makes sure that a step begins after now.
func (p *pod) kick() { p.nudge(true) }

// nudge is kick; what is not urgent does not bring a step forward that waits after a failure: each
// attempt makes news in the runtime.
func (p *pod) nudge(urgent bool) {
	p.a.mu.Lock() // before the pod's own: that is the order everywhere
	defer p.a.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.holding && !urgent {
		return
	}
	p.dirty, p.urgent, p.holding = true, p.urgent || urgent, false
	if p.working || p.a.stopping {
		return
	}
	p.working = true
	p.a.wg.Go(p.work)
}

// work runs steps until there is nothing to do.
func (p *pod) work() {
	for {
		p.mu.Lock()
		if !p.dirty || p.a.ctx.Err() != nil {
			p.working = false
			p.mu.Unlock()
			return
		}
		p.dirty, p.urgent = false, false
		if p.timer != nil {
			p.timer.Stop()
			p.timer = nil
		}
		api, gone := p.api, p.gone
		p.mu.Unlock()

		again, err := p.step(p.a.ctx, api, gone)
		if errors.Is(err, errInterrupted) {
			err = nil // what interrupted it has asked for another step
		}
		if err != nil && p.a.ctx.Err() == nil {
			p.failures++
			p.a.log.Warn("a pod's step failed and will be tried again", "pod", api.Namespace+"/"+api.Name, "err", err)
			again = min(time.Second<<min(p.failures-1, 4), firstBackOff)
		} else if err == nil {
			p.failures = 0
		}
		if again > 0 {
			p.mu.Lock()
			if err != nil && !p.urgent {
				p.dirty, p.holding = false, true
			}
			p.timer = p.a.opts.Clock.AfterFunc(again, func() { go p.kick() })
			p.mu.Unlock()
		}
	}
}

func (p *pod) stopTimer() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
	}
}

// forget drops the pod once nothing of it is left.
func (p *pod) forget() {
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	if p.a.pods[p.uid] == p {
		delete(p.a.pods, p.uid)
	}
}
