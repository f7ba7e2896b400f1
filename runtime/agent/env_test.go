package agent

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	clocktesting "k8s.io/utils/clock/testing"
)

func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "1", "B": "$(A)", "": "empty"}
	for in, want := range map[string]string{
		"":              "",
		"plain":         "plain",
		"$(A)":          "1",
		"x$(A)y$(A)":    "x1y1",
		"$(NONE)":       "$(NONE)",
		"$$(A)":         "$(A)",
		"$$$(A)":        "$1",
		"$":             "$",
		"a$":            "a$",
		"$(A":           "$(A",
		"$x$(A)":        "$x1",
		"$(B)":          "$(A)", // what a variable holds is not looked at again
		"$$":            "$",
		"100$ and $(A)": "100$ and 1",
	} {
		if got := expand(in, vars); got != want {
			t.Errorf("expand(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzExpand(f *testing.F) {
	f.Add("$(A)$$(B)$(")
	f.Fuzz(func(t *testing.T, s string) {
		if got := expand(s, map[string]string{"A": "1"}); len(got) > len(s) {
			t.Errorf("%q grew to %q", s, got)
		}
	})
}

func TestBackOff(t *testing.T) {
	c := clocktesting.NewFakePassiveClock(time.Unix(1000, 0))
	var b backOffs
	if left, _ := b.remaining(c, "x", c.Now()); left != 0 {
		t.Errorf("before the first failure: %v", left)
	}
	for _, want := range []time.Duration{10, 20, 40, 80, 160, 300, 300} {
		b.next(c, "x", c.Now())
		c.SetTime(c.Now().Add(time.Second))
		ended := c.Now() // it ran for a second
		if left, delay := b.remaining(c, "x", ended); delay != want*time.Second || left != delay {
			t.Errorf("have %v of %v, want %v", left, delay, want*time.Second)
		}
		c.SetTime(ended.Add(want * time.Second))
		if left, _ := b.remaining(c, "x", ended); left != 0 {
			t.Errorf("after the delay: %v", left)
		}
	}
	if left, _ := b.remaining(c, "x", c.Now().Add(time.Hour)); left != 0 { // its end is to come: the clock was set back
		t.Errorf("after an end that is to come: %v", left)
	}
	ended := c.Now().Add(2*maxBackOff + time.Second) // a long run is forgiven
	c.SetTime(ended)
	if left, _ := b.remaining(c, "x", ended); left != 0 {
		t.Errorf("after a long run: %v", left)
	}
	b.next(c, "x", ended)
	if _, delay := b.remaining(c, "x", c.Now()); delay != firstBackOff {
		t.Errorf("after a long run the delay begins with %v", delay)
	}
}

func TestOlder(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{{"9", "10", true}, {"10", "9", false}, {"10", "10", false}, {"", "1", false}, {"99", "100", true}} {
		if got := older(test.a, test.b); got != test.want {
			t.Errorf("older(%q, %q) = %v", test.a, test.b, got)
		}
	}
}

func TestResources(t *testing.T) {
	list := func(cpu, memory string) v1.ResourceList {
		return v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu), v1.ResourceMemory: resource.MustParse(memory)}
	}
	c := &v1.Container{Resources: v1.ResourceRequirements{Requests: list("100m", "100Mi"), Limits: list("300m", "500Mi")}}
	a := &Agent{opts: Options{Capacity: DefaultCapacity()}}
	if r := a.resources(&v1.Pod{}, c); r.CpuShares != 102 || r.CpuQuota != 30000 || r.CpuPeriod != 100000 || r.MemoryLimitInBytes != 500<<20 {
		t.Errorf("resources: %v", r)
	}
	for _, test := range []struct{ name, divisor, want string }{
		{"limits.cpu", "1m", "300"}, {"limits.cpu", "1", "1"}, {"requests.memory", "1Mi", "100"}, {"limits.memory", "", "524288000"},
	} {
		ref := &v1.ResourceFieldSelector{Resource: test.name}
		if test.divisor != "" {
			ref.Divisor = resource.MustParse(test.divisor)
		}
		if got, err := resourceValue(c, ref, nil); err != nil || got != test.want {
			t.Errorf("%s by %s: %q, %v, want %q", test.name, test.divisor, got, err, test.want)
		}
	}
	if got, err := resourceValue(&v1.Container{}, &v1.ResourceFieldSelector{Resource: "limits.cpu"}, DefaultCapacity()); err != nil || got != "4" {
		t.Errorf("a limit that is not set: %q, %v", got, err)
	}
}
