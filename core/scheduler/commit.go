package scheduler

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	clientscheme "k8s.io/client-go/kubernetes/scheme"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// commit is one write of a pod: a step of its end when evicted is set, its bind
// when node is, else its condition.
type commit struct {
	pending *pending // nil of one that is evicted
	pod     *v1.Pod  // the version that is written over
	began   time.Time
	node    *v1.Node
	devices string // that it has there; see schedulingv1alpha1.DevicesAnnotation
	reason  string
	text    string

	nominated string            // node: to be written when there is no bind, else the one that was reserved before it
	bindings  *cluster.Bindings // of its volumes, to be made first; nil: none
	volumes   *volumeBind       // under way
	gang      *gangBind         // that it is of: all or none

	evicted *eviction // that the pod is a victim of
	step    step      // of its end
	next    *v1.Pod   // version that the step makes

	result Result
}

// commits is what waits for the committing goroutine.
type commits struct {
	mu     sync.Mutex
	list   []*commit
	gangs  [][]*commit
	signal chan struct{}
}

// put adds a gang's binds.
func (q *commits) put(gang []*commit) {
	q.mu.Lock()
	q.gangs = append(q.gangs, gang)
	q.mu.Unlock()
	q.wake()
}

func (q *commits) wake() {
	select {
	case q.signal <- struct{}{}:
	default:
	}
}

// add adds independent writes.
func (q *commits) add(list ...*commit) {
	q.mu.Lock()
	q.list = append(q.list, list...)
	q.mu.Unlock()
	q.wake()
}

func (s *Scheduler) send(c *commit) {
	s.inFlight++
	s.commits.add(c)
}

// maxBatch bounds one call of the Committer.
const maxBatch = 1024

// commit writes, in one batch, all that came while the last one was written.
func (s *Scheduler) commit(ctx context.Context) {
	encoder := newEncoder()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.commits.signal:
		}
		s.commits.mu.Lock()
		list, gangs := s.commits.list, s.commits.gangs
		s.commits.list, s.commits.gangs = nil, nil
		s.commits.mu.Unlock()
		for batch := range slices.Chunk(list, maxBatch) {
			if ctx.Err() != nil {
				return
			}
			s.write(ctx, encoder, batch)
		}
		for _, gang := range gangs {
			if ctx.Err() != nil {
				return
			}
			s.writeGang(ctx, encoder, gang)
		}
	}
}

// writeGang writes all or none.
func (s *Scheduler) writeGang(ctx context.Context, encoder *encoder, gang []*commit) {
	writes := make([]Write, len(gang))
	now := metav1.NewTime(s.clock.Now()).Rfc3339Copy()
	var result Result
	for i, c := range gang {
		if writes[i], result.Err = encoder.encode(c, now); result.Err != nil {
			break
		}
	}
	if result.Err == nil {
		result = s.options.Committer.CommitAll(ctx, writes)
	}
	for _, c := range gang {
		c.result = result
	}
	s.inbox.put(message{committed: gang})
}

func (s *Scheduler) write(ctx context.Context, encoder *encoder, batch []*commit) {
	writes := make([]Write, 0, len(batch))
	sent := make([]*commit, 0, len(batch))
	now := metav1.NewTime(s.clock.Now()).Rfc3339Copy()
	for _, c := range batch {
		w, err := encoder.encode(c, now)
		if err != nil {
			c.result = Result{Err: err}
			continue
		}
		writes, sent = append(writes, w), append(sent, c)
	}
	results := s.options.Committer.Commit(ctx, writes)
	for i, c := range sent {
		if i < len(results) {
			c.result = results[i]
		} else {
			c.result = Result{Err: fmt.Errorf("committer answered %d of %d writes", len(results), len(writes))}
		}
	}
	told := batch[:0]
	for _, c := range batch {
		if c.evicted != nil {
			s.stepped(c)
		} else {
			told = append(told, c)
		}
	}
	if len(told) > 0 {
		s.inbox.put(message{committed: told})
	}
}

// encoder is the committing goroutine's: it makes one value after the other.
type encoder struct {
	*protobuf.Serializer
	pod  v1.Pod            // that it is at, or was last
	room runtime.Allocator // for its value, of which the caller gets a copy
}

func newEncoder() *encoder {
	return &encoder{Serializer: protobuf.NewSerializer(clientscheme.Scheme, clientscheme.Scheme)}
}

// encode makes the stored form of the pod as upstream's binding and status
// registries would leave it.
func (e *encoder) encode(c *commit, now metav1.Time) (Write, error) {
	expect, err := strconv.ParseInt(c.pod.ResourceVersion, 10, 64)
	if err != nil {
		return Write{}, fmt.Errorf("pod %s/%s has the resource version %q: %w", c.pod.Namespace, c.pod.Name, c.pod.ResourceVersion, err)
	}
	pod := &e.pod
	*pod = *c.pod
	pod.TypeMeta = metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}
	pod.ResourceVersion, pod.SelfLink = "", ""
	key := "/registry/pods/" + pod.Namespace + "/" + pod.Name
	condition := v1.PodCondition{Type: v1.PodScheduled, Status: v1.ConditionTrue}
	if c.evicted != nil {
		if c.step == stepRemove {
			return Write{Key: key, Expect: expect}, nil
		}
		c.take(pod, now)
	} else if c.node != nil {
		pod.Spec.NodeName = c.node.Name
		if c.devices != "" {
			pod.Annotations = maps.Clone(pod.Annotations)
			if pod.Annotations == nil {
				pod.Annotations = map[string]string{}
			}
			pod.Annotations[schedulingv1alpha1.DevicesAnnotation] = c.devices
		}
		pod.Status.NominatedNodeName = ""
		for _, label := range [...]string{v1.LabelTopologyZone, v1.LabelTopologyRegion} {
			if value, ok := c.node.Labels[label]; ok {
				if pod.Labels = maps.Clone(pod.Labels); pod.Labels == nil {
					pod.Labels = map[string]string{}
				}
				pod.Labels[label] = value
			}
		}
	} else {
		pod.Status.NominatedNodeName = c.nominated
		condition.Status, condition.Reason, condition.Message = v1.ConditionFalse, c.reason, c.text
		condition.ObservedGeneration = pod.Generation
	}
	if c.evicted == nil {
		pod.Status.Conditions = withCondition(pod.Status.Conditions, condition, now)
	}
	var out bytes.Buffer
	if err := e.EncodeWithAllocator(pod, &out, &e.room); err != nil {
		return Write{}, fmt.Errorf("encode pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return Write{Key: key, Value: out.Bytes(), Expect: expect, Finish: keepUnread}, nil
}

// withCondition returns a copy with the condition in its place. Its transition
// time is now, unless the status was the same before.
func withCondition(list []v1.PodCondition, condition v1.PodCondition, now metav1.Time) []v1.PodCondition {
	condition.LastTransitionTime = now
	next := make([]v1.PodCondition, 0, len(list)+1)
	found := false
	for _, old := range list {
		if old.Type == condition.Type {
			if old.Status == condition.Status {
				condition.LastTransitionTime = old.LastTransitionTime
			}
			old, found = condition, true
		}
		next = append(next, old)
	}
	if !found {
		next = append(next, condition)
	}
	return next
}
