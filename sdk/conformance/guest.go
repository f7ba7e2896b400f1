package conformance

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// Options of Guest; the zero value works.
type Options struct {
	// Config as JSON.
	Config []byte
	// Seed of the inputs, and how many rounds of them. 0: 50 rounds.
	Seed   uint64
	Rounds int
	Limits policyv1alpha1.PolicyLimits
}

// Finding is one way in which a guest does not keep to the ABI.
type Finding struct {
	// Check that found it.
	Check string `json:"check"`
	Text  string `json:"text"`
}

// Report of a guest.
type Report struct {
	// Checks that were made.
	Checks   []string  `json:"checks"`
	Findings []Finding `json:"findings"`
	// Refused and Rated count nodes, Denied and Patched requests: where all are 0,
	// the inputs did not reach what the guest is for, and the checks mean little.
	Refused int `json:"refused"`
	Rated   int `json:"rated"`
	Denied  int `json:"denied"`
	Patched int `json:"patched"`
}

// Checks of a guest.
const (
	// CheckCalls: no call over valid input fails.
	CheckCalls = "calls"
	// CheckPure: the same question has the same answer, in the same instance, in
	// another, and after other questions.
	CheckPure = "pure"
	// CheckEpoch: answers do not depend on the numbers of symbols.
	CheckEpoch = "epoch"
	// CheckChanges: a snapshot that was kept up to date has the answers of a new one.
	CheckChanges = "changes"
	// CheckVacant: vacant rows change no other row's answer.
	CheckVacant = "vacant"
	// CheckTiers: where a guest has both tiers, they agree.
	CheckTiers = "tiers"
	// CheckMemory: an instance does not grow with the calls that it serves, by 64
	// bytes for each.
	CheckMemory = "memory"
	// CheckPatch: patches apply, and nothing is left to change after them.
	CheckPatch = "patch"
)

// memoryCalls are made by CheckMemory first, then twice as many, and so on.
const (
	memoryCalls     = 500
	mostMemoryCalls = 16_000
	leak            = 64 // bytes a call
)

// Guest checks a module over generated inputs. The error says why there is no
// report: the guest does not load.
func Guest(ctx context.Context, engine policies.Engine, source []byte, o Options) (*Report, error) {
	if o.Rounds == 0 {
		o.Rounds = 50
	}
	c := &checker{ctx: ctx, options: o, report: &Report{Findings: []Finding{}}, found: map[string]bool{}}
	program, err := c.load(engine, source)
	if err != nil {
		return nil, err
	}
	defer program.Close()
	c.program = program
	manifest, _ := section(source)
	c.g = newGenerator(o.Seed, o.Config, manifest)
	filters, scores := slices.Contains(program.Points(), policyv1alpha1.ExtensionFilter), slices.Contains(program.Points(), policyv1alpha1.ExtensionScore)
	if filters || scores {
		c.begin(CheckCalls, CheckPure, CheckEpoch, CheckChanges, CheckVacant)
		if rows, ok := withoutBatch(source); ok {
			if c.rows, err = c.load(engine, rows); err == nil {
				defer c.rows.Close()
				c.begin(CheckTiers)
			}
		}
		for round := range o.Rounds {
			if err := c.schedule(round); err != nil {
				return nil, err
			}
		}
	}
	for _, point := range []policyv1alpha1.ExtensionPoint{policyv1alpha1.ExtensionMutate, policyv1alpha1.ExtensionValidate} {
		if !slices.Contains(program.Points(), point) {
			continue
		}
		c.begin(CheckCalls, CheckPure)
		if point == policyv1alpha1.ExtensionMutate {
			c.begin(CheckPatch)
		}
		for round := range o.Rounds {
			if err := c.admit(round, point); err != nil {
				return nil, err
			}
		}
	}
	if sized, ok := program.(policies.Sized); ok {
		c.begin(CheckMemory)
		if err := c.memory(sized); err != nil {
			return nil, err
		}
	}
	return c.report, nil
}

type checker struct {
	ctx     context.Context
	options Options
	program policies.Program
	rows    policies.Program // the same guest in the row tier; nil when it has one
	g       *generator
	report  *Report
	found   map[string]bool // checks that have a finding: one of each is enough
}

// callDeadline is not to end a call for the sake of a busy machine.
const callDeadline = 10 * time.Second

