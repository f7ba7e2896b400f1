package conformance

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// Guests are the modules of the cases, by name.
//
//go:embed guests/*.wasm cases.json
var files embed.FS

// Case is one question to a guest whose answer is known; README.md describes the
// fields for hosts that are not written in Go.
type Case struct {
	Name   string          `json:"name"`
	Guest  string          `json:"guest"`
	Config json.RawMessage `json:"config,omitempty"`
	// Fuel of a call; 0: the default.
	Fuel int64       `json:"fuel,omitempty"`
	Time metav1.Time `json:"time"`

	// Pod, Nodes (null: a vacant row), what runs on them, and the ConfigMaps in the
	// store; or Request, at Point.
	Pod        *corev1.Pod                   `json:"pod,omitempty"`
	Nodes      []*corev1.Node                `json:"nodes,omitempty"`
	Running    []*corev1.Pod                 `json:"running,omitempty"`
	ConfigMaps []*corev1.ConfigMap           `json:"configMaps,omitempty"`
	Point      policyv1alpha1.ExtensionPoint `json:"point,omitempty"`
	Request    *admissionv1.AdmissionRequest `json:"request,omitempty"`

	Want Want `json:"want"`
}

// Want is the answer.
type Want struct {
	// Load is the step that a load must fail at, and Text a part of the reason.
	Load string `json:"load,omitempty"`
	// Fails is trap, fuel or result, for a call that must fail so, Text a part of the
	// reason. After it, the same question with another pod or name must succeed.
	Fails string `json:"fails,omitempty"`
	Text  string `json:"text,omitempty"`

	// By row; of vacant rows 0 and "". Scores of refused rows are 0.
	Verdicts []int    `json:"verdicts,omitempty"` // uint8 would be base64
	Reasons  []string `json:"reasons,omitempty"`
	Scores   []int64  `json:"scores,omitempty"`

	Answer *Answer `json:"answer,omitempty"`
}

// Answer to a request.
type Answer struct {
	Allowed          bool              `json:"allowed"`
	Code             int32             `json:"code,omitempty"`
	Message          string            `json:"message,omitempty"`
	Warnings         []string          `json:"warnings,omitempty"`
	Patch            json.RawMessage   `json:"patch,omitempty"`
	AuditAnnotations map[string]string `json:"auditAnnotations,omitempty"`
}

// Cases that a host must answer as they want.
func Cases() ([]Case, error) {
	data, err := files.ReadFile("cases.json")
	if err != nil {
		return nil, err
	}
	var out []Case
	if err := json.Unmarshal(data, &out); err != nil {
		return nil, fmt.Errorf("cases.json: %w", err)
	}
	return out, nil
}

// store holds the ConfigMaps of a case.
type store []*corev1.ConfigMap

func (s store) Revision() int64 { return 1 }

func (s store) Get(_ context.Context, _ int64, resource schema.GroupResource, namespace, name string) (runtime.Object, error) {
	for _, m := range s {
		if resource.String() == "configmaps" && m.Namespace == namespace && m.Name == name {
			m.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}
			return m, nil
		}
	}
	return nil, apierrors.NewNotFound(resource, name)
}

var failures = map[string]error{"trap": policies.ErrTrap, "fuel": policies.ErrFuel, "result": policies.ErrResult}

