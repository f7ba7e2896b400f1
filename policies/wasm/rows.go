package wasm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/tetratelabs/wazero/api"
	corev1 "k8s.io/api/core/v1"

	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// The row tier: one call for each node, which the guest gets as protobuf.

// encodedNode is a node as guests get it, made once for each version of the node.
type encodedNode struct {
	node *corev1.Node
	data []byte
}

// message is an API object with a protobuf form of its own.
type message interface{ Marshal() ([]byte, error) }

// encode makes what the guest is handed of an object. Kinds that have no
// protobuf are JSON for every guest.
func (p *program) encode(object any) ([]byte, error) {
	if m, ok := object.(message); ok && p.manifest.Encoding != abi.EncodingJSON {
		return m.Marshal()
	}
	return json.Marshal(object)
}

// encoded returns the nodes by row, nil for those that are vacant, and the
// length of the longest.
func (p *program) encoded(nodes []*corev1.Node) (out [][]byte, longest int, err error) {
	p.nodesMu.Lock()
	defer p.nodesMu.Unlock()
	if n := len(nodes); n < len(p.nodes) {
		clear(p.nodes[n:])
		p.nodes = p.nodes[:n]
	} else {
		p.nodes = append(p.nodes, make([]encodedNode, n-len(p.nodes))...)
	}
	out = make([][]byte, len(nodes))
	for i, node := range nodes {
		switch {
		case node == nil:
			p.nodes[i] = encodedNode{}
		case p.nodes[i].node != node:
			data, err := p.encode(node)
			if err != nil {
				return nil, 0, fmt.Errorf("encode node %s: %w", node.Name, err)
			}
			p.nodes[i] = encodedNode{node, data}
		}
		out[i] = p.nodes[i].data
		longest = max(longest, len(out[i]))
	}
	return out, longest, nil
}

// budget of all calls for one pod together.
type budget struct {
	fuel int64
	end  time.Time
}

func (in *instance) budget() *budget {
	deadline := in.program.limits.deadline
	if in.testing {
		deadline = max(selfTestDeadline, deadline)
	}
	return &budget{in.program.limits.fuel, time.Now().Add(deadline)}
}

func (in *instance) callWithin(ctx context.Context, b *budget, name string, f api.Function) error {
	spent := in.spent
	err := in.callWith(ctx, name, f, b.fuel, time.Until(b.end))
	b.fuel = max(0, b.fuel-(in.spent-spent))
	if errors.Is(err, policies.ErrFuel) {
		return fmt.Errorf("%s: %w: used %d for all nodes", name, policies.ErrFuel, in.program.limits.fuel)
	}
	return err
}

// put copies data into a block.
func (in *instance) put(ctx context.Context, b *block, data []byte) error {
	if err := in.reserve(ctx, b, uint32(len(data))); err != nil {
		return err
	}
	view, err := in.bytes(*b, uint32(len(data)))
	if err != nil {
		return err
	}
	copy(view, data)
	return nil
}

// eachRow calls f for the rows that hold a node and that want accepts; answer
// gets the results on the stack.
func (in *instance) eachRow(ctx context.Context, name string, f api.Function, pod *corev1.Pod, fleet *abi.Fleet, again bool,
	want func(row int) bool, answer func(row int, result uint64) error) error {
	in.symbols = fleet.Symbols
	nodes, longest, err := in.program.encoded(fleet.Nodes)
	if err != nil {
		return err
	}
	if err := in.reserve(ctx, &in.nodeRow, uint32(longest)); err != nil {
		return err
	}
	b := in.budget()
	if again || in.prefiltered != pod {
		in.prefiltered = nil
		data, err := in.program.encode(pod)
		if err != nil {
			return fmt.Errorf("encode pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
		if err := in.put(ctx, &in.podRow, data); err != nil {
			return err
		}
		in.podSize = uint32(len(data))
		if in.prefilter != nil {
			in.stack = [4]uint64{uint64(in.podRow.at), uint64(in.podSize)}
			if err := in.callWithin(ctx, b, "prefilter", in.prefilter); err != nil {
				return err
			}
			if err := in.status("prefilter"); err != nil {
				return err
			}
		}
		in.prefiltered = pod
	}
	defer func() { in.row = -1 }()
	for row, data := range nodes {
		if fleet.Nodes[row] == nil || !want(row) {
			continue
		}
		if err := in.put(ctx, &in.nodeRow, data); err != nil {
			return err
		}
		in.row = row
		in.stack = [4]uint64{uint64(in.podRow.at), uint64(in.podSize), uint64(in.nodeRow.at), uint64(len(data))}
		if err := in.callWithin(ctx, b, name, f); err != nil {
			return err
		}
		if err := answer(row, in.stack[0]); err != nil {
			return err
		}
	}
	return nil
}

// eachFilter sets the verdicts of all rows, or none.
func (in *instance) eachFilter(ctx context.Context, pod *corev1.Pod, fleet *abi.Fleet, verdicts []uint8) error {
	out := make([]uint8, fleet.Len())
	err := in.eachRow(ctx, "filter", in.filterRow, pod, fleet, true, func(int) bool { return true }, func(row int, result uint64) error {
		v := int32(result)
		if v < 0 || v > abi.MaxReasons && v != verdictUnresolvable {
			return fmt.Errorf("filter: %w: verdict %d of row %d is reserved%s", policies.ErrResult, v, row, in.because())
		}
		out[row] = uint8(v)
		return nil
	})
	if err != nil {
		return err
	}
	for row, node := range fleet.Nodes {
		if node != nil {
			verdicts[row] = out[row]
		}
	}
	return nil
}

// eachScore writes the scores of the rows that pass into the guest's memory.
func (in *instance) eachScore(ctx context.Context, pod *corev1.Pod, fleet *abi.Fleet, verdicts []uint8) error {
	scores := make([]uint32, fleet.Len())
	passes := func(row int) bool { return verdicts[row] == verdictPasses }
	err := in.eachRow(ctx, "score", in.scoreRow, pod, fleet, false, passes, func(row int, result uint64) error {
		if code := int32(result); code != 0 {
			return fmt.Errorf("score: %w: code %d%s", policies.ErrResult, code, in.because())
		}
		scores[row] = uint32(result >> 32)
		return nil
	})
	if err != nil {
		return err
	}
	view, err := in.bytes(in.scores, 4*uint32(fleet.Len()))
	if err != nil {
		return err
	}
	for row, score := range scores {
		if fleet.Nodes[row] != nil && passes(row) {
			le.PutUint32(view[4*row:], score)
		}
	}
	return nil
}

// because is the text that the guest gave for a failure.
func (in *instance) because() string {
	if in.errorText == "" {
		return ""
	}
	return ": " + in.errorText
}
