package policy

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
)

// update changes a policy as a client does.
func (c *cluster) update(name string, change func(*policyv1alpha1.Policy)) {
	c.t.Helper()
	eventually(c.t, "update of "+name, func() bool {
		p := c.policy(name)
		change(p)
		_, err := c.client.Policies.Update(c.t.Context(), p, metav1.UpdateOptions{})
		return err == nil
	})
}

func (c *cluster) ask(name string, revision string) {
	c.t.Helper()
	c.update(name, func(p *policyv1alpha1.Policy) {
		metav1.SetMetaDataAnnotation(&p.ObjectMeta, policyv1alpha1.AnnotationRollback, revision)
	})
}

// settled waits until the status tells of that digest and revision, and no
// request is left.
func (c *cluster) settled(name, source string, revision int64) *policyv1alpha1.Policy {
	c.t.Helper()
	digest := policies.Digest([]byte(source))
	eventually(c.t, fmt.Sprintf("%s at revision %d", name, revision), func() bool {
		p := c.policy(name)
		s, _ := c.host.Status(name)
		return s.Digest == digest && p.Status.ActiveDigest == digest && p.Status.Revision == revision && p.Annotations[policyv1alpha1.AnnotationRollback] == ""
	})
	return c.policy(name)
}

func revisionsOf(p *policyv1alpha1.Policy) (out []int64) {
	for _, v := range p.Status.Versions {
		out = append(out, v.Revision)
	}
	return out
}

// A rollback that was asked for holds over a restart, ends with the next change
// of the policy, and can be taken back.
func TestRollback(t *testing.T) {
	c := start(t, false)
	for i, source := range []string{"one", "two", "three"} {
		if i == 0 {
			c.create(newPolicy("p", policyv1alpha1.PolicySource{Rego: regoSource(source)}))
		} else {
			c.update("p", func(p *policyv1alpha1.Policy) { p.Spec.Source.Rego = regoSource(source) })
		}
		c.settled("p", regoSource(source), int64(i+1))
	}
	eventually(t, "versions", func() bool { return slices.Equal(revisionsOf(c.policy("p")), []int64{3, 2, 1}) })

	c.ask("p", "1")
	p := c.settled("p", regoSource("one"), 1)
	condition := p.Status.Conditions[0]
	if p.Status.Rollback == nil || p.Status.Rollback.To != 1 || p.Status.LastError != nil || condition.Status != metav1.ConditionTrue || condition.Reason != "RolledBack" {
		t.Errorf("status %+v", p.Status)
	}
	c.event("PolicyRolledBack revision 1 was asked for")

	c.stop()
	c.run(false)
	p = c.settled("p", regoSource("one"), 1)
	if p.Status.Rollback == nil {
		t.Error("after a restart the rollback is forgotten")
	}

	c.ask("p", "9")
	c.event(`PolicyRollbackRefused roll back to "9": there is no version 9`)
	c.settled("p", regoSource("one"), 1)

	c.ask("p", "3") // what the policy asks for
	if p = c.settled("p", regoSource("three"), 3); p.Status.Rollback != nil {
		t.Errorf("rollback %+v", p.Status.Rollback)
	}
	c.ask("p", "2")
	c.settled("p", regoSource("two"), 2)
	c.update("p", func(p *policyv1alpha1.Policy) { p.Spec.Source.Rego = regoSource("four") })
	if p = c.settled("p", regoSource("four"), 4); p.Status.Rollback != nil {
		t.Errorf("rollback %+v", p.Status.Rollback)
	}
	for i := range 6 {
		source := regoSource(fmt.Sprint("more", i))
		c.update("p", func(p *policyv1alpha1.Policy) { p.Spec.Source.Rego = source })
		c.settled("p", source, int64(5+i))
	}
	eventually(t, "old versions deleted", func() bool { return len(c.policy("p").Status.Versions) <= versionsKept+1 })
}

// fragile is a policy that cannot answer for the pod "boom" in time.
func fragile(comment string) string {
	return "package p\n\n# " + comment + "\n" + `deny contains "x" if {
	input.request.name == "boom"
	some a in numbers.range(1, 100000)
	some b in numbers.range(1, 100000)
	a * b == -1
}
`
}

