package rego

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	corev1 "k8s.io/api/core/v1"

	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// shapesKept is how many shapes of pods a program remembers.
const shapesKept = 64

// nodeInput is a node as input, made once for each version of the node and for
// each change of what is requested of it.
type nodeInput struct {
	node      *corev1.Node
	term      *ast.Term
	use       []int64 // that requested says
	requested *ast.Term
	only      *ast.Term // {"node": term, "requested": requested}
}

// shape is what is known for all pods that look the same to the policy.
type shape struct {
	mu       sync.Mutex
	partials map[string]*partial      // by rule; nil where there is none to be had
	spent    map[string]time.Duration // by rule, on asking the whole of it
	answers  map[string][]cell        // by rule and row
}

// cell is the answer of a rule about one version of a node.
type cell struct {
	node  *corev1.Node
	value any
}

// inputs returns the nodes of the fleet as input, by row.
func (p *program) inputs(fleet *abi.Fleet) ([]nodeInput, error) {
	nodes := fleet.Nodes
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.nodes) != len(nodes) {
		p.nodes = append(p.nodes[:min(len(p.nodes), len(nodes))], make([]nodeInput, max(0, len(nodes)-len(p.nodes)))...)
	}
	asksUse := p.usage == nil || p.usage.requested
	names := slices.Sorted(maps.Keys(fleet.ExtendedRequested))
	if !slices.Equal(names, p.extended) {
		p.extended = names
		clear(p.nodes)
	}
	var use []int64
	for i, node := range nodes {
		if node == nil {
			p.nodes[i] = nodeInput{}
			continue
		}
		n := &p.nodes[i]
		same := n.node == node
		if !same {
			v, err := toValue(node)
			if err != nil {
				return nil, fmt.Errorf("encode node %s: %w", node.Name, err)
			}
			*n = nodeInput{node: node, term: ast.NewTerm(v)}
		}
		if !asksUse {
			if !same {
				n.only = ast.NewTerm(ast.NewObject([2]*ast.Term{nodeKey, n.term}))
			}
			continue
		}
		if use = useOf(use[:0], fleet, names, i); !same || !slices.Equal(use, n.use) {
			n.use, n.requested = slices.Clone(use), requested(names, use)
			n.only = ast.NewTerm(ast.NewObject([2]*ast.Term{nodeKey, n.term}, [2]*ast.Term{requestedKey, n.requested}))
		}
	}
	return slices.Clone(p.nodes), nil
}

var (
	podKey        = ast.StringTerm("pod")
	nodeKey       = ast.StringTerm("node")
	nodesKey      = ast.StringTerm("nodes")
	requestedKey  = ast.StringTerm("requested")
	parametersKey = ast.StringTerm("parameters")
)

var requestedKeys = [...]*ast.Term{
	ast.StringTerm("cpu"), ast.StringTerm("memory"), ast.StringTerm("ephemeral-storage"), ast.StringTerm("pods"),
}

// useOf appends what the pods on a node request: cpu in thousandths, memory and
// ephemeral-storage in bytes, pods, and the extended resources of those names.
func useOf(out []int64, fleet *abi.Fleet, names []corev1.ResourceName, row int) []int64 {
	r := &fleet.Requested
	at := func(column []int64) {
		if row < len(column) {
			out = append(out, column[row])
		} else {
			out = append(out, 0)
		}
	}
	for _, column := range [...][]int64{r.MilliCPU, r.Memory, r.EphemeralStorage, r.Pods} {
		at(column)
	}
	for _, name := range names {
		at(fleet.ExtendedRequested[name])
	}
	return out
}

// requested is a use as input.
func requested(names []corev1.ResourceName, use []int64) *ast.Term {
	terms := make([][2]*ast.Term, 0, len(use))
	for i, n := range use {
		var key *ast.Term
		if i < len(requestedKeys) {
			key = requestedKeys[i]
		} else {
			key = ast.StringTerm(string(names[i-len(requestedKeys)]))
		}
		terms = append(terms, [2]*ast.Term{key, ast.InternedTerm(n)})
	}
	return ast.NewTerm(ast.NewObject(terms...))
}

