package scheduler

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
	testingclock "k8s.io/utils/clock/testing"
)

// full is a Committer on a disk that is full while left is above 0.
type full struct {
	Committer
	left atomic.Int32
}

func (f *full) Commit(ctx context.Context, writes []Write) []Result {
	if f.left.Load() <= 0 {
		return f.Committer.Commit(ctx, writes)
	}
	f.left.Add(-1)
	results := make([]Result, len(writes))
	for i := range results {
		results[i].Err = errors.New("no space left on device")
	}
	return results
}

// TestConditionAgain: a condition that could not be written is written later, though
// nothing brings the pod its turn.
func TestConditionAgain(t *testing.T) {
	clock, disk := testingclock.NewFakeClock(time.Now()), &full{}
	disk.left.Store(2)
	w := newWorld(t, func(o *Options) { disk.Committer, o.Committer, o.Clock = o.Committer, disk, clock })
	w.put(nodeResource, testNode("n1", "1", nil))
	w.put(podResource, testPod("large", "2"))
	eventually(t, "the condition is written", func() bool {
		clock.Step(flushEvery)
		return podCondition(w.pod("large")) != nil
	})
	w.refused("large", "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.")
	if n := w.sched.Stats(); n.Failures != 2 || n.Unschedulable != 1 {
		t.Errorf("%+v, want 2 failures and one decision", n)
	}
}

// TestGroupConditionAgain: so is that of a group, which says that it is scheduled
// only once.
func TestGroupConditionAgain(t *testing.T) {
	clock := testingclock.NewFakeClock(time.Now())
	w := newWorld(t, func(o *Options) {
		withGroups(o)
		o.Clock = clock
	})
	var left atomic.Int32
	left.Store(2)
	w.react("patch", "podgroups", func(clienttesting.Action) (bool, runtime.Object, error) {
		if left.Add(-1) < 0 {
			return false, nil, nil
		}
		return true, nil, apierrors.NewInternalError(errors.New("no space left on device"))
	})
	w.put(nodeResource, testNode("n1", "1", nil))
	w.put(groupResource, podGroup("g", 1))
	w.put(podResource, inGroup(testPod("a", "1"), "g"))
	w.bound("a", "")
	eventually(t, "the condition was tried often enough", func() bool {
		clock.Step(flushEvery)
		return left.Load() < 0
	})
	w.scheduled("g", metav1.ConditionTrue, "Scheduled", "")
}

// TestEvictionAmongWrites: a victim whose status others write all the time is told to end all the same.
func TestEvictionAmongWrites(t *testing.T) {
	w := newWorld(t, nil)
	var left atomic.Int32
	left.Store(2)
	w.react("patch", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
		if left.Add(-1) < 0 {
			return false, nil, nil
		}
		return true, nil, apierrors.NewConflict(v1.Resource("pods"), "victim", errors.New("the object has been modified"))
	})
	w.put(nodeResource, testNode("n1", "1", nil))
	w.put(podResource, testPod("victim", "1"))
	w.bound("victim", "n1")
	w.put(podResource, withPriority(testPod("urgent", "1"), 10))
	w.bound("urgent", "n1")
	if n := w.sched.Stats(); n.Victims != 1 || n.Failures != 0 {
		t.Errorf("%+v, want one victim and no failures", n)
	}
}
