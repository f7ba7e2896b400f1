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
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// program is one compiled module with one configuration.
type program struct {
	policy                  string
	deadline, fleetDeadline time.Duration
	points                  []policyv1alpha1.ExtensionPoint
	queries                 map[string]rego.PreparedEvalQuery
	parameters              ast.Value

	mu    sync.Mutex
	nodes []nodeInput // by row of the fleet seen last
}

// nodeInput is a node as input, made once for each version of the node.
type nodeInput struct {
	node *corev1.Node
	term *ast.Term
}

// Points implements policies.Program.
func (p *program) Points() []policyv1alpha1.ExtensionPoint { return p.points }

// Static implements policies.Program: a policy sees whole nodes, status included.
func (p *program) Static() bool { return false }

// Session implements policies.Program.
func (p *program) Session() policies.Session { return &session{program: p} }

// Close implements policies.Program.
func (p *program) Close() error { return nil }

type session struct {
	*program
	reasons map[int]string
}

// Close implements policies.Session.
func (s *session) Close() {}

// eval returns the value of a rule, nil when it is undefined.
func (p *program) eval(ctx context.Context, rule string, c policies.Cycle, input ast.Value) (any, error) {
	results, err := p.queries[rule].Eval(ctx, rego.EvalParsedInput(input), rego.EvalTime(c.Time), rego.EvalSeed(newSeed(c.Seed)))
	if err != nil {
		if topdown.IsCancel(err) || errors.Is(err, context.DeadlineExceeded) {
			return nil, fmt.Errorf("%s: %w", rule, policies.ErrDeadline)
		}
		return nil, fmt.Errorf("%s: %w: %w", rule, policies.ErrTrap, oneLine(err))
	}
	if len(results) == 0 || len(results[0].Expressions) == 0 {
		return nil, nil
	}
	return results[0].Expressions[0].Value, nil
}

// timed bounds f by the deadline; when the caller's context ended, that is the error.
func timed(ctx context.Context, deadline time.Duration, f func(context.Context) error) (policies.Cost, error) {
	began := time.Now()
	bounded, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	err := f(bounded)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return policies.Cost{Wall: time.Since(began)}, err
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

func (p *program) messages(ctx context.Context, rule string, c policies.Cycle, input ast.Value) ([]string, error) {
	if _, ok := p.queries[rule]; !ok {
		return nil, nil
	}
	value, err := p.eval(ctx, rule, c, input)
	if err != nil {
		return nil, err
	}
	return messages(rule, value)
}

// Admit implements policies.Session.
func (s *session) Admit(ctx context.Context, c policies.Cycle, point policyv1alpha1.ExtensionPoint, request *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, policies.Cost, error) {
	answer := &admissionv1.AdmissionResponse{UID: request.UID, Allowed: true}
	cost, err := timed(ctx, s.deadline, func(ctx context.Context) error {
		review, err := toValue(request)
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

// inputs returns the nodes of the fleet as input terms, by row.
func (p *program) inputs(nodes []*corev1.Node) ([]*ast.Term, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.nodes) != len(nodes) {
		p.nodes = append(p.nodes[:min(len(p.nodes), len(nodes))], make([]nodeInput, max(0, len(nodes)-len(p.nodes)))...)
	}
	out := make([]*ast.Term, len(nodes))
	for i, node := range nodes {
		if node != nil && p.nodes[i].node != node {
			v, err := toValue(node)
			if err != nil {
				return nil, fmt.Errorf("encode node %s: %w", node.Name, err)
			}
			p.nodes[i] = nodeInput{node, ast.NewTerm(v)}
		}
		out[i] = p.nodes[i].term
	}
	return out, nil
}

// eachNode evaluates a rule for every row that holds a node.
func (s *session) eachNode(ctx context.Context, rule string, c policies.Cycle, pod *corev1.Pod, fleet *abi.Fleet, f func(row int, value any) error) (policies.Cost, error) {
	if _, ok := s.queries[rule]; !ok {
		return policies.Cost{}, fmt.Errorf("the module has no rule %s", rule)
	}
	return timed(ctx, s.fleetDeadline, func(ctx context.Context) error {
		nodes, err := s.inputs(fleet.Nodes)
		if err != nil {
			return err
		}
		podValue, err := toValue(pod)
		if err != nil {
			return fmt.Errorf("encode pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
		podTerm, parameters := ast.NewTerm(podValue), ast.NewTerm(s.parameters)
		for row, node := range nodes {
			if fleet.Nodes[row] == nil {
				continue
			}
			value, err := s.eval(ctx, rule, c, ast.NewObject(
				[2]*ast.Term{ast.StringTerm("pod"), podTerm},
				[2]*ast.Term{ast.StringTerm("node"), node},
				[2]*ast.Term{ast.StringTerm("parameters"), parameters},
			))
			if err == nil {
				err = f(row, value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// Filter implements policies.Session.
func (s *session) Filter(ctx context.Context, c policies.Cycle, pod *corev1.Pod, fleet *abi.Fleet, verdicts []uint8) (policies.Cost, error) {
	s.reasons = map[int]string{}
	out := make([]uint8, fleet.Len())
	cost, err := s.eachNode(ctx, "filter", c, pod, fleet, func(row int, value any) error {
		texts, err := messages("filter", value)
		if len(texts) > 0 {
			out[row] = 1
			s.reasons[row] = strings.Join(texts, ", ")
		}
		return err
	})
	if err != nil {
		return cost, err
	}
	for row, node := range fleet.Nodes {
		if node != nil {
			verdicts[row] = out[row]
		}
	}
	return cost, nil
}

// Reason implements policies.Session.
func (s *session) Reason(row int, _ uint8) string { return s.reasons[row] }

// Score implements policies.Session.
func (s *session) Score(ctx context.Context, c policies.Cycle, pod *corev1.Pod, fleet *abi.Fleet, verdicts []uint8, scores []int64) (policies.Cost, error) {
	out := make([]int64, fleet.Len())
	cost, err := s.eachNode(ctx, "score", c, pod, fleet, func(row int, value any) error {
		if value == nil {
			return nil // undefined rates 0
		}
		number, ok := value.(json.Number)
		if !ok {
			return fmt.Errorf("score: %w: %T is no number", policies.ErrResult, value)
		}
		v, err := number.Float64()
		if err != nil || !(v >= 0 && v <= 100) {
			return fmt.Errorf("score: %w: %s is not within 0 to 100", policies.ErrResult, number)
		}
		out[row] = int64(v)
		return nil
	})
	if err != nil {
		return cost, err
	}
	for row, node := range fleet.Nodes {
		if node != nil && verdicts[row] == 0 {
			scores[row] = out[row]
		}
	}
	return cost, nil
}

// selfTest runs every rule once on an empty request or a bare pod and node:
// what it answers does not matter, that it answers in time does.
func (p *program) selfTest(ctx context.Context) error {
	s := &session{program: &program{
		policy: p.policy, points: p.points, queries: p.queries, parameters: p.parameters,
		deadline: max(p.deadline, selfTestDeadline), fleetDeadline: max(p.fleetDeadline, selfTestDeadline),
	}}
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
	for _, point := range p.points {
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