// podTerm is the pod as input, made once for the calls about it.
func (s *session) podTerm(pod *corev1.Pod) (*ast.Term, error) {
	if s.pod != pod || s.podValue == nil {
		v, err := toValue(pod)
		if err != nil {
			return nil, fmt.Errorf("encode pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
		s.pod, s.podValue = pod, ast.NewTerm(v)
	}
	return s.podValue, nil
}

// shapeOf a pod, remembered or new.
func (p *program) shapeOf(pod *ast.Term) *shape {
	key := p.usage.shapeKey(pod.Value)
	if s, ok := p.shapes.Get(key); ok {
		return s.(*shape)
	}
	s := &shape{partials: map[string]*partial{}, spent: map[string]time.Duration{}, answers: map[string][]cell{}}
	p.shapes.Add(key, s)
	return s
}

// eachNode calls f with the value of a rule for every row that holds a node and
// that want accepts.
func (s *session) eachNode(ctx context.Context, rule string, c policies.Cycle, pod *corev1.Pod, fleet *abi.Fleet,
	want func(row int) bool, f func(row int, value any) error) error {
	podTerm, err := s.podTerm(pod)
	if err != nil {
		return err
	}
	if s.module != nil {
		return s.eachCompiled(ctx, rule, podTerm, fleet, want, f)
	}
	nodes, err := s.inputs(fleet)
	if err != nil {
		return err
	}
	known := s.shapeOf(podTerm)
	known.mu.Lock()
	defer known.mu.Unlock()
	answers := known.answers[rule]
	if len(answers) < len(nodes) {
		answers = append(answers, make([]cell, len(nodes)-len(answers))...)
		known.answers[rule] = answers
	}
	remember := !s.usage.nondeterministic && !s.usage.requested
	var missing []int
	for row := range nodes {
		if nodes[row].node != nil && want(row) && !(remember && answers[row].node == nodes[row].node) {
			missing = append(missing, row)
		}
	}
	if err := s.answer(ctx, rule, c, podTerm, known, missing, nodes); err != nil {
		return err
	}
	for row := range nodes {
		if nodes[row].node == nil || !want(row) {
			continue
		}
		if err := f(row, answers[row].value); err != nil {
			return err
		}
	}
	return nil
}

// asking is about the nodes of one call.
type asking struct {
	*session
	rule    string
	cycle   policies.Cycle
	pod     *ast.Term
	nodes   []nodeInput
	answers []cell
}

// answer fills the rows of known.answers.
func (s *session) answer(ctx context.Context, rule string, c policies.Cycle, pod *ast.Term, known *shape, rows []int, nodes []nodeInput) error {
	a := &asking{s, rule, c, pod, nodes, known.answers[rule]}
	if _, tried := known.partials[rule]; !tried && len(rows) >= partialFrom {
		first := sample{rows: rows[:partialFrom], rest: len(rows) - partialFrom}
		rows = rows[partialFrom:]
		var err error
		if first.took, err = a.timed(ctx, nil, first.rows); err != nil {
			return err
		}
		if err := s.partialOf(ctx, rule, known, pod, c, a, first); err != nil {
			return err
		}
	}
	left := known.partials[rule]
	began := time.Now()
	if err := a.ask(ctx, left, rows); err != nil {
		return err
	}
	if left == nil {
		known.spent[rule] += time.Since(began)
	}
	return nil
}

// timed asks about rows in two halves and returns what a row took in the faster.
func (a *asking) timed(ctx context.Context, left *partial, rows []int) (least time.Duration, err error) {
	half := len(rows) / 2
	for i, part := range [][]int{rows[:half], rows[half:]} {
		began := time.Now()
		if err := a.ask(ctx, left, part); err != nil {
			return 0, err
		}
		if took := time.Since(began) / time.Duration(len(part)); i == 0 || took < least {
			least = took
		}
	}
	return least, nil
}

// ask about rows what was left for the pod, or the whole rule when left is nil.
func (a *asking) ask(ctx context.Context, left *partial, rows []int) error {
	inputs := make([]*ast.Term, len(rows))
	for i, row := range rows {
		inputs[i] = a.input(row, left == nil || left.whole)
		a.answers[row] = cell{}
	}
	e := a.queries[a.rule].each
	if left != nil {
		e = left.each
	}
	if err := a.session.ask(ctx, e, a.rule, a.cycle, inputs, func(i int, value any) error {
		a.answers[rows[i]].value = value
		return nil
	}); err != nil {
		return err
	}
	for _, row := range rows {
		a.answers[row].node = a.nodes[row].node // from now on it is remembered
	}
	return nil
}

// input about a row; whole: with the pod and the parameters.
func (a *asking) input(row int, whole bool) *ast.Term {
	node := &a.nodes[row]
	if !whole {
		return node.only
	}
	terms := append(make([][2]*ast.Term, 0, 4), [2]*ast.Term{nodeKey, node.term}, [2]*ast.Term{podKey, a.pod}, [2]*ast.Term{parametersKey, ast.NewTerm(a.parameters)})
	if a.usage.requested {
		terms = append(terms, [2]*ast.Term{requestedKey, node.requested})
	}
	return ast.NewTerm(ast.NewObject(terms...))
}

// allNodes returns the value of a rule about all nodes, an object by name.
func (s *session) allNodes(ctx context.Context, rule string, c policies.Cycle, pod *corev1.Pod, fleet *abi.Fleet) (map[string]any, error) {
	podTerm, err := s.podTerm(pod)
	if err != nil {
		return nil, err
	}
	nodes, err := s.inputs(fleet)
	if err != nil {
		return nil, err
	}
	byName, requests := make([][2]*ast.Term, 0, len(nodes)), [][2]*ast.Term{}
	for row := range nodes {
		if nodes[row].node == nil {
			continue
		}
		name := ast.StringTerm(nodes[row].node.Name)
		byName = append(byName, [2]*ast.Term{name, nodes[row].term})
		if s.usage == nil || s.usage.requested {
			requests = append(requests, [2]*ast.Term{name, nodes[row].requested})
		}
	}
	input := ast.NewObject(
		[2]*ast.Term{podKey, podTerm}, [2]*ast.Term{nodesKey, ast.NewTerm(ast.NewObject(byName...))},
		[2]*ast.Term{requestedKey, ast.NewTerm(ast.NewObject(requests...))}, [2]*ast.Term{parametersKey, ast.NewTerm(s.parameters)})
	value, err := s.eval(ctx, rule, c, input)
	if err != nil || value == nil {
		return nil, err
	}
	object, ok := value.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s: %w: %T is no object by name of node", rule, policies.ErrResult, value)
	}
	return object, nil
}

// Filter implements policies.Session.
func (s *session) Filter(ctx context.Context, c policies.Cycle, pod *corev1.Pod, fleet *abi.Fleet, verdicts []uint8) (policies.Cost, error) {
	s.reasons = map[int]string{}
	out := make([]uint8, fleet.Len())
	refuse := func(row int, value any) error {
		texts, err := messages("filter", value)
		if len(texts) > 0 {
			out[row] = 1
			s.reasons[row] = strings.Join(texts, ", ")
		}
		return err
	}
	cost, err := s.timed(ctx, c, s.fleetDeadline, func(ctx context.Context) error {
		if !s.has("filters") {
			return s.eachNode(ctx, "filter", c, pod, fleet, func(int) bool { return true }, refuse)
		}
		byName, err := s.allNodes(ctx, "filters", c, pod, fleet)
		if err != nil {
			return err
		}
		for row, node := range fleet.Nodes {
			if node == nil {
				continue
			}
			if value, ok := byName[node.Name]; ok {
				if err := refuse(row, value); err != nil {
					return err
				}
			}
		}
		return nil
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
	rate := func(row int, value any) (err error) {
		out[row], err = score(value)
		return err
	}
	passes := func(row int) bool { return verdicts[row] == 0 }
	cost, err := s.timed(ctx, c, s.fleetDeadline, func(ctx context.Context) error {
		if !s.has("scores") {
			return s.eachNode(ctx, "score", c, pod, fleet, passes, rate)
		}
		byName, err := s.allNodes(ctx, "scores", c, pod, fleet)
		if err != nil {
			return err
		}
		for row, node := range fleet.Nodes {
			if node == nil || !passes(row) {
				continue
			}
			if err := rate(row, byName[node.Name]); err != nil {
				return fmt.Errorf("node %s: %w", node.Name, err)
			}
		}
		return nil
	})
	if err != nil {
		return cost, err
	}
	for row, node := range fleet.Nodes {
		if node != nil && passes(row) {
			scores[row] = out[row]
		}
	}
	return cost, nil
}

// score of a rule's value; undefined rates 0.
func score(value any) (int64, error) {
	if value == nil {
		return 0, nil
	}
	number, ok := value.(json.Number)
	if !ok {
		return 0, fmt.Errorf("score: %w: %T is no number", policies.ErrResult, value)
	}
	v, err := number.Float64()
	if err != nil || !(v >= 0 && v <= 100) {
		return 0, fmt.Errorf("score: %w: %s is not within 0 to 100", policies.ErrResult, number)
	}
	return int64(v), nil
}
