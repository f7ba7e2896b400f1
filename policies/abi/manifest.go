package abi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
)

// Version of the guest ABI, and the custom section that holds the manifest.
const (
	Version         = "qm/1"
	ManifestSection = "qm.manifest"
)

// Limits of a manifest.
const (
	MaxManifest = 256 << 10 // bytes
	MaxReasons  = 249
	MaxReason   = 256 // bytes of one reason
)

// Grants that a guest may ask for; each opens imports of module "qm".
const (
	GrantLog   = "log"   // qm.log
	GrantClock = "clock" // qm.now
	GrantRead  = "read"  // qm.get
)

// Encodings of whole objects that a guest is handed.
const (
	EncodingProtobuf = "protobuf"
	EncodingJSON     = "json"
)

// MaxReads is how many resources a manifest may name.
const MaxReads = 32

// Manifest is what a guest says of itself.
type Manifest struct {
	ABI     string `json:"abi"`
	Name    string `json:"name"`
	Version string `json:"version"`
	// ExtensionPoints that the guest serves.
	ExtensionPoints []policyv1alpha1.ExtensionPoint `json:"extensionPoints"`
	// Columns of the snapshot to ship, by name.
	Columns []string `json:"columns,omitempty"`
	// RawPod asks for the pod's protobuf at the end of its record.
	RawPod bool `json:"rawPod,omitempty"`
	// Reasons: verdict i is explained by Reasons[i-1].
	Reasons []string `json:"reasons,omitempty"`
	// Grants asked for.
	Grants []string `json:"grants,omitempty"`
	// Reads are the resources that qm.get may be asked for: "configmaps",
	// "deployments.apps". They need the grant "read".
	Reads []string `json:"reads,omitempty"`
	// Encoding of the pods and nodes of the row tier and of what qm.get gives:
	// EncodingProtobuf, the default, or EncodingJSON.
	Encoding string `json:"encoding,omitempty"`
	// Stateful says that answers may depend on former calls: they are neither
	// kept nor asked for twice to compare.
	Stateful bool `json:"stateful,omitempty"`
	// Limits asked for; the host caps them.
	Limits ManifestLimits `json:"limits,omitempty"`
	// SelfTest vectors run before the guest is put in force.
	SelfTest []SelfTest `json:"selfTest,omitempty"`
}

// ManifestLimits have the meaning of policyv1alpha1.PolicyLimits.
type ManifestLimits struct {
	Memory   *resource.Quantity `json:"memory,omitempty"`
	Fuel     *int64             `json:"fuel,omitempty"`
	Deadline *metav1.Duration   `json:"deadline,omitempty"`
}

// SelfTest is one call and what it must answer.
type SelfTest struct {
	Name   string          `json:"name"`
	Config json.RawMessage `json:"config,omitempty"` // default: none
	Pod    *corev1.Pod     `json:"pod,omitempty"`
	Nodes  []*corev1.Node  `json:"nodes,omitempty"`
	// Verdicts by node; nil = not compared.
	Verdicts []uint8 `json:"verdicts,omitempty"`
	// Scores by node, after normalisation; those of refused nodes are not compared.
	Scores []int64 `json:"scores,omitempty"`
}

// ParseManifest decodes and checks a manifest.
func ParseManifest(data []byte) (*Manifest, []Column, error) {
	if len(data) > MaxManifest {
		return nil, nil, fmt.Errorf("manifest has %d bytes, at most %d are allowed", len(data), MaxManifest)
	}
	m := &Manifest{}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(m); err != nil {
		return nil, nil, fmt.Errorf("decode manifest: %w", err)
	}
	if d.More() {
		return nil, nil, errors.New("decode manifest: data after the end")
	}
	if m.ABI != Version {
		return nil, nil, fmt.Errorf("manifest is for ABI %q, this host speaks %q", m.ABI, Version)
	}
	if m.Name == "" {
		return nil, nil, errors.New("manifest has no name")
	}
	if len(m.ExtensionPoints) == 0 {
		return nil, nil, errors.New("manifest names no extensionPoints")
	}
	for _, p := range m.ExtensionPoints {
		switch p {
		case policyv1alpha1.ExtensionFilter, policyv1alpha1.ExtensionScore,
			policyv1alpha1.ExtensionValidate, policyv1alpha1.ExtensionMutate:
		default:
			return nil, nil, fmt.Errorf("manifest names unknown extension point %q", p)
		}
	}
	if len(m.Reasons) > MaxReasons {
		return nil, nil, fmt.Errorf("manifest has %d reasons, at most %d are allowed", len(m.Reasons), MaxReasons)
	}
	for i, r := range m.Reasons {
		if r == "" || len(r) > MaxReason {
			return nil, nil, fmt.Errorf("manifest: reason %d has %d bytes, 1 to %d are allowed", i+1, len(r), MaxReason)
		}
	}
	for _, g := range m.Grants {
		if !slices.Contains([]string{GrantLog, GrantClock, GrantRead}, g) {
			return nil, nil, fmt.Errorf("manifest asks for unknown grant %q", g)
		}
	}
	if len(m.Reads) > MaxReads {
		return nil, nil, fmt.Errorf("manifest names %d reads, at most %d are allowed", len(m.Reads), MaxReads)
	}
	for _, r := range m.Reads {
		if g := schema.ParseGroupResource(r); g.Resource == "" || g.String() != r || strings.ToLower(r) != r {
			return nil, nil, fmt.Errorf("manifest: reads: %q is no resource: name it in plural, and its group after a dot, as in \"deployments.apps\"", r)
		}
	}
	if slices.Contains(m.Grants, GrantRead) != (len(m.Reads) > 0) {
		return nil, nil, errors.New("manifest: the grant \"read\" and the resources in \"reads\" go together")
	}
	switch m.Encoding {
	case "":
		m.Encoding = EncodingProtobuf
	case EncodingProtobuf, EncodingJSON:
	default:
		return nil, nil, fmt.Errorf("manifest: encoding %q is neither %q nor %q", m.Encoding, EncodingProtobuf, EncodingJSON)
	}
	if l := m.Limits; l.Fuel != nil && *l.Fuel <= 0 || l.Memory != nil && l.Memory.Sign() <= 0 || l.Deadline != nil && l.Deadline.Duration <= 0 {
		return nil, nil, errors.New("manifest: limits must be positive")
	}
	for i, t := range m.SelfTest {
		if t.Verdicts != nil && len(t.Verdicts) != len(t.Nodes) || t.Scores != nil && len(t.Scores) != len(t.Nodes) {
			return nil, nil, fmt.Errorf("manifest: selfTest %d has %d nodes, %d verdicts, %d scores", i, len(t.Nodes), len(t.Verdicts), len(t.Scores))
		}
		if slices.Contains(t.Nodes, nil) {
			return nil, nil, fmt.Errorf("manifest: selfTest %d has a null node", i)
		}
	}
	columns, err := ParseColumns(m.Columns)
	if err != nil {
		return nil, nil, fmt.Errorf("manifest: %w", err)
	}
	return m, columns, nil
}
