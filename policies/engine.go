package policies

import (
	"context"
	"errors"
	"fmt"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// Steps of a load, in order, as PolicyError names them.
const (
	StepFetch       = "Fetch"
	StepParse       = "Parse"
	StepManifest    = "Manifest"
	StepImports     = "Imports"
	StepRewrite     = "Rewrite"
	StepCompile     = "Compile"
	StepInstantiate = "Instantiate"
	StepConfigure   = "Configure"
	StepSelfTest    = "SelfTest"
	// StepProbation is not of a load: the version was in force, failed too often
	// while it was new, and the one before it was put back.
	StepProbation = "Probation"
)

// LoadError says at which step a load failed, and why.
type LoadError struct {
	Step string
	Err  error
}

func (e *LoadError) Error() string { return e.Step + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *LoadError) Unwrap() error { return e.Err }

// LoadErrorf makes a LoadError as fmt.Errorf does.
func LoadErrorf(step, format string, args ...any) error {
	return &LoadError{Step: step, Err: fmt.Errorf(format, args...)}
}

// What can go wrong in a call. Errors of Session wrap one of these, or the
// error of the caller's context.
var (
	// ErrTrap: the program failed.
	ErrTrap = errors.New("trapped")
	// ErrFuel: it used all the fuel of a call.
	ErrFuel = errors.New("out of fuel")
	// ErrDeadline: it took longer than its deadline.
	ErrDeadline = errors.New("deadline exceeded")
	// ErrResult: its answer makes no sense.
	ErrResult = errors.New("malformed result")
	// ErrRead: the store did not answer a read. The program is not to blame.
	ErrRead = errors.New("read failed")
	// ErrBreaker: it was not called, because it failed too often of late.
	ErrBreaker = errors.New("breaker is open")
)

// Load is what an engine makes a program of.
type Load struct {
	// Policy is the name of the policy, for messages.
	Policy string
	// File that Source came from, for messages; may be empty.
	File   string
	Source []byte
	Digest string
	// Config is JSON; empty for none.
	Config []byte
	Limits policyv1alpha1.PolicyLimits
	// Grants of the policy. nil grants what the program asks for: tools do that.
	Grants *policyv1alpha1.PolicyGrants
}

// Engine runs the policies of one EngineType. It is safe for concurrent use.
type Engine interface {
	// Load takes a source through every step up to the self-test. Its errors
	// are *LoadError.
	Load(ctx context.Context, l Load) (Program, error)
}

// Program is one loaded policy, ready to run. It is safe for concurrent use.
type Program interface {
	// Points that the program offers.
	Points() []policyv1alpha1.ExtensionPoint
	// Static has the meaning of Pinned.Static.
	Static() bool
	// Session is for one caller; it must be closed before the program is.
	Session() Session
	Close() error
}

// Session is the use of a program by one caller. It is not safe for concurrent
// use. Filter, Reason and Score have the meaning that they have in Pinned.
type Session interface {
	Filter(ctx context.Context, c Cycle, pod *corev1.Pod, fleet *abi.Fleet, verdicts []uint8) (Cost, error)
	// Reason returns "" when the program gave none.
	Reason(row int, verdict uint8) string
	Score(ctx context.Context, c Cycle, pod *corev1.Pod, fleet *abi.Fleet, verdicts []uint8, scores []int64) (Cost, error)
	// Admit answers one admission request at Mutate or Validate.
	Admit(ctx context.Context, c Cycle, point policyv1alpha1.ExtensionPoint, request *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, Cost, error)
	Close()
}