func (c *checker) load(engine policies.Engine, source []byte) (policies.Program, error) {
	if c.options.Limits.Deadline == nil {
		c.options.Limits.Deadline = &metav1.Duration{Duration: callDeadline}
	}
	return engine.Load(c.ctx, policies.Load{Policy: "conformance", Source: source, Digest: policies.Digest(source), Config: c.options.Config, Limits: c.options.Limits})
}

func (c *checker) begin(checks ...string) {
	for _, check := range checks {
		if !slices.Contains(c.report.Checks, check) {
			c.report.Checks = append(c.report.Checks, check)
		}
	}
}

func (c *checker) find(check, format string, args ...any) {
	if !c.found[check] {
		c.found[check] = true
		c.report.Findings = append(c.report.Findings, Finding{check, fmt.Sprintf(format, args...)})
	}
}

var cycle = policies.Cycle{Time: time.Unix(1767225600, 0), Seed: 1}

// answer of a guest about one pod and fleet.
type answer struct {
	verdicts []uint8
	scores   []int64
	reasons  []string
	err      error
}

func (c *checker) ask(s policies.Session, pod *corev1.Pod, fleet *abi.Fleet) (a answer) {
	n := fleet.Len()
	a.verdicts, a.scores, a.reasons = make([]uint8, n), make([]int64, n), make([]string, n)
	points := c.program.Points()
	if slices.Contains(points, policyv1alpha1.ExtensionFilter) {
		if _, a.err = s.Filter(c.ctx, cycle, pod, fleet, a.verdicts); a.err != nil {
			return a
		}
		for row, v := range a.verdicts {
			if v != 0 {
				a.reasons[row] = s.Reason(row, v)
			}
		}
	}
	if slices.Contains(points, policyv1alpha1.ExtensionScore) {
		_, a.err = s.Score(c.ctx, cycle, pod, fleet, a.verdicts, a.scores)
	}
	return a
}

// differs tells the first row of two answers that is not the same. row maps a row
// of a to one of b.
func differs(a, b answer, nodes []*corev1.Node, row func(int) int) string {
	if (a.err == nil) != (b.err == nil) {
		return fmt.Sprintf("one call fails: %v, %v", a.err, b.err)
	}
	if a.err != nil {
		return ""
	}
	for i, n := range nodes {
		k := row(i)
		switch {
		case n == nil:
		case a.verdicts[i] != b.verdicts[k]:
			return fmt.Sprintf("node %s has verdict %d, and %d", n.Name, a.verdicts[i], b.verdicts[k])
		case a.reasons[i] != b.reasons[k]:
			return fmt.Sprintf("node %s is refused for %q, and for %q", n.Name, a.reasons[i], b.reasons[k])
		case a.verdicts[i] == 0 && a.scores[i] != b.scores[k]:
			return fmt.Sprintf("node %s has score %d, and %d", n.Name, a.scores[i], b.scores[k])
		}
	}
	return ""
}

func same(i int) int { return i }

func (c *checker) schedule(round int) error {
	nodes := make([]*corev1.Node, 1+c.g.IntN(20))
	var running []*corev1.Pod
	for i := range nodes {
		nodes[i] = c.g.node(fmt.Sprintf("n%d-%d", round, i))
		for k := range c.g.IntN(3) {
			pod := c.g.pod(fmt.Sprintf("r%d-%d-%d", round, i, k))
			pod.Spec.NodeName = nodes[i].Name
			running = append(running, pod)
		}
	}
	pod, other := c.g.pod(fmt.Sprint("p", round)), c.g.pod(fmt.Sprint("q", round))
	fleet := abi.FleetOf(nodes, running...)
	session := c.program.Session()
	defer func() { session.Close() }()
	first := c.ask(session, pod, fleet)
	if first.err != nil {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		c.find(CheckCalls, "round %d, seed %d: %v", round, c.options.Seed, first.err)
		return nil
	}
	for _, v := range first.verdicts {
		if v == 0 {
			c.report.Rated++
		} else {
			c.report.Refused++
		}
	}
	// again, after another question, and in an instance of its own: the first is
	// held meanwhile
	for i, question := range []func() answer{
		func() answer { return c.ask(session, pod, fleet) },
		func() answer { c.ask(session, other, fleet); return c.ask(session, pod, fleet) },
		func() answer {
			s := c.program.Session()
			defer s.Close()
			return c.ask(s, pod, fleet)
		},
	} {
		if text := differs(first, question(), nodes, same); text != "" {
			c.find(CheckPure, "%s: %s", []string{"asked again", "asked again after another pod", "asked in another instance"}[i], text)
		}
	}
	// other symbols: the nodes' strings are numbered from the last node on
	turned := slices.Clone(nodes)
	slices.Reverse(turned)
	last := len(nodes) - 1
	if text := differs(first, c.ask(session, pod, abi.FleetOf(turned, running...)), nodes, func(i int) int { return last - i }); text != "" {
		c.find(CheckEpoch, "with the nodes in another order and other symbols: %s", text)
	}
	sparse := make([]*corev1.Node, 2*len(nodes))
	for i, n := range nodes {
		sparse[2*i+1] = n
	}
	if text := differs(first, c.ask(session, pod, abi.FleetOf(sparse, running...)), nodes, func(i int) int { return 2*i + 1 }); text != "" {
		c.find(CheckVacant, "with vacant rows between: %s", text)
	}
	c.changes(session, pod, nodes, running)
	if c.rows != nil {
		s := c.rows.Session()
		defer s.Close()
		if text := differs(first, c.ask(s, pod, fleet), nodes, same); text != "" {
			c.find(CheckTiers, "by columns, and by rows: %s", text)
		}
	}
	return c.ctx.Err()
}

