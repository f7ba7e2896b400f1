package policy

import (
	"errors"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// What the calls of a real guest cost is in its status, which is written at most
// once a minute: calls, fuel, time, and the memory of the instances that there are.
func TestCostOfGuest(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Unix(1_000_000, 0))
	c := startAt(t, clock, false)
	guest, err := os.ReadFile("../../../sdk/conformance/guests/faults.wasm")
	if err != nil {
		t.Fatal(err)
	}
	p := newPolicy("p", policyv1alpha1.PolicySource{Wasm: guest})
	p.Spec.Config = rawJSON(`{"fault":"trap"}`)
	p.Spec.Limits.Deadline = &metav1.Duration{Duration: 10 * time.Second} // the machine may be busy
	c.create(p)
	c.inForce("p", string(guest))

	var fuel int64
	call := func(pod string, want error) {
		t.Helper()
		pinned, err := c.host.Pin("p")
		if err != nil {
			t.Fatal(err)
		}
		defer pinned.Release()
		fleet := abi.FleetOf([]*corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "n"}}})
		cost, err := pinned.Filter(t.Context(), policies.Cycle{}, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: pod}}, fleet, make([]uint8, 1))
		if !errors.Is(err, want) {
			t.Fatalf("error %v, expected %v", err, want)
		}
		fuel += cost.Fuel
	}
	told := func(calls int64) *policyv1alpha1.PolicyCost {
		t.Helper()
		eventually(t, "the cost", func() bool { cost := c.policy("p").Status.Cost; return cost != nil && cost.Calls == calls })
		return c.policy("p").Status.Cost
	}
	minute := func() {
		t.Helper()
		eventually(t, "the timer", clock.HasWaiters)
		clock.Step(costs)
	}
	look := func(label string) {
		c.update("p", func(p *policyv1alpha1.Policy) { p.Labels = map[string]string{"a": label} })
	}
	call("a", nil)
	look("first")
	cost := told(1)
	if cost.Failures != 0 || fuel == 0 || cost.FuelPerCall != fuel || cost.TimePerCall.Duration <= 0 || cost.Memory == nil || cost.Memory.Value()%(64<<10) != 0 {
		t.Errorf("after a call of %d fuel: %+v", fuel, cost)
	}

	// within the minute it stays, though the policy is looked at
	call("a", nil)
	look("second")
	c.create(newPolicy("next", policyv1alpha1.PolicySource{Rego: regoSource("x")}))
	c.inForce("next", regoSource("x"))
	if cost = c.policy("p").Status.Cost; cost.Calls != 1 {
		t.Errorf("within a minute: %+v", cost)
	}
	minute()
	if cost = told(2); cost.FuelPerCall != fuel/2 {
		t.Errorf("after two calls of %d fuel: %+v", fuel, cost)
	}

	// the only instance is gone after a trap, and another one comes with the next call
	call("fault", policies.ErrTrap)
	minute()
	if cost = told(3); cost.Failures != 1 || cost.FuelPerCall != fuel/3 || cost.Memory != nil {
		t.Errorf("after a trap, with %d fuel: %+v", fuel, cost)
	}
	call("a", nil)
	minute()
	if cost = told(4); cost.Failures != 1 || cost.Memory == nil {
		t.Errorf("after the call that follows: %+v", cost)
	}
}
