package rego

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/topdown"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/lru"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// program is one source with one configuration.
type program struct {
	unit                    *unit
	policy                  string
	deadline, fleetDeadline time.Duration
	parameters              ast.Value
	store                   storage.Store // of the bundle's data

	// of modules
	usage    *usage
	options  []func(*rego.Rego)
	builtins map[string]*topdown.Builtin
	unsafe   map[string]struct{}
	queries  map[string]*query
	// no partial evaluation, or always: to compare with
	plain, always bool

	// of what OPA compiled
	module      policies.OPAModule
	entrypoints map[string]string // by rule

	shapes *lru.Cache

	mu       sync.Mutex
	nodes    []nodeInput           // by row of the fleet seen last
	extended []corev1.ResourceName // that they tell of
}

// query of one rule.
type query struct {
	ref      ast.Ref
	compiler *ast.Compiler
	whole    rego.PreparedEvalQuery
	each     *each
	losses   atomic.Int32 // of partial evaluation against it, in a row
	making   atomic.Int64 // nanoseconds that the last partial evaluation took
}

// Points implements policies.Program.
func (p *program) Points() []policyv1alpha1.ExtensionPoint { return p.unit.points }

// Static implements policies.Program.
func (p *program) Static() bool { return p.usage != nil && p.usage.static() }

// Session implements policies.Program.
func (p *program) Session() policies.Session { return &session{program: p} }

// Close implements policies.Program.
func (p *program) Close() error {
	if p.module != nil {
		return p.module.Close()
	}
	return nil
}

// Footprint implements policies.Footprint: of the compiled module; what OPA
// itself holds is among the server's objects.
func (p *program) Footprint() int64 {
	if p.module != nil {
		return p.module.Footprint()
	}
	return 0
}

// Stateful implements policies.Stateful: what the network answers may change
// from call to call.
func (p *program) Stateful() bool { return p.usage != nil && p.usage.network }

type session struct {
	*program
	testing  bool // a self-test: a busy machine does not decide on it
	compiled policies.OPASession
	reasons  map[int]string
	pod      *corev1.Pod // that podValue is of
	podValue *ast.Term
	shared   []rego.EvalOption // of all evaluations of the call under way
	txn      storage.Transaction
	stop     topdown.Cancel
}

// Close implements policies.Session.
func (s *session) Close() {
	if s.compiled != nil {
		s.compiled.Close()
		s.compiled = nil
	}
}

func (p *program) has(rule string) bool { return slices.Contains(p.unit.names, rule) }

// eval returns the value of a rule, nil when it is undefined.
func (s *session) eval(ctx context.Context, rule string, c policies.Cycle, input ast.Value) (any, error) {
	if s.module != nil {
		return s.evalCompiled(ctx, rule, input)
	}
	options := append(s.shared[:len(s.shared):len(s.shared)], rego.EvalParsedInput(input), rego.EvalTime(c.Time), rego.EvalSeed(newSeed(c.Seed)))
	results, err := s.queries[rule].whole.Eval(ctx, options...)
	if err != nil {
		return nil, s.failed(ctx, rule, err)
	}
	if len(results) == 0 || len(results[0].Expressions) == 0 {
		return nil, nil
	}
	return results[0].Expressions[0].Value, nil
}

// failed says what the error of an evaluation means.
func (s *session) failed(ctx context.Context, rule string, err error) error {
	failed := askedIn(ctx).failed
	switch {
	case failed != nil:
		return fmt.Errorf("%s: %w", rule, failed)
	case topdown.IsCancel(err) || errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w", rule, policies.ErrDeadline)
	case errors.Is(err, policies.ErrResult):
		return err
	}
	return fmt.Errorf("%s: %w: %w", rule, policies.ErrTrap, oneLine(err))
}

// timed bounds f by the deadline; when the caller's context ended, that is the error.
func (s *session) timed(ctx context.Context, c policies.Cycle, deadline time.Duration, f func(context.Context) error) (policies.Cost, error) {
	if s.testing {
		deadline = max(deadline, selfTestDeadline)
	}
	began := time.Now()
	bounded, cancel := context.WithTimeout(withCycle(ctx, c), deadline)
	defer cancel()
	done, err := s.share(bounded)
	if err != nil {
		return policies.Cost{}, err
	}
	defer done()
	err = f(bounded)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return policies.Cost{Wall: time.Since(began)}, err
}

// share makes what else each evaluation would make for itself, a transaction, a
// goroutine that waits for the context and metrics: of a node, they take as long
// as a small rule.
func (s *session) share(ctx context.Context) (done func(), err error) {
	if s.module != nil {
		return func() {}, nil
	}
	txn, err := s.store.NewTransaction(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the bundle's data: %w", err)
	}
	stop := topdown.NewCancel()
	cancelled := context.AfterFunc(ctx, stop.Cancel)
	s.txn, s.stop = txn, stop
	s.shared = []rego.EvalOption{rego.EvalTransaction(txn), rego.EvalExternalCancel(stop), rego.EvalMetrics(metrics.NoOp())}
	return func() {
		cancelled()
		s.shared, s.txn, s.stop = nil, nil, nil
		s.store.Abort(ctx, txn)
	}, nil
}

