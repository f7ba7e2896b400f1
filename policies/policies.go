// Package policies is the seam between those who decide (the scheduler, the
// admission chain, the command line, replay) and the engines that run policies.
// It knows no engine: those register by EngineType with the Host.
package policies

import (
	"context"
	"errors"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// ErrNotLoaded is returned for a policy that has no generation in force.
var ErrNotLoaded = errors.New("policy is not loaded")

// Provenance identifies the code that took part in a decision.
type Provenance struct {
	Policy     string
	Engine     policyv1alpha1.EngineType
	Generation int64  // counts the versions put in force since the start of the engine
	Digest     string // "sha256:…" of the source
}

// Cost is what one call used. Fuel is 0 for engines that do not meter it.
type Cost struct {
	Fuel int64
	Wall time.Duration
}

// Reader is the store as policies see it.
type Reader interface {
	// Revision is the newest.
	Revision() int64
	// Get returns an object as it was at a revision, 0 for the newest, with its
	// apiVersion and kind. The namespace is "" for what has none. The error of
	// an object that is not there is apierrors.IsNotFound.
	Get(ctx context.Context, revision int64, resource schema.GroupResource, namespace, name string) (runtime.Object, error)
}

// Cycle is what a policy may depend on besides the pod and the fleet: with it,
// a call can be repeated exactly.
type Cycle struct {
	Time time.Time
	// Seed of random numbers. Pinned makes the decision's of it and of the pod, so
	// that one for all decisions is enough.
	Seed     uint64
	Revision int64
	// Reads serves the programs that may read, at Revision. nil: the host's.
	Reads Reader
}

// Scheduling is what the scheduler knows of policies.
type Scheduling interface {
	// Pin returns the generation in force of the named policy. It stays whole
	// until Release, whatever is loaded meanwhile. ErrNotLoaded when there is none.
	Pin(policy string) (Pinned, error)
	// Changed is closed when any policy next changes generation.
	Changed() <-chan struct{}
}

// Pinned is one generation of one policy, held by one caller. It is not safe
// for concurrent use; Pin again in another goroutine.
type Pinned interface {
	Provenance() Provenance
	// Points are the extension points in force.
	Points() []policyv1alpha1.ExtensionPoint
	FailurePolicy(policyv1alpha1.ExtensionPoint) policyv1alpha1.FailurePolicy
	// Static says that the verdicts and scores depend on nothing of the fleet
	// but what node label, taint and spec events change.
	Static() bool
	// Filter decides for one pod over all rows of the fleet. It sets
	// verdicts[row] to 0 (passes) or to a code whose text Reason returns.
	// len(verdicts) is fleet.Len(). Rows without a node are left alone.
	Filter(ctx context.Context, c Cycle, pod *corev1.Pod, fleet *abi.Fleet, verdicts []uint8) (Cost, error)
	// Reason is the text for a verdict of the last Filter call.
	Reason(row int, verdict uint8) string
	// Score rates, from 0 to 100, the rows whose verdict is 0; it has been
	// normalised when the policy does that. The others are left alone.
	Score(ctx context.Context, c Cycle, pod *corev1.Pod, fleet *abi.Fleet, verdicts []uint8, scores []int64) (Cost, error)
	Release()
}

// Admission is what the admission chain knows of policies.
type Admission interface {
	// Admit runs every policy in force that matches the request at the point
	// (Mutate or Validate), in order of name. For Mutate, each policy sees the
	// object as the ones before it left it, and the answer's Patch is RFC 6902
	// over the object of the request.
	Admit(ctx context.Context, point policyv1alpha1.ExtensionPoint, request *admissionv1.AdmissionRequest, namespace *corev1.Namespace) (*admissionv1.AdmissionResponse, []Provenance)
	// Matches says, cheaply, whether any policy in force may match.
	Matches(point policyv1alpha1.ExtensionPoint, group, resource, subresource string, operation admissionv1.Operation) bool
}