// changes counts a pod on one node after the other in a fleet that is kept.
func (c *checker) changes(session policies.Session, pod *corev1.Pod, nodes []*corev1.Node, running []*corev1.Pod) {
	kept := abi.FleetOf(nodes, running...)
	c.ask(session, pod, kept)
	for i := range min(3, len(nodes)) {
		more := c.g.pod("more")
		more.Spec.NodeName = nodes[i].Name
		running = append(slices.Clip(running), more)
		now := abi.FleetOf(nodes, running...)
		kept.Requested, kept.NonZeroRequested, kept.ExtendedRequested = now.Requested, now.NonZeroRequested, now.ExtendedRequested
		kept.Generation++
		kept.Changes = func(since uint64) ([]int32, bool) { return []int32{int32(i)}, since+1 >= kept.Generation }
		fresh := c.program.Session()
		want := c.ask(fresh, pod, now)
		fresh.Close()
		if text := differs(want, c.ask(session, pod, kept), nodes, same); text != "" {
			c.find(CheckChanges, "in a new snapshot, and in one that was kept: %s", text)
		}
	}
}

func (c *checker) admit(round int, point policyv1alpha1.ExtensionPoint) error {
	request, err := c.g.request(round)
	if err != nil {
		return err
	}
	session := c.program.Session()
	defer session.Close()
	first, _, err := session.Admit(c.ctx, cycle, point, request)
	if cancelled := c.ctx.Err(); cancelled != nil {
		return cancelled
	}
	if err != nil {
		c.find(CheckCalls, "%s, round %d, seed %d: %v", point, round, c.options.Seed, err)
		return nil
	}
	if !first.Allowed {
		c.report.Denied++
	}
	for i, ask := range []policies.Session{session, c.program.Session()} {
		again, _, err := ask.Admit(c.ctx, cycle, point, request)
		if i > 0 {
			ask.Close()
		}
		if err != nil || !equality.Semantic.DeepEqual(first, again) {
			c.find(CheckPure, "%s: two answers to one request, %v", point, err)
		}
	}
	if !first.Allowed || len(first.Patch) == 0 || bytes.Equal(bytes.TrimSpace(first.Patch), []byte("[]")) {
		return nil
	}
	c.report.Patched++
	patch, err := jsonpatch.DecodePatch(first.Patch)
	if err == nil && len(request.Object.Raw) == 0 {
		err = errors.New("the request has no object to patch")
	}
	after := *request
	if err == nil {
		after.Object.Raw, err = patch.Apply(request.Object.Raw)
	}
	if err != nil {
		c.find(CheckPatch, "%s of %s: %v", first.Patch, request.Kind.Kind, err)
		return nil
	}
	second, _, err := session.Admit(c.ctx, cycle, point, &after)
	if err == nil && !second.Allowed {
		err = errors.New("it refuses it")
	}
	if err == nil && len(second.Patch) > 0 {
		var object []byte
		if patch, err = jsonpatch.DecodePatch(second.Patch); err == nil {
			object, err = patch.Apply(after.Object.Raw)
		}
		if err == nil && !jsonpatch.Equal(object, after.Object.Raw) {
			err = fmt.Errorf("it changes it again: %s", second.Patch)
		}
	}
	if err != nil {
		c.find(CheckPatch, "asked about what it made of a %s: %v", request.Kind.Kind, err)
	}
	return nil
}

