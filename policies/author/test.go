package author

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// Result of one case. It passed when there are no failures; those are
// *FieldError at the expectation that was not met.
type Result struct {
	Case     string
	Failures []error
	Wall     time.Duration
}

// testTime is the time of decisions for which none is given.
var testTime = time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)

// stopped is a clock that shows what it was set to.
type stopped struct{ at time.Time }

func (c *stopped) Now() time.Time                  { return c.at }
func (c *stopped) Since(t time.Time) time.Duration { return c.at.Sub(t) }

// Test runs the cases of a YAML file. Each goes through a policies.Host, as it
// would in the server. The error says why there are no results at all.
func (e Engines) Test(ctx context.Context, file string) ([]Result, error) {
	s, err := readSuite(file)
	if err != nil {
		return nil, err
	}
	program, err := read(s.policyFile())
	if err != nil {
		return nil, s.document.errorf(path{"policy"}, "%w", err)
	}
	clock := &stopped{}
	if s.Grants == nil {
		if s.Grants, err = e.asked(program); err != nil {
			return nil, s.document.errorf(path{"policy"}, "%w", err)
		}
	}
	store := &objects{}
	host := policies.NewHost(policies.Options{Engines: e, Reads: store, Clock: clock, Probation: -1})
	defer host.Close()
	var results []Result
	for i := range s.Cases {
		c := &s.Cases[i]
		clock.at = testTime
		if c.Time != nil {
			clock.at = c.Time.Time
		}
		all, _, err := decodeObjects(c.Objects) // without error, or there would be no suite
		if err != nil {
			return nil, err
		}
		store.set(all)
		r := &run{suite: s, testCase: c, at: path{"cases", i}, host: host, program: program}
		began := time.Now()
		err = r.do(ctx)
		if ctx.Err() != nil {
			return results, ctx.Err()
		}
		r.compareError(err)
		results = append(results, Result{Case: c.Name, Failures: r.failures, Wall: time.Since(began)})
	}
	return results, nil
}

// asked is what a program asks for; what does not load asks for nothing, and its
// cases tell why.
func (e Engines) asked(s *source) (*policyv1alpha1.PolicyGrants, error) {
	engine, err := e.of(s)
	if err != nil {
		return nil, err
	}
	grants := &policyv1alpha1.PolicyGrants{}
	if inspector, ok := engine.(policies.Inspector); ok {
		if i, err := inspector.Inspect(s.load(nil)); err == nil {
			grants.Reads = i.Reads
		}
	}
	return grants, nil
}

// run is one case under way.
type run struct {
	*suite
	*testCase
	at       path
	host     *policies.Host
	program  *source
	failures []error
}

func (r *run) failf(p path, format string, args ...any) {
	r.failures = append(r.failures, r.document.errorf(r.at.with(p...), format, args...))
}

// do returns the error of the load or of the call.
func (r *run) do(ctx context.Context) error {
	spec := &policyv1alpha1.PolicySpec{
		Engine: r.program.engine, Config: rawConfig(r.testCase.Config), Limits: r.suite.Limits, Match: r.suite.Match, Grants: *r.suite.Grants,
	}
	status, err := r.host.Apply(ctx, r.program.name, spec, r.program.data, r.program.file)
	if err != nil {
		return err
	}
	defer func() {
		// the breaker of one case is not to answer the next
		if stats, ok := r.host.Stats(r.program.name); ok && stats.Failures > 0 {
			r.host.Remove(r.program.name)
		}
	}()
	if r.Pod != nil {
		return r.schedule(ctx)
	}
	if r.Request != nil {
		return r.admit(ctx, status)
	}
	return nil
}

