package wasm_test

import (
	"context"
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

// TestInstancesAreLimited: a caller waits for its turn, and those that failed
// or left give theirs back. Instances are counted, and so is what they may have
// together: two of 16 MiB are more than 20.
func TestInstancesAreLimited(t *testing.T) {
	t.Run("in number", func(t *testing.T) { instancesAreLimited(t, wasm.Options{Instances: 1}) })
	t.Run("in memory", func(t *testing.T) { instancesAreLimited(t, wasm.Options{Together: 20 << 20}) })
	t.Run("one at the least", func(t *testing.T) { instancesAreLimited(t, wasm.Options{Together: 1}) })
}

func instancesAreLimited(t *testing.T, options wasm.Options) {
	e := wasm.New(options)
	defer e.Close()
	p, err := e.Load(context.Background(), policies.Load{Policy: "t", Source: conditional(trap)})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	call := func(ctx context.Context, s policies.Session, priority int32) error {
		pd := pod("1")
		pd.Spec.Priority = &priority
		_, err := s.Filter(ctx, policies.Cycle{}, pd, abi.FleetOf([]*corev1.Node{node("a", "1")}), make([]uint8, 1))
		return err
	}
	first, second := p.Session(), p.Session()
	if err := call(context.Background(), first, 1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	waiting := make(chan error)
	go func() { waiting <- call(ctx, second, 1) }()
	select {
	case err := <-waiting:
		t.Fatalf("a second instance, or the error %v", err)
	default:
	}
	cancel()
	if err := <-waiting; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	go func() { waiting <- call(context.Background(), second, 1) }()
	first.Close()
	if err := <-waiting; err != nil {
		t.Errorf("its turn: %v", err)
	}
	for range 3 { // the priority makes it trap
		if err := call(context.Background(), second, 7); !errors.Is(err, policies.ErrTrap) {
			t.Errorf("error %v, no trap", err)
		}
	}
	second.Close()
	third := p.Session()
	defer third.Close()
	if err := call(context.Background(), third, 1); err != nil {
		t.Errorf("after traps: %v", err)
	}
}
