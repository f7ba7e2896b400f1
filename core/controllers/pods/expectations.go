package pods

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/utils/clock"
)

// forgetAfter is how long a create or delete may go unseen. An informer that
// relists can miss both the birth and the death of a pod.
const forgetAfter = 5 * time.Minute

// Expectations remembers, pod by pod, what a controller has written and the
// informer has not shown yet. A planner adds it to what it sees, so that a
// stale cache leads neither to a second create nor to a second delete, and no
// sync has to wait for the cache. Read it before the cache: then a pod may be
// counted twice for a moment, never missed.
type Expectations struct {
	clock clock.PassiveClock
	mu    sync.Mutex
	by    map[types.UID]*expected
}

type expected struct {
	creates map[string]time.Time    // by pod name
	deletes map[types.UID]time.Time // by pod uid
}

// NewExpectations returns an empty set.
func NewExpectations(c clock.PassiveClock) *Expectations {
	return &Expectations{clock: c, by: make(map[types.UID]*expected)}
}

// Pending returns how many creates and which deletes of the controller the
// informer has yet to show.
func (e *Expectations) Pending(controller types.UID) (creates int, deletes sets.Set[types.UID]) {
	e.mu.Lock()
	defer e.mu.Unlock()
	x := e.by[controller]
	if x == nil {
		return 0, nil
	}
	oldest := e.clock.Now().Add(-forgetAfter)
	expire(x.creates, oldest)
	expire(x.deletes, oldest)
	return len(x.creates), sets.KeySet(x.deletes)
}

func expire[K comparable](m map[K]time.Time, oldest time.Time) {
	for k, t := range m {
		if t.Before(oldest) {
			delete(m, k)
		}
	}
}

// CreateObserved takes back the expectation that the pod appears: it did, or
// its create failed.
func (e *Expectations) CreateObserved(controller types.UID, name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x := e.by[controller]; x != nil {
		delete(x.creates, name)
	}
}

// DeleteObserved takes back the expectation that the pod goes away.
func (e *Expectations) DeleteObserved(controller, pod types.UID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x := e.by[controller]; x != nil {
		delete(x.deletes, pod)
	}
}

// Forget drops all of a controller that is gone.
func (e *Expectations) Forget(controller types.UID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.by, controller)
}

// Create expects the pod to appear. Call it before the pod is created.
func (e *Expectations) Create(controller types.UID, name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.of(controller).creates[name] = e.clock.Now()
}

// Delete expects the pod to go. Call it before the pod is deleted.
func (e *Expectations) Delete(controller, pod types.UID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.of(controller).deletes[pod] = e.clock.Now()
}

func (e *Expectations) of(controller types.UID) *expected {
	x := e.by[controller]
	if x == nil {
		x = &expected{creates: make(map[string]time.Time), deletes: make(map[types.UID]time.Time)}
		e.by[controller] = x
	}
	return x
}
