// Package coretest gives tests a whole cluster in memory: API server,
// controllers, scheduler, policies and simulated nodes, with nothing installed
// and no port. Where a suite used envtest, it needs this and no binaries.
//
//	func TestMine(t *testing.T) {
//		cluster := coretest.Start(t, core.Options{Nodes: core.Nodes("node", 3)})
//		pods := cluster.Client().CoreV1().Pods("default")
//		…
//	}
package coretest

import (
	"context"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/quaymaster/quaymaster/core"
)

// patience is how long a test waits for what must happen: with the race detector, on a machine that is busy with much
// else, a module of Go alone takes a minute to compile.
const patience = 3 * time.Minute

// Start makes an engine, waits until it is ready, and synced unless it shares an
// etcd, and closes it at the end of the test: what the test cleans up after
// Start still finds it. Whatever fails, in its start, its life or its end, fails the test.
func Start(t testing.TB, options core.Options) *core.Engine {
	t.Helper()
	engine, err := core.New(options)
	if err != nil {
		t.Fatalf("new engine: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := engine.Close(ctx); err != nil {
			t.Errorf("close the engine: %v", err)
		}
	})
	if err := engine.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatalf("start the engine: %v", err)
	}
	moments := map[string]<-chan struct{}{"ready": engine.Ready()}
	if options.Etcd == nil { // of those that share an etcd one leads
		moments["synced"] = engine.Synced()
	}
	deadline := time.After(patience)
	for what, moment := range moments {
		select {
		case <-moment:
		case <-engine.Done():
			t.Fatalf("the engine ended before it was %s: %v", what, engine.Close(t.Context()))
		case <-deadline:
			t.Fatalf("the engine was not %s within %v", what, patience)
		}
	}
	return engine
}

// Eventually repeats check until it returns true and fails the test when it
// returns an error, or when three minutes have passed.
func Eventually(t testing.TB, what string, check func(context.Context) (bool, error)) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), 5*time.Millisecond, patience, true, check)
	if err != nil {
		t.Fatalf("waiting for %s: %v", what, err)
	}
}