// Run asks a host's engine, and returns how it answers otherwise than wanted.
func (c *Case) Run(ctx context.Context, engine policies.Engine) (err error) {
	source, err := files.ReadFile("guests/" + c.Guest)
	if err != nil {
		return err
	}
	limits := policyv1alpha1.PolicyLimits{Deadline: &metav1.Duration{Duration: 10 * time.Second}}
	if c.Fuel > 0 {
		limits.Fuel = &c.Fuel
	}
	program, err := engine.Load(ctx, policies.Load{Policy: c.Guest, Source: source, Digest: policies.Digest(source), Config: c.Config, Limits: limits})
	if c.Want.Load != "" {
		var step *policies.LoadError
		if !errors.As(err, &step) || step.Step != c.Want.Load || !contains(err, c.Want.Text) {
			return fmt.Errorf("load: error %v, expected one at %s with %q", err, c.Want.Load, c.Want.Text)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	defer func() { err = errors.Join(err, program.Close()) }()
	session := program.Session()
	defer session.Close()
	if c.Request != nil {
		return c.admit(ctx, session)
	}
	return c.schedule(ctx, session)
}

func contains(err error, text string) bool {
	return err != nil && bytes.Contains([]byte(err.Error()), []byte(text))
}

// failed compares the failure of a call; done says that a case ends with it.
func (c *Case) failed(err error) (done bool, _ error) {
	if want := failures[c.Want.Fails]; want != nil {
		if !errors.Is(err, want) || !contains(err, c.Want.Text) {
			return true, fmt.Errorf("error %v, expected %v with %q", err, want, c.Want.Text)
		}
		return true, nil
	}
	return err != nil, err
}

func (c *Case) cycle() policies.Cycle {
	return policies.Cycle{Time: c.Time.Time, Seed: 1, Revision: 1, Reads: store(c.ConfigMaps)}
}

func (c *Case) schedule(ctx context.Context, s policies.Session) error {
	fleet := abi.FleetOf(c.Nodes, c.Running...)
	verdicts, reasons, scores, err := c.decide(ctx, s, c.Pod, fleet)
	if done, err := c.failed(err); done {
		if err == nil { // what failed is gone, the next is as good as new
			healthy := c.Pod.DeepCopy()
			healthy.Name = "healthy"
			if _, _, _, err = c.decide(ctx, s, healthy, fleet); err != nil {
				err = fmt.Errorf("after the failure: %w", err)
			}
		}
		return err
	}
	for name, x := range map[string][2]any{"verdicts": {verdicts, c.Want.Verdicts}, "reasons": {reasons, c.Want.Reasons}, "scores": {scores, c.Want.Scores}} {
		if !reflect.DeepEqual(x[0], x[1]) {
			err = errors.Join(err, fmt.Errorf("%s are %v, expected %v", name, x[0], x[1]))
		}
	}
	return err
}

func (c *Case) decide(ctx context.Context, s policies.Session, pod *corev1.Pod, fleet *abi.Fleet) (verdicts []int, reasons []string, scores []int64, err error) {
	n := fleet.Len()
	raw := make([]uint8, n)
	verdicts, reasons, scores = make([]int, n), make([]string, n), make([]int64, n)
	if _, err = s.Filter(ctx, c.cycle(), pod, fleet, raw); err != nil {
		return nil, nil, nil, err
	}
	for row, v := range raw {
		if verdicts[row] = int(v); v != 0 {
			reasons[row] = s.Reason(row, v)
		}
	}
	_, err = s.Score(ctx, c.cycle(), pod, fleet, raw, scores)
	return verdicts, reasons, scores, err
}

func (c *Case) admit(ctx context.Context, s policies.Session) error {
	response, _, err := s.Admit(ctx, c.cycle(), c.Point, c.Request)
	if done, err := c.failed(err); done {
		if err == nil {
			healthy := c.Request.DeepCopy()
			healthy.Name = "healthy"
			if _, _, err = s.Admit(ctx, c.cycle(), c.Point, healthy); err != nil {
				err = fmt.Errorf("after the failure: %w", err)
			}
		}
		return err
	}
	got := Answer{Allowed: response.Allowed, Warnings: response.Warnings, AuditAnnotations: response.AuditAnnotations}
	if response.Result != nil {
		got.Code, got.Message = response.Result.Code, response.Result.Message
	}
	if len(response.Patch) > 0 {
		got.Patch = response.Patch
	}
	x, err := json.Marshal(got)
	if err != nil {
		return err
	}
	y, err := json.Marshal(c.Want.Answer)
	if err != nil {
		return err
	}
	if !bytes.Equal(x, y) {
		return fmt.Errorf("answer %s, expected %s", x, y)
	}
	return nil
}
