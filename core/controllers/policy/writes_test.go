package policy

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
)

// observe asks the policies in force all the time, until the returned function
// ends it: an answer that is not one of want, and the time without a policy, fail the test.
func (c *cluster) observe(want ...string) (end func()) {
	c.t.Helper()
	stop := make(chan struct{})
	var done sync.WaitGroup
	asked := 0
	done.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			answer, _ := c.host.Admit(c.t.Context(), policyv1alpha1.ExtensionValidate, podRequest("web"), nil)
			asked++
			got := "nothing"
			if answer.Result != nil {
				got = answer.Result.Message // else what is wrong
				if _, denial, ok := strings.Cut(got, "denied the request: "); ok {
					got = denial
				}
			}
			known := false
			for _, w := range want {
				known = known || got == w
			}
			if !known {
				c.t.Errorf("answer %d is %q, expected one of %q", asked, got, want)
				return
			}
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	})
	return func() {
		close(stop)
		done.Wait()
	}
}

func (c *cluster) rename(from, to string) {
	c.t.Helper()
	if err := os.Rename(filepath.Join(c.dir, from), filepath.Join(c.dir, to)); err != nil {
		c.t.Fatal(err)
	}
}

// Renamed files move what they hold: objects keep their identity, programs stay in
// force, and no request meanwhile passes without a policy.
func TestRenamedFiles(t *testing.T) {
	c := start(t, true)
	c.write("one.rego", regoSource("one"))
	c.write("two.rego", regoSource("two"))
	c.write("a.yaml", policyYAML("a", "one.rego"))
	c.inForce("a", regoSource("one"))
	uid, generation := c.policy("a").UID, c.policy("a").Status.ActiveGeneration

	end := c.observe("one")
	c.rename("a.yaml", "b.yaml")
	eventually(t, "the object is of the new file", func() bool { return c.policy("a").Annotations[AnnotationFile] == "b.yaml" })
	// the program moves, and the object follows
	c.rename("one.rego", "moved.rego")
	c.refused("a", "Fetch", "one.rego: no such file")
	c.write("b.yaml", policyYAML("a", "moved.rego"))
	c.inForce("a", regoSource("one"))
	end()
	p := c.policy("a")
	if p.UID != uid || p.Status.ActiveGeneration != generation {
		t.Errorf("after the renames it is %s in generation %d, before %s in %d", p.UID, p.Status.ActiveGeneration, uid, generation)
	}

	end = c.observe("one", "two")
	// another program takes the name
	c.rename("two.rego", "moved.rego")
	c.inForce("a", regoSource("two"))
	// another file takes the object's
	c.write("one.rego", regoSource("one"))
	c.write("next", policyYAML("a", "one.rego"))
	c.rename("next", "b.yaml")
	c.inForce("a", regoSource("one"))
	end()
	// in probation, the first generation is kept for the way back
	if p := c.policy("a"); p.UID != uid || p.Status.ActiveGeneration != generation {
		t.Errorf("generation %d of %s, before %d of %s", p.Status.ActiveGeneration, p.UID, generation, uid)
	}
}

// grow writes a file in place, piece by piece. After each piece but the last, files
// of the directory have been looked at.
func (c *cluster) grow(name, content string, pieces int) {
	c.t.Helper()
	f, err := os.OpenFile(filepath.Join(c.dir, name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	for i := range pieces {
		from, to := len(content)*i/pieces, len(content)*(i+1)/pieces
		if _, err := f.WriteString(content[from:to]); err != nil {
			c.t.Fatal(err)
		}
		if i+1 < pieces {
			probe := fmt.Sprintf("package probe\n\nfilter contains %q\n", fmt.Sprint(name, i, time.Now()))
			c.write("probe.rego", probe)
			c.inForce("probe", probe)
		}
	}
}

// A file that grows while it is looked at replaces the version in force when it is
// whole, and not before.
func TestGrowingFiles(t *testing.T) {
	c := start(t, true)
	c.write("probe.rego", "package probe\n\nfilter contains \"x\"\n")
	c.write("probe.yaml", policyYAML("probe", "probe.rego"))
	c.write("a.rego", regoSource("one"))
	c.write("a.yaml", policyYAML("a", "a.rego"))
	c.inForce("a", regoSource("one"))
	uid := c.policy("a").UID

	// no part of this but the whole is a policy
	second := "package p\n\ndeny contains msg if {\n\tinput.request.name == \"web\"\n\tmsg := \"two\"\n}"
	end := c.observe("one")
	c.grow("a.rego", second[:len(second)-1], 8)
	end()
	if p := c.refused("a", "Parse", "a.rego"); !strings.Contains(p.Status.Conditions[0].Message, "stays in force") {
		t.Errorf("conditions %+v", p.Status.Conditions)
	}
	end = c.observe("one", "two")
	c.grow("a.rego", second, 8)
	c.inForce("a", second)
	end()

	third := regoSource("three")
	c.write("three.rego", third)
	// the whole alone is a policy: without the last brace it is no YAML
	object := "kind: Policy\napiVersion: policy.quaymaster.dev/v1alpha1\nmetadata: {name: a}\nspec: {engine: Rego, limits: {deadline: 1m}, source: {file: three.rego}}"
	end = c.observe("two")
	c.grow("a.yaml", object[:len(object)-1], 8)
	end()
	end = c.observe("two", "three")
	c.grow("a.yaml", object, 8)
	c.inForce("a", third)
	end()
	if c.policy("a").UID != uid {
		t.Error("the policy was deleted and created again")
	}
}

// The same of a module in WebAssembly.
func TestGrowingModule(t *testing.T) {
	c := start(t, true)
	var guests []string
	for _, name := range []string{"prefer-label-v1", "prefer-label-v2"} {
		data, err := os.ReadFile("../../../wasm-plugins/c/prefer-label/" + name + ".wasm")
		if err != nil {
			t.Fatal(err)
		}
		guests = append(guests, string(data))
	}
	c.write("probe.rego", "package probe\n\nfilter contains \"x\"\n")
	c.write("probe.yaml", policyYAML("probe", "probe.rego"))
	c.write("g.wasm", guests[0])
	c.write("g.yaml", strings.Replace(policyYAML("g", "g.wasm"), "engine: Rego", "engine: Wasm\n  config: {key: disktype, value: ssd}", 1))
	c.inForce("g", guests[0])
	before := c.policy("g").Status.ActiveGeneration
	c.grow("g.wasm", guests[1], 10)
	c.inForce("g", guests[1])
	var between []int64
	for _, v := range c.policy("g").Status.Versions {
		if v.Digest != policies.Digest([]byte(guests[0])) && v.Digest != policies.Digest([]byte(guests[1])) {
			between = append(between, v.Revision)
		}
	}
	if len(between) > 0 || c.policy("g").Status.ActiveGeneration == before {
		t.Errorf("versions %v are of parts of the module", between)
	}
}
