package agent

import (
	"context"
	"fmt"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	clocktesting "k8s.io/utils/clock/testing"
)

// TestVolumesAreRefreshedInTurn has pods come in the order of their UIDs, each once in a period, those without generated contents never.
func TestVolumesAreRefreshedInTurn(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0))
	a := &Agent{opts: Options{Clock: clock}, pods: map[types.UID]*pod{}, stopping: true} // no worker starts: what was asked for stays to be seen
	add := func(name string, source v1.VolumeSource) *pod {
		p := &pod{a: a, uid: types.UID(name), api: &v1.Pod{Spec: v1.PodSpec{Volumes: []v1.Volume{{Name: "v", VolumeSource: source}}}}}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.pods[p.uid] = p
		return p
	}
	var pods []*pod
	for i := range 4 {
		pods = append(pods, add(fmt.Sprint("uid-", i), v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{}}))
	}
	plain := add("uid-9", v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); a.refresh(ctx) }()
	defer func() { cancel(); <-done }()

	asked := func() (out []types.UID) {
		for _, p := range append(pods, plain) {
			p.mu.Lock()
			if p.stale && p.dirty {
				out = append(out, p.uid)
			}
			p.mu.Unlock()
		}
		return out
	}
	step := func(d time.Duration, want int) {
		t.Helper()
		for _, c := range []struct {
			what string
			is   func() bool
		}{
			{"a timer", clock.HasWaiters},
			{"step", func() bool { clock.Step(d); return true }},
			{"pods to be asked", func() bool { return len(asked()) == want && clock.HasWaiters() }},
		} {
			if err := wait.PollUntilContextTimeout(t.Context(), time.Millisecond, time.Minute, true, func(context.Context) (bool, error) { return c.is(), nil }); err != nil {
				t.Fatalf("waiting for %s: %v; asked: %v, want %d", c.what, err, asked(), want)
			}
		}
	}
	step(refreshPeriod, 1)
	for n := 2; n <= 4; n++ {
		step(refreshPeriod/4, n)
	}
	for i, uid := range asked() {
		if uid != pods[i].uid {
			t.Errorf("asked: %v", asked())
		}
	}
	pods[0].mu.Lock()
	pods[0].stale = false
	pods[0].mu.Unlock()
	a.mu.Lock()
	delete(a.pods, pods[1].uid) // a pod that goes is asked no more, and the others not earlier
	a.mu.Unlock()
	pods[1].mu.Lock()
	pods[1].stale = false
	pods[1].mu.Unlock()
	step(refreshPeriod/4, 3)
	step(refreshPeriod/3, 3)
}
