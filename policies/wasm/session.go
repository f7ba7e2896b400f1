package wasm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// Verdicts with a meaning of their own.
const (
	verdictPasses       = 0
	verdictUnresolvable = 250 // refuses; evicting pods would not help
	verdictSkip         = 255 // what the host writes for vacant rows
	noScore             = -1
)

// session holds one instance from its first call to Close, so that the globals
// of a guest live from the filter to the score of a pod.
type session struct {
	program  *program
	instance *instance
}

// run makes one call on the session's instance; one that fails is discarded.
func (s *session) run(ctx context.Context, c policies.Cycle, f func(in *instance) error) (cost policies.Cost, err error) {
	began := time.Now()
	if s.instance == nil {
		if s.instance, err = s.program.take(ctx); err != nil {
			return cost, err
		}
	}
	in := s.instance
	in.begin(c)
	err = f(in)
	cost = policies.Cost{Fuel: in.spent, Wall: time.Since(began)}
	in.account(int64(in.module.Memory().Size()))
	if err != nil {
		s.program.discard(in)
		s.instance = nil
	}
	return cost, err
}

// Close implements policies.Session.
func (s *session) Close() {
	if s.instance != nil {
		s.program.give(s.instance)
		s.instance = nil
	}
}

// prepare writes the pod and the fleet, unless rows are served one by one, and
// makes room for verdicts and scores.
func (in *instance) prepare(ctx context.Context, pod *corev1.Pod, fleet *abi.Fleet, rows bool) error {
	in.symbols = fleet.Symbols
	n := uint32(fleet.Len())
	if err := in.reserve(ctx, &in.verdicts, n); err != nil {
		return err
	}
	if err := in.reserve(ctx, &in.scores, 4*n); err != nil {
		return err
	}
	if rows {
		return nil
	}
	if in.snapshot == nil {
		in.snapshot = abi.NewSnapshot(in.program.columns, fleet)
	}
	for {
		if in.snapshotAt == 0 {
			var b block
			if err := in.reserve(ctx, &b, in.snapshot.Size()); err != nil {
				return err
			}
			in.snapshotAt = b.at
		}
		mem, err := in.bytes(block{at: in.snapshotAt}, in.snapshot.Size())
		if err != nil {
			return err
		}
		if in.snapshot.Write(mem, fleet) {
			break
		}
		in.snapshot, in.snapshotAt = in.snapshot.Grown(fleet), 0
	}
	if in.recordOf == any(pod) && in.recordSymbols == fleet.Symbols && in.recordSymbolsLength == fleet.Symbols.Len() {
		return nil
	}
	in.recordOf = nil
	var err error
	if in.record, err = abi.AppendPod(in.record, pod, fleet.Symbols, in.program.manifest.RawPod); err != nil {
		return err
	}
	if err := in.reserve(ctx, &in.pod, uint32(len(in.record))); err != nil {
		return err
	}
	view, err := in.bytes(in.pod, uint32(len(in.record)))
	if err != nil {
		return err
	}
	copy(view, in.record)
	in.recordOf, in.recordSymbols, in.recordSymbolsLength = pod, fleet.Symbols, fleet.Symbols.Len()
	return nil
}

// Filter implements policies.Session.
func (s *session) Filter(ctx context.Context, c policies.Cycle, pod *corev1.Pod, fleet *abi.Fleet, verdicts []uint8) (policies.Cost, error) {
	return s.run(ctx, c, func(in *instance) error {
		clear(in.reasons)
		if s.program.filterRows {
			return in.eachFilter(ctx, pod, fleet, verdicts)
		}
		if in.filter == nil {
			return errors.New("the module has no filter_batch")
		}
		if err := in.prepare(ctx, pod, fleet, false); err != nil {
			return err
		}
		n := uint32(fleet.Len())
		view, err := in.bytes(in.verdicts, n)
		if err != nil {
			return err
		}
		for i, node := range fleet.Nodes {
			view[i] = verdictPasses
			if node == nil {
				view[i] = verdictSkip
			}
		}
		in.stack = [4]uint64{uint64(in.pod.at), uint64(in.snapshotAt), uint64(in.verdicts.at)}
		if err := in.call(ctx, "filter_batch", in.filter); err != nil {
			return err
		}
		if err := in.status("filter_batch"); err != nil {
			return err
		}
		if view, err = in.bytes(in.verdicts, n); err != nil {
			return err
		}
		for i, node := range fleet.Nodes {
			if node == nil {
				continue
			}
			if v := view[i]; v > abi.MaxReasons && v != verdictUnresolvable {
				return fmt.Errorf("filter_batch: %w: verdict %d of row %d is reserved", policies.ErrResult, v, i)
			}
		}
		for i, node := range fleet.Nodes {
			if node != nil {
				verdicts[i] = view[i]
			}
		}
		return nil
	})
}

