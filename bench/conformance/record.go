package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// record is what is known of each test, by name: passed, or failed.
type record map[string]string

const (
	passed = "passed"
	failed = "failed"
	notRun = "not run"
	left   = "left out"
)

// readRecord reads lines of a state, a tab and a name. Lines that begin with #
// are for people.
func readRecord(path string) (record, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return record{}, nil
	} else if err != nil {
		return nil, err
	}
	return decode(content)
}

func decode(content []byte) (record, error) {
	r := record{}
	for i, line := range strings.Split(string(content), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		state, name, ok := strings.Cut(line, "\t")
		if !ok || !slices.Contains([]string{passed, failed, notRun, left}, state) {
			return nil, fmt.Errorf("record of outcomes, line %d: %q is not a state, a tab and a name", i+1, line)
		}
		if state == passed || state == failed {
			r[name] = state
		}
	}
	return r, nil
}

// merge takes the outcomes over. What is left out has none.
func (r record) merge(tests []test, outcomes map[string]outcome) {
	for _, t := range tests {
		if t.leftOut != "" {
			delete(r, t.name)
		} else if o, ok := outcomes[t.name]; ok {
			r[t.name] = stateOf(o)
		}
	}
}

func stateOf(o outcome) string {
	if o.passed {
		return passed
	}
	return failed
}

func (r record) state(t test) string {
	switch {
	case t.leftOut != "":
		return left
	case r[t.name] == "":
		return notRun
	}
	return r[t.name]
}

// encode writes one line a test, by name.
func (r record) encode(tests []test) []byte {
	var out bytes.Buffer
	out.WriteString("# Outcome of each of upstream's conformance tests, written with -update.\n")
	for _, t := range sorted(tests) {
		fmt.Fprintf(&out, "%s\t%s\n", r.state(t), t.name)
	}
	return out.Bytes()
}

func sorted(tests []test) []test {
	return slices.SortedFunc(slices.Values(tests), func(a, b test) int { return strings.Compare(a.name, b.name) })
}

// compare fails when a test that is recorded as passed has another outcome, and
// tells of those that pass for the first time.
func (r record) compare(out io.Writer, outcomes map[string]outcome) error {
	var lost []string
	news := 0
	for name, o := range outcomes {
		switch {
		case !o.passed && r[name] == passed:
			lost = append(lost, name)
		case o.passed && r[name] != passed:
			news++
		}
	}
	if news > 0 {
		fmt.Fprintf(out, "%d tests pass that did not before: record them with -update\n", news)
	}
	if len(lost) > 0 {
		slices.Sort(lost)
		return fmt.Errorf("%d tests passed before and do not now:\n  %s", len(lost), strings.Join(lost, "\n  "))
	}
	return nil
}

// count of a group, or of all.
type count struct{ all, passed, run, left int }

func (c *count) add(t test, state string) {
	c.all++
	switch state {
	case passed:
		c.passed++
		c.run++
	case failed:
		c.run++
	case left:
		c.left++
	}
}

// counts by group, in the order of their names, and the sum.
func counts(tests []test, state func(test) string) (groups []string, by map[string]*count, sum count) {
	by = map[string]*count{}
	for _, t := range tests {
		if by[t.group] == nil {
			by[t.group] = &count{}
			groups = append(groups, t.group)
		}
		s := state(t)
		by[t.group].add(t, s)
		sum.add(t, s)
	}
	slices.Sort(groups)
	return groups, by, sum
}

// report prints the failures of a run and its table.
func report(out io.Writer, tests, chosen []test, outcomes map[string]outcome) {
	for _, t := range chosen {
		if o, ok := outcomes[t.name]; !ok {
			fmt.Fprintf(out, "NOT RUN %s\n", t.name)
		} else if !o.passed {
			fmt.Fprintf(out, "FAILED  %s (%.0fs)\n        %s\n", t.name, o.took.Seconds(), o.why)
		}
	}
	groups, by, sum := counts(tests, func(t test) string {
		o, ok := outcomes[t.name]
		switch {
		case ok:
			return stateOf(o)
		case t.leftOut != "":
			return left
		}
		return notRun
	})
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "group\tpassed\trun\tleft out\tall\t")
	for _, g := range groups {
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\t\n", g, by[g].passed, by[g].run, by[g].left, by[g].all)
	}
	fmt.Fprintf(table, "all\t%d\t%d\t%d\t%d\t\n", sum.passed, sum.run, sum.left, sum.all)
	_ = table.Flush() // out is a terminal or a buffer: what fails to print is not there to be told
}