// A version that fails while it is new is left for the one before; after a
// restart too, until the policy changes.
func TestRollbackInProbation(t *testing.T) {
	c := start(t, false)
	p := newPolicy("p", policyv1alpha1.PolicySource{Rego: regoSource("good")})
	p.Spec.Limits.Deadline = &metav1.Duration{Duration: 500 * time.Millisecond} // enough for the good version on a busy machine
	c.create(p)
	c.settled("p", regoSource("good"), 1)
	c.update("p", func(p *policyv1alpha1.Policy) { p.Spec.Source.Rego = fragile("new") })
	p = c.settled("p", fragile("new"), 2)
	if p.Status.ProbationEnds == nil || p.Status.Breaker != "Closed" {
		t.Errorf("status %+v", p.Status)
	}
	for range 5 {
		c.host.Admit(t.Context(), policyv1alpha1.ExtensionValidate, podRequest("boom"), nil)
	}
	c.event("PolicyRolledBack generation 2 failed too often while it was new, generation 1 is in force again")
	check := func() {
		t.Helper()
		p := c.settled("p", regoSource("good"), 1)
		s := p.Status
		if s.Rollback == nil || s.Rollback.To != 1 || !strings.Contains(s.Rollback.Reason, "deadline exceeded") || s.LastError == nil || s.LastError.Step != policies.StepProbation {
			t.Errorf("status %+v", s)
		}
		eventually(t, "a decision of the good version, which has half a second", func() bool {
			r, _ := c.host.Admit(t.Context(), policyv1alpha1.ExtensionValidate, podRequest("boom"), nil)
			return !r.Allowed && strings.Contains(r.Result.Message, "good")
		})
	}
	eventually(t, "the status tells of the rollback", func() bool { return c.policy("p").Status.Rollback != nil })
	check()
	c.stop()
	c.run(false)
	check()
	c.update("p", func(p *policyv1alpha1.Policy) { p.Spec.Source.Rego = regoSource("better") })
	if p := c.settled("p", regoSource("better"), 3); p.Status.Rollback != nil || p.Status.LastError != nil {
		t.Errorf("status %+v", p.Status)
	}
}

// After a restart, a source that cannot be read or loaded any more leaves the
// version in force that was.
func TestRestartWithoutSource(t *testing.T) {
	c := start(t, false)
	c.write("p.rego", regoSource("one"))
	c.write("q.rego", regoSource("two"))
	c.create(newPolicy("p", policyv1alpha1.PolicySource{File: "p.rego"}))
	c.create(newPolicy("q", policyv1alpha1.PolicySource{File: "q.rego"}))
	c.settled("p", regoSource("one"), 1)
	c.settled("q", regoSource("two"), 1)
	c.stop()
	if err := os.Remove(filepath.Join(c.dir, "p.rego")); err != nil {
		t.Fatal(err)
	}
	c.write("q.rego", "package q\n\ndeny contains")
	c.run(false)
	c.refused("p", "Fetch", "no such file")
	c.refused("q", "Parse", "q.rego:3")
	c.settled("p", regoSource("one"), 1)
	if p := c.settled("q", regoSource("two"), 1); p.Status.Conditions[0].Status != metav1.ConditionTrue || p.Status.Conditions[0].Reason != "NewVersionRefused" {
		t.Errorf("condition %+v", p.Status.Conditions)
	}
}

// What is too large to keep is in force all the same, and an event says so.
func TestVersionTooLarge(t *testing.T) {
	c := start(t, false)
	random := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 0, 3<<20)
	for len(noise) < 3<<20 {
		noise = fmt.Appendf(noise, "%x", random.Uint64())
	}
	guest, err := os.ReadFile("../../../wasm-plugins/c/prefer-label/prefer-label-v1.wasm")
	if err != nil {
		t.Fatal(err)
	}
	section := append([]byte{5}, "noise"...)
	section = append(section, noise...)
	large := append(slices.Clone(guest), 0)
	for n := uint(len(section)); ; n >>= 7 {
		if n < 0x80 {
			large = append(large, byte(n))
			break
		}
		large = append(large, byte(n)|0x80)
	}
	large = append(large, section...)
	c.write("large.wasm", string(large))
	p := newPolicy("p", policyv1alpha1.PolicySource{File: "large.wasm"})
	p.Spec.Config = rawJSON(`{"key":"disktype","value":"ssd"}`)
	c.create(p)
	c.settled("p", string(large), 0)
	c.event("PolicyVersionNotKept")
	if n := len(c.policy("p").Status.Versions); n != 0 {
		t.Errorf("%d versions", n)
	}
}

// The cost of a policy is in its status: if it was told before the last call, anew a
// minute later.
func TestCost(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Unix(1_000_000, 0))
	c := startAt(t, clock, false)
	p := newPolicy("p", policyv1alpha1.PolicySource{Rego: regoSource("no")})
	p.Spec.Limits.Deadline = &metav1.Duration{Duration: time.Minute} // the machine may be busy
	c.create(p)
	c.settled("p", regoSource("no"), 1)
	for range 7 {
		c.host.Admit(t.Context(), policyv1alpha1.ExtensionValidate, podRequest("x"), nil)
	}
	c.update("p", func(p *policyv1alpha1.Policy) { p.Labels = map[string]string{"a": "b"} })
	eventually(t, "the cost of all calls", func() bool {
		clock.Step(costs)
		cost := c.policy("p").Status.Cost
		return cost != nil && cost.Calls >= 7
	})
	if cost := c.policy("p").Status.Cost; cost.Calls != 7 || cost.Failures != 0 || cost.TimePerCall.Duration <= 0 {
		t.Errorf("cost %+v", cost)
	}
}