// Reason implements policies.Session.
func (s *session) Reason(row int, verdict uint8) string {
	if s.instance != nil {
		if text := s.instance.reasons[row]; text != "" {
			return text
		}
	}
	if i := int(verdict) - 1; i >= 0 && i < len(s.program.manifest.Reasons) {
		return s.program.manifest.Reasons[i]
	}
	return ""
}

// Score implements policies.Session.
func (s *session) Score(ctx context.Context, c policies.Cycle, pod *corev1.Pod, fleet *abi.Fleet, verdicts []uint8, scores []int64) (policies.Cost, error) {
	return s.run(ctx, c, func(in *instance) error {
		rows := s.program.scoreRows
		if in.score == nil && !rows {
			return errors.New("the module has no score_batch")
		}
		if err := in.prepare(ctx, pod, fleet, rows); err != nil {
			return err
		}
		n := uint32(fleet.Len())
		view, err := in.bytes(in.verdicts, n)
		if err != nil {
			return err
		}
		out, err := in.bytes(in.scores, 4*n)
		if err != nil {
			return err
		}
		for i, node := range fleet.Nodes {
			view[i] = verdicts[i]
			first := uint32(0)
			if node == nil {
				view[i] = verdictSkip
			}
			if view[i] != verdictPasses {
				first = ^uint32(0) // -1
			}
			le.PutUint32(out[4*i:], first)
		}
		in.stack = [4]uint64{uint64(in.pod.at), uint64(in.snapshotAt), uint64(in.verdicts.at), uint64(in.scores.at)}
		if rows {
			err = in.eachScore(ctx, pod, fleet, verdicts)
		} else if err = in.call(ctx, "score_batch", in.score); err == nil {
			err = in.status("score_batch")
		}
		if err != nil {
			return err
		}
		if in.normalize != nil {
			in.stack = [4]uint64{uint64(in.verdicts.at), uint64(in.scores.at), uint64(n)}
			if err := in.call(ctx, "normalize", in.normalize); err != nil {
				return err
			}
			if err := in.status("normalize"); err != nil {
				return err
			}
		}
		if out, err = in.bytes(in.scores, 4*n); err != nil {
			return err
		}
		rated := func(i int) bool { return fleet.Nodes[i] != nil && verdicts[i] == verdictPasses }
		for i := range int(n) {
			if v := int32(le.Uint32(out[4*i:])); rated(i) && (v < 0 || v > 100) {
				return fmt.Errorf("score: %w: score %d of row %d is not within 0 to 100", policies.ErrResult, v, i)
			}
		}
		for i := range int(n) {
			if rated(i) {
				scores[i] = int64(int32(le.Uint32(out[4*i:])))
			}
		}
		return nil
	})
}

// Admit implements policies.Session.
func (s *session) Admit(ctx context.Context, c policies.Cycle, point policyv1alpha1.ExtensionPoint, request *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, policies.Cost, error) {
	review := admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"},
		Request:  request,
	}
	data, err := json.Marshal(review)
	if err != nil {
		return nil, policies.Cost{}, fmt.Errorf("encode admission review: %w", err)
	}
	var response *admissionv1.AdmissionResponse
	cost, err := s.run(ctx, c, func(in *instance) error {
		if in.admit == nil {
			return errors.New("the module has no admit")
		}
		in.symbols = nil
		if err := in.reserve(ctx, &in.input, uint32(len(data))); err != nil {
			return err
		}
		view, err := in.bytes(in.input, uint32(len(data)))
		if err != nil {
			return err
		}
		copy(view, data)
		in.stack = [4]uint64{uint64(in.input.at), uint64(len(data))}
		if err := in.call(ctx, "admit", in.admit); err != nil {
			return err
		}
		answer, err := in.answer(in.stack[0])
		if err != nil {
			return fmt.Errorf("admit: %w", err)
		}
		response, err = decodeAdmit(answer, point)
		return err
	})
	return response, cost, err
}

// admitAnswer is what admit returns.
type admitAnswer struct {
	Allowed          bool              `json:"allowed"`
	Code             int32             `json:"code,omitempty"`
	Message          string            `json:"message,omitempty"`
	Warnings         []string          `json:"warnings,omitempty"`
	Patch            json.RawMessage   `json:"patch,omitempty"`
	AuditAnnotations map[string]string `json:"auditAnnotations,omitempty"`
}

func decodeAdmit(data []byte, point policyv1alpha1.ExtensionPoint) (*admissionv1.AdmissionResponse, error) {
	var a admitAnswer
	if err := json.Unmarshal(data, &a); err != nil {
		return nil, fmt.Errorf("admit: %w: %w", policies.ErrResult, err)
	}
	if point != policyv1alpha1.ExtensionMutate && len(a.Patch) > 0 {
		a.Patch = nil // a guest of both points answers both with one function
	}
	out := &admissionv1.AdmissionResponse{Allowed: a.Allowed, Warnings: a.Warnings, Patch: a.Patch, AuditAnnotations: a.AuditAnnotations}
	if !a.Allowed {
		out.Result = &metav1.Status{Code: a.Code, Message: a.Message}
	}
	return out, nil
}