func (r *run) schedule(ctx context.Context) error {
	pinned, err := r.host.Pin(r.program.name)
	if err != nil {
		return err
	}
	defer pinned.Release()
	filters := slices.Contains(pinned.Points(), policyv1alpha1.ExtensionFilter)
	scores := slices.Contains(pinned.Points(), policyv1alpha1.ExtensionScore)
	if !filters && len(r.Refuses)+len(r.Passes) > 0 {
		return fmt.Errorf("the policy is no filter: it has %v", pinned.Points())
	}
	if !scores && len(r.Scores) > 0 {
		return fmt.Errorf("the policy does not score: it has %v", pinned.Points())
	}
	cycle := policies.Cycle{Time: testTime, Seed: 1}
	if t := r.testCase.Time; t != nil {
		cycle.Time = t.Time
	}
	if seed := r.testCase.Seed; seed != nil {
		cycle.Seed = *seed
	}
	nodes := r.testCase.Nodes
	fleet := abi.FleetOf(nodes, r.testCase.Running...)
	verdicts, rated := make([]uint8, len(nodes)), make([]int64, len(nodes))
	if filters {
		if _, err := pinned.Filter(ctx, cycle, r.Pod, fleet, verdicts); err != nil {
			return err
		}
	}
	reasons := make([]string, len(nodes))
	rows := map[string]int{}
	for row, node := range nodes {
		rows[node.Name] = row
		if verdicts[row] != 0 {
			reasons[row] = pinned.Reason(row, verdicts[row])
		}
	}
	if scores {
		if _, err := pinned.Score(ctx, cycle, r.Pod, fleet, verdicts, rated); err != nil {
			return err
		}
	}
	for i, name := range r.Passes {
		if row := rows[name]; verdicts[row] != 0 {
			r.failf(path{"passes", i}, "node %q is refused: %s", name, reasons[row])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Refuses)) {
		row, want := rows[name], r.Refuses[name]
		switch {
		case verdicts[row] == 0:
			r.failf(path{"refuses", name}, "the node passes")
		case reasons[row] != want:
			r.failf(path{"refuses", name}, "is refused for %q, expected %q", reasons[row], want)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Scores)) {
		row, want := rows[name], r.Scores[name]
		switch {
		case verdicts[row] != 0:
			r.failf(path{"scores", name}, "the node is refused: %s", reasons[row])
		case rated[row] != want:
			r.failf(path{"scores", name}, "is %d, expected %d", rated[row], want)
		}
	}
	return nil
}

// admit mutates, then validates what came of it, as the server's chain does.
func (r *run) admit(ctx context.Context, status policies.Status) error {
	request := *r.Request
	var patch []byte
	var answer *admissionv1.AdmissionResponse
	var warnings []string
	for _, point := range []policyv1alpha1.ExtensionPoint{policyv1alpha1.ExtensionMutate, policyv1alpha1.ExtensionValidate} {
		if !slices.Contains(status.Points, point) {
			continue
		}
		before, _ := r.host.Stats(r.program.name)
		answer, _ = r.host.Admit(ctx, point, &request, r.testCase.Namespace)
		if after, _ := r.host.Stats(r.program.name); after.Failures > before.Failures {
			return errors.New(after.LastFailure)
		}
		warnings = append(warnings, answer.Warnings...)
		if !answer.Allowed {
			break
		}
		if patch = append(patch, answer.Patch...); len(answer.Patch) > 0 {
			decoded, err := jsonpatch.DecodePatch(answer.Patch)
			if err != nil {
				return err
			}
			if request.Object.Raw, err = decoded.Apply(request.Object.Raw); err != nil {
				return err
			}
		}
	}
	if answer == nil {
		return fmt.Errorf("the policy is not for admission: it has %v", status.Points)
	}
	var code int32
	var message string
	if answer.Result != nil {
		code = answer.Result.Code
		message = strings.TrimPrefix(answer.Result.Message, fmt.Sprintf("policy %q denied the request: ", r.program.name))
	}
	if want := r.Allowed; want != nil && answer.Allowed != *want {
		r.failf(path{"allowed"}, "is %t, expected %t%s", answer.Allowed, *want, because(message))
	}
	if want := r.Code; want != nil && code != *want {
		r.failf(path{"code"}, "is %d, expected %d", code, *want)
	}
	if want := r.Message; want != nil && message != *want {
		r.failf(path{"message"}, "is %q, expected %q", message, *want)
	}
	if want := r.Warnings; want != nil && !slices.Equal(warnings, want) {
		r.failf(path{"warnings"}, "are %q, expected %q", warnings, want)
	}
	if patch == nil {
		patch = []byte("[]")
	}
	if err := r.same("patch", r.Patch, patch); err != nil {
		return err
	}
	return r.same("object", r.Object, request.Object.Raw)
}

func because(message string) string {
	if message == "" {
		return ""
	}
	return ": " + message
}

// same compares JSON values; a want of nil is not compared.
func (r *run) same(field string, want any, got []byte) error {
	if want == nil {
		return nil
	}
	text, err := json.Marshal(want)
	if err != nil {
		return err
	}
	var x, y any
	if err := errors.Join(json.Unmarshal(text, &x), json.Unmarshal(got, &y)); err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	if !reflect.DeepEqual(x, y) {
		r.failf(path{field}, "is %s, expected %s", bytes.TrimSpace(got), text)
	}
	return nil
}

func (r *run) compareError(err error) {
	switch want := r.Error; {
	case want == nil && err != nil:
		r.failf(nil, "%w", err)
	case want != nil && err == nil:
		r.failf(path{"error"}, "there is none, expected %q", *want)
	case want != nil && (*want == "" || !strings.Contains(err.Error(), *want)):
		r.failf(path{"error"}, "is %q, expected one with %q", err, *want)
	}
}
