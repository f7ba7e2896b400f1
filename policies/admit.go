package policies

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
)

// Matches implements Admission.
func (h *Host) Matches(point policyv1alpha1.ExtensionPoint, group, resource, subresource string, operation admissionv1.Operation) bool {
	for _, g := range h.table.Load().admission {
		if g.offers(point) && g.match.resource(group, resource, subresource, operation) {
			return true
		}
	}
	return false
}

// Admit implements Admission. A refusal's message names the policy.
func (h *Host) Admit(ctx context.Context, point policyv1alpha1.ExtensionPoint, request *admissionv1.AdmissionRequest, namespace *corev1.Namespace) (*admissionv1.AdmissionResponse, []Provenance) {
	answer := &admissionv1.AdmissionResponse{UID: request.UID, Allowed: true}
	var used []Provenance
	current := *request
	memo := &Memo{}
	ctx = context.WithValue(ctx, memoKey{}, memo)
	var operations []json.RawMessage
	for _, listed := range h.table.Load().admission {
		// the table may be replaced meanwhile: take what is in force now
		g := h.acquire(listed.name)
		if g == nil {
			continue
		}
		if !g.offers(point) || !g.match.resource(request.Resource.Group, request.Resource.Resource, request.SubResource, request.Operation) ||
			!g.match.request(&current, namespace) {
			g.release()
			continue
		}
		used = append(used, g.provenance())
		response, err := g.admit(ctx, point, &current)
		if err == nil && !g.shadow() && point == policyv1alpha1.ExtensionMutate && response.Allowed && len(response.Patch) > 0 {
			operations, err = applyPatch(&current, response.Patch, operations)
			memo.made = nil
			if err != nil {
				err = fmt.Errorf("policy %q: patch: %w: %w", g.name, ErrResult, err)
				g.failed(err)
			}
		}
		ignore := g.failurePolicy(point) == policyv1alpha1.FailurePolicyIgnore
		name := g.name
		would := ""
		if g.shadow() && err == nil {
			would = g.wouldAnswer(point, response)
		}
		shadow := g.shadow()
		g.release()
		if shadow {
			if would != "" {
				annotate(answer, name+"/shadow", would)
			}
			continue
		}
		switch {
		case err != nil && ignore:
			answer.Warnings = append(answer.Warnings, err.Error()+": ignored, as its failure policy says")
			continue
		case err != nil:
			answer.Allowed = false
			answer.Result = &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError,
				Reason: metav1.StatusReasonInternalError, Message: fmt.Sprintf("failed calling %v", err)}
			return answer, used
		}
		answer.Warnings = append(answer.Warnings, response.Warnings...)
		for key, value := range response.AuditAnnotations {
			annotate(answer, name+"/"+key, value)
		}
		if !response.Allowed {
			answer.Allowed = false
			answer.Result = refusal(name, response.Result)
			return answer, used
		}
	}
	if len(operations) > 0 {
		patch, err := json.Marshal(operations)
		if err != nil { // each operation was JSON when it was applied
			answer.Allowed = false
			answer.Result = &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError,
				Reason: metav1.StatusReasonInternalError, Message: fmt.Sprintf("encode patch: %v", err)}
			return answer, used
		}
		kind := admissionv1.PatchTypeJSONPatch
		answer.Patch, answer.PatchType = patch, &kind
	}
	return answer, used
}

func (g *generation) admit(ctx context.Context, point policyv1alpha1.ExtensionPoint, request *admissionv1.AdmissionRequest) (response *admissionv1.AdmissionResponse, err error) {
	session := g.program.Session()
	defer session.Close()
	cycle := g.reads(Cycle{Time: g.host.options.Clock.Now().Truncate(time.Microsecond), Seed: decisionSeed(0, string(request.UID))})
	if cycle.Reads != nil {
		cycle.Revision = cycle.Reads.Revision()
	}
	_, err = g.call(ctx, point, func() (cost Cost, err error) {
		response, cost, err = session.Admit(ctx, cycle, point, request)
		return cost, err
	})
	if err == nil && g.sampled() {
		g.admitAgain(ctx, session, cycle, point, request, response)
	}
	return response, err
}

func annotate(answer *admissionv1.AdmissionResponse, key, value string) {
	if answer.AuditAnnotations == nil {
		answer.AuditAnnotations = map[string]string{}
	}
	answer.AuditAnnotations[key] = value
}

// applyPatch applies an RFC 6902 patch to the request's object and appends its
// operations.
func applyPatch(request *admissionv1.AdmissionRequest, patch []byte, operations []json.RawMessage) ([]json.RawMessage, error) {
	decoded, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		return operations, err
	}
	if len(decoded) == 0 {
		return operations, nil
	}
	object, err := decoded.Apply(request.Object.Raw)
	if err != nil {
		return operations, err
	}
	var list []json.RawMessage
	if err := json.Unmarshal(patch, &list); err != nil {
		return operations, err
	}
	request.Object.Raw = object
	request.Object.Object = nil
	return append(operations, list...), nil
}

// refusal has the shape of upstream's for a webhook.
func refusal(policy string, result *metav1.Status) *metav1.Status {
	out := &metav1.Status{}
	if result != nil {
		out = result.DeepCopy()
	}
	prefix := fmt.Sprintf("policy %q denied the request", policy)
	switch {
	case out.Message != "":
		out.Message = prefix + ": " + out.Message
	case out.Reason != "":
		out.Message = prefix + ": " + string(out.Reason)
	default:
		out.Message = prefix + " without explanation"
	}
	out.Status = metav1.StatusFailure
	if out.Code < http.StatusBadRequest {
		out.Code = http.StatusForbidden
	}
	if out.Reason == "" && out.Code == http.StatusForbidden {
		out.Reason = metav1.StatusReasonForbidden
	}
	return out
}