// part is one way to run the tests.
type part struct {
	tests []test
	record
}

// page is docs/conformance.md: on simulated nodes, and on a real one.
func page(sim, node part) []byte {
	var out bytes.Buffer
	either := 0
	for _, t := range sim.tests { // all
		if node.record[t.name] == passed || sim.state(t) == passed {
			either++
		}
	}
	fmt.Fprintf(&out, `# Conformance

Kubernetes' own conformance tests, from k8s.io/kubernetes as in `+"`bench/conformance/go.mod`"+`, unmodified, against two clusters: one
with simulated nodes, which run no program, and one with a node of real containers. **%d of %d pass** on one or the other.
A run without `+"`-update`"+` fails when a test that is recorded as passed does not pass.

## Simulated nodes

`+"`quaymaster up --runtime sim --nodes 4`"+`: what needs a program in a container is left out, with that reason. Each test's outcome
is in [conformance.txt](conformance.txt), written by `+"`task conformance -- -update`"+`.
`, either, len(sim.tests))
	sim.write(&out)
	fmt.Fprintf(&out, `
## A node with containerd

The same tests against `+"`quaymaster server`"+` and `+"`quaymaster agent --runtime containerd --service-proxy nftables --dns-listen`"+`, on Debian's containerd and runc in namespaces of their own; images are made
from upstream's sources and Debian's programs and come from a registry on the loopback, under the names that the tests ask for. Each
test's outcome is in [conformance-node.txt](conformance-node.txt), written by `+"`task conformance-node -- -update`"+`.
`)
	node.write(&out)
	return out.Bytes()
}

// write adds the table of a part, what did not pass, and what is left out.
func (p part) write(out *bytes.Buffer) {
	groups, by, sum := counts(p.tests, p.state)
	fmt.Fprintf(out, `
**%d of %d pass**, %d are run, %d are left out.

| group | passed | run | left out | all |
|---|---|---|---|---|
`, sum.passed, sum.all, sum.run, sum.left)
	for _, g := range groups {
		fmt.Fprintf(out, "| %s | %d | %d | %d | %d |\n", g, by[g].passed, by[g].run, by[g].left, by[g].all)
	}
	list(out, "Run, and not passed", p.tests, func(t test) bool { return p.state(t) == failed })
	list(out, "Not run yet", p.tests, func(t test) bool { return p.state(t) == notRun })
	reasons := map[string][]test{}
	var order []string
	for _, t := range p.tests {
		if t.leftOut != "" {
			if reasons[t.leftOut] == nil {
				order = append(order, t.leftOut)
			}
			reasons[t.leftOut] = append(reasons[t.leftOut], t)
		}
	}
	slices.SortFunc(order, func(a, b string) int {
		if d := len(reasons[b]) - len(reasons[a]); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	for _, reason := range order {
		fmt.Fprintf(out, "\n### Left out: %s (%d)\n\n", reason, len(reasons[reason]))
		for _, t := range sorted(reasons[reason]) {
			fmt.Fprintf(out, "- %s\n", strings.TrimSuffix(t.name, " [Conformance]"))
		}
	}
}

func list(out *bytes.Buffer, title string, tests []test, is func(test) bool) {
	first := true
	for _, t := range sorted(tests) {
		if !is(t) {
			continue
		}
		if first {
			fmt.Fprintf(out, "\n### %s\n\n", title)
			first = false
		}
		fmt.Fprintf(out, "- %s\n", strings.TrimSuffix(t.name, " [Conformance]"))
	}
}