// messages of a rule: strings, or objects with msg or message.
func messages(rule string, value any) ([]string, error) {
	list, ok := value.([]any)
	if !ok && value != nil && value != false {
		list = []any{value}
	}
	var out []string
	for _, item := range list {
		switch v := item.(type) {
		case string:
			out = append(out, v)
		case map[string]any:
			text, ok := v["msg"].(string)
			if !ok {
				text, ok = v["message"].(string)
			}
			if !ok {
				return nil, fmt.Errorf("%s: %w: an object without msg", rule, policies.ErrResult)
			}
			out = append(out, text)
		case bool:
			out = append(out, rule)
		default:
			return nil, fmt.Errorf("%s: %w: %T is no message", rule, policies.ErrResult, item)
		}
	}
	slices.Sort(out)
	return out, nil
}

func (s *session) messages(ctx context.Context, rule string, c policies.Cycle, input ast.Value) ([]string, error) {
	if !s.has(rule) {
		return nil, nil
	}
	value, err := s.eval(ctx, rule, c, input)
	if err != nil {
		return nil, err
	}
	return messages(rule, value)
}

// reviewKey is of a request as a value of Rego's, in a policies.Memo.
type reviewKey struct{}

// Admit implements policies.Session.
func (s *session) Admit(ctx context.Context, c policies.Cycle, point policyv1alpha1.ExtensionPoint, request *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, policies.Cost, error) {
	answer := &admissionv1.AdmissionResponse{UID: request.UID, Allowed: true}
	cost, err := s.timed(ctx, c, s.deadline, func(ctx context.Context) error {
		review, err := policies.Once(policies.MemoOf(ctx), reviewKey{}, func() (ast.Value, error) { return toValue(request) })
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		input := ast.NewObject(
			[2]*ast.Term{ast.StringTerm("apiVersion"), ast.StringTerm(admissionv1.SchemeGroupVersion.String())},
			[2]*ast.Term{ast.StringTerm("kind"), ast.StringTerm("AdmissionReview")},
			[2]*ast.Term{ast.StringTerm("request"), ast.NewTerm(review)},
			[2]*ast.Term{ast.StringTerm("review"), ast.NewTerm(review)},
			[2]*ast.Term{ast.StringTerm("parameters"), ast.NewTerm(s.parameters)},
		)
		if point == policyv1alpha1.ExtensionMutate {
			return s.patch(ctx, c, input, answer)
		}
		var refusals []string
		for _, rule := range []string{"deny", "violation"} {
			texts, err := s.messages(ctx, rule, c, input)
			if err != nil {
				return err
			}
			refusals = append(refusals, texts...)
		}
		if answer.Warnings, err = s.messages(ctx, "warn", c, input); err != nil {
			return err
		}
		if len(refusals) > 0 {
			answer.Allowed = false
			answer.Result = &metav1.Status{Code: http.StatusForbidden, Message: strings.Join(refusals, ", ")}
		}
		return nil
	})
	return answer, cost, err
}

func (s *session) patch(ctx context.Context, c policies.Cycle, input ast.Value, answer *admissionv1.AdmissionResponse) error {
	value, err := s.eval(ctx, "patch", c, input)
	if err != nil || value == nil {
		return err
	}
	list, ok := value.([]any)
	if !ok {
		return fmt.Errorf("patch: %w: %T is no set or array of operations", policies.ErrResult, value)
	}
	if len(list) == 0 {
		return nil
	}
	patch, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("patch: %w: %w", policies.ErrResult, err)
	}
	kind := admissionv1.PatchTypeJSONPatch
	answer.Patch, answer.PatchType = patch, &kind
	return nil
}

// selfTest runs every rule once on an empty request or a bare pod and node:
// what it answers does not matter, that it answers in time does.
func (p *program) selfTest(ctx context.Context) error {
	s := &session{program: p, testing: true}
	defer s.Close()
	fleet := abi.FleetOf([]*corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "self-test"}}})
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "self-test", Namespace: "default"}}
	raw, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": pod.ObjectMeta, "spec": pod.Spec})
	if err != nil {
		return err
	}
	request := &admissionv1.AdmissionRequest{
		UID: "self-test", Kind: metav1.GroupVersionKind{Version: "v1", Kind: "Pod"},
		Resource:  metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
		Operation: admissionv1.Create, Name: pod.Name, Namespace: pod.Namespace,
	}
	request.Object.Raw = bytes.TrimSpace(raw)
	for _, point := range p.unit.points {
		var err error
		switch point {
		case policyv1alpha1.ExtensionFilter:
			_, err = s.Filter(ctx, policies.Cycle{}, pod, fleet, make([]uint8, 1))
		case policyv1alpha1.ExtensionScore:
			_, err = s.Score(ctx, policies.Cycle{}, pod, fleet, make([]uint8, 1), make([]int64, 1))
		default:
			_, _, err = s.Admit(ctx, policies.Cycle{}, point, request)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// seed is an endless reader of the bytes that a number makes (SplitMix64).
type seed struct{ state uint64 }

func newSeed(s uint64) *seed { return &seed{s} }

func (s *seed) Read(b []byte) (int, error) {
	for i := range b {
		s.state += 0x9e3779b97f4a7c15
		z := s.state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		b[i] = byte(z ^ z>>31)
	}
	return len(b), nil
}