// memory asks one instance often, until it no longer grows: a runtime with a
// garbage collector takes a while.
func (c *checker) memory(sized policies.Sized) error {
	nodes := []*corev1.Node{c.g.node("m0"), c.g.node("m1"), c.g.node("m2")}
	fleet, pods := abi.FleetOf(nodes), []*corev1.Pod{c.g.pod("m"), c.g.pod("n")}
	var requests []*admissionv1.AdmissionRequest
	for i := range 8 {
		request, err := c.g.request(i)
		if err != nil {
			return err
		}
		requests = append(requests, request)
	}
	var before, after int64
	calls := 0
	for until := memoryCalls; until <= mostMemoryCalls; until *= 2 {
		for ; calls < until; calls++ {
			session := c.program.Session()
			err := c.ask(session, pods[calls%2], fleet).err
			for _, point := range []policyv1alpha1.ExtensionPoint{policyv1alpha1.ExtensionMutate, policyv1alpha1.ExtensionValidate} {
				if err == nil && slices.Contains(c.program.Points(), point) {
					_, _, err = session.Admit(c.ctx, cycle, point, requests[calls%len(requests)])
				}
			}
			session.Close()
			if cancelled := c.ctx.Err(); cancelled != nil {
				return cancelled
			}
			if err != nil {
				if !c.found[CheckCalls] {
					c.find(CheckMemory, "call %d of one instance fails: %v", calls+1, err)
				}
				return nil
			}
		}
		before, after = after, sized.Memory()
		if before > 0 && after-before < leak*int64(calls/2) {
			return nil
		}
	}
	c.find(CheckMemory, "an instance has %d KiB after %d calls, and %d KiB after as many again", before>>10, calls/2, after>>10)
	return nil
}

// sections of a module: each as it stands, with its id, and its content.
func sections(module []byte) (out []struct {
	id             byte
	whole, content []byte
}, ok bool) {
	if len(module) < 8 {
		return nil, false
	}
	for at := 8; at < len(module); {
		size, n := binary.Uvarint(module[at+1:])
		if n <= 0 || size > uint64(len(module)-at-1-n) {
			return nil, false
		}
		end := at + 1 + n + int(size)
		out = append(out, struct {
			id             byte
			whole, content []byte
		}{module[at], module[at:end], module[at+1+n : end]})
		at = end
	}
	return out, true
}

// section returns the manifest in a module.
func section(module []byte) (manifest []byte, ok bool) {
	all, _ := sections(module)
	name := append([]byte{byte(len(abi.ManifestSection))}, abi.ManifestSection...)
	for _, s := range all {
		if s.id == 0 && bytes.HasPrefix(s.content, name) {
			return s.content[len(name):], true
		}
	}
	return nil, false
}

// withoutBatch returns the module without the exports of the column tier, so that
// the host takes those of the row tier; ok is false when it has not both.
func withoutBatch(module []byte) (out []byte, ok bool) {
	all, ok := sections(module)
	if !ok {
		return nil, false
	}
	out = slices.Clone(module[:8])
	both := false
	for _, s := range all {
		if s.id != 7 {
			out = append(out, s.whole...)
			continue
		}
		names := map[string][]byte{} // by name, the entry
		count, n := binary.Uvarint(s.content)
		rest := s.content[max(n, 0):]
		var order []string
		for range count {
			size, n := binary.Uvarint(rest)
			if n <= 0 || uint64(len(rest)) < uint64(n)+size+2 {
				return nil, false
			}
			name := string(rest[n : n+int(size)])
			_, k := binary.Uvarint(rest[n+int(size)+1:])
			if k <= 0 {
				return nil, false
			}
			end := n + int(size) + 1 + k
			names[name], order = rest[:end], append(order, name)
			rest = rest[end:]
		}
		var entries []byte
		left := uint64(0)
		for _, name := range order {
			row := map[string]string{"filter_batch": "filter", "score_batch": "score"}[name]
			if row != "" && names[row] != nil {
				both = true
				continue
			}
			entries = append(entries, names[name]...)
			left++
		}
		content := append(binary.AppendUvarint(nil, left), entries...)
		out = append(out, 7)
		out = append(binary.AppendUvarint(out, uint64(len(content))), content...)
	}
	return out, both
}
