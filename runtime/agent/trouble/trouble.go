// Package trouble tells whether a node breaks pods: it counts the pods whose
// sandboxes or containers the node itself failed to start of late, and those that it
// started, so that a broken node says so and draws no more pods. It is pure.
package trouble

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// Window is how long a start is remembered.
const Window = 10 * time.Minute

// How many pods must have failed for a node to be in doubt and to be broken; and of those that it tried to
// start, more than half must have failed.
const (
	Doubt  = 3
	Broken = 10
)

// Level is how bad it is.
type Level int

// The levels.
const (
	Fine     Level = iota
	Doubtful       // pods had better go elsewhere
	Breaking       // no more pods
)

// Log remembers starts. The zero value is ready; it is safe for concurrent use.
type Log struct {
	mu     sync.Mutex
	failed map[types.UID]failure
	ok     map[types.UID]time.Time
}

type failure struct {
	at  time.Time
	why string
}

// Failed notes that the node failed to start something of a pod. A pod counts once: one that can
// never start condemns no node.
func (l *Log) Failed(pod types.UID, why string, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed == nil {
		l.failed, l.ok = map[types.UID]failure{}, map[types.UID]time.Time{}
	}
	l.failed[pod] = failure{at, why}
	delete(l.ok, pod)
}

// Started notes that a pod has started: what went wrong before is forgiven.
func (l *Log) Started(pod types.UID, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed == nil {
		l.failed, l.ok = map[types.UID]failure{}, map[types.UID]time.Time{}
	}
	l.ok[pod] = at
	delete(l.failed, pod)
}

// Level judges by what the window holds; the message names the latest reason.
func (l *Log) Level(now time.Time) (Level, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.failed, func(_ types.UID, f failure) bool { return now.Sub(f.at) > Window })
	maps.DeleteFunc(l.ok, func(_ types.UID, at time.Time) bool { return now.Sub(at) > Window })
	failed, ok := len(l.failed), len(l.ok)
	if failed < Doubt || failed <= ok {
		return Fine, ""
	}
	latest := slices.MaxFunc(slices.Collect(maps.Values(l.failed)), func(a, b failure) int { return a.at.Compare(b.at) })
	message := fmt.Sprintf("%d of %d pods could not be started in %v, the last one because: %s", failed, failed+ok, Window, latest.why)
	if failed < Broken {
		return Doubtful, message
	}
	return Breaking, message
}
