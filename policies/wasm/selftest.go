package wasm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// selfTest runs every entry point on inputs of the host's own, whose answers
// need only be well formed, then the vectors of the manifest.
func (p *program) selfTest(ctx context.Context, in *instance) error {
	ctx, cancel := context.WithTimeout(ctx, maxSelfTestBudget)
	defer cancel()
	in.testing = true
	defer func() { in.testing = false }()
	s := &session{program: p, instance: in}
	for _, nodes := range [][]*corev1.Node{{}, {sampleNode("a"), nil, sampleNode("b")}} {
		if _, _, err := p.schedule(ctx, s, samplePod(), nodes); err != nil {
			return err
		}
	}
	for _, point := range []policyv1alpha1.ExtensionPoint{policyv1alpha1.ExtensionMutate, policyv1alpha1.ExtensionValidate} {
		if slices.Contains(p.manifest.ExtensionPoints, point) {
			if _, _, err := s.Admit(ctx, policies.Cycle{Time: time.Unix(0, 0)}, point, sampleRequest()); err != nil {
				return err
			}
		}
	}
	for i, t := range p.manifest.SelfTest {
		if err := p.vector(ctx, t); err != nil {
			return fmt.Errorf("vector %d %q: %w", i, t.Name, err)
		}
	}
	return nil
}

// schedule filters and scores as far as the guest does.
func (p *program) schedule(ctx context.Context, s *session, pod *corev1.Pod, nodes []*corev1.Node) ([]uint8, []int64, error) {
	fleet := abi.FleetOf(nodes)
	verdicts, scores := make([]uint8, len(nodes)), make([]int64, len(nodes))
	cycle := policies.Cycle{Time: time.Unix(0, 0), Seed: 1}
	if slices.Contains(p.manifest.ExtensionPoints, policyv1alpha1.ExtensionFilter) {
		if _, err := s.Filter(ctx, cycle, pod, fleet, verdicts); err != nil {
			return nil, nil, err
		}
	}
	if slices.Contains(p.manifest.ExtensionPoints, policyv1alpha1.ExtensionScore) {
		if _, err := s.Score(ctx, cycle, pod, fleet, verdicts, scores); err != nil {
			return nil, nil, err
		}
	}
	return verdicts, scores, nil
}

// vector runs in an instance of its own, with the vector's configuration.
func (p *program) vector(ctx context.Context, t abi.SelfTest) error {
	in, err := p.newInstance(ctx, t.Config)
	if err != nil {
		return err
	}
	in.testing = true
	s := &session{program: p, instance: in}
	defer func() {
		if s.instance != nil {
			s.instance.close()
		}
	}()
	pod := t.Pod
	if pod == nil {
		pod = samplePod()
	}
	verdicts, scores, err := p.schedule(ctx, s, pod, t.Nodes)
	if err != nil {
		return err
	}
	if t.Verdicts != nil && !slices.Equal(verdicts, t.Verdicts) {
		return fmt.Errorf("verdicts are %v, expected %v", verdicts, t.Verdicts)
	}
	for i, want := range t.Scores {
		if verdicts[i] == verdictPasses && scores[i] != want {
			return fmt.Errorf("scores are %v, expected %v", scores, t.Scores)
		}
	}
	return nil
}

func samplePod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "self-test", Namespace: "default", Labels: map[string]string{"app": "self-test"}},
		Spec: corev1.PodSpec{
			NodeSelector: map[string]string{"disktype": "ssd"},
			Tolerations:  []corev1.Toleration{{Key: "dedicated", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}},
			Containers: []corev1.Container{{Name: "c", Image: "self-test", Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("100Mi")},
			}}},
		},
	}
}

func sampleNode(name string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name, corev1.LabelTopologyZone: "z-" + name}},
		Spec:       corev1.NodeSpec{Taints: []corev1.Taint{{Key: "dedicated", Value: "x", Effect: corev1.TaintEffectNoSchedule}}},
		Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourcePods: resource.MustParse("110"),
		}},
	}
}

func sampleRequest() *admissionv1.AdmissionRequest {
	pod := samplePod()
	pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	raw, err := json.Marshal(pod)
	if err != nil {
		panic(errors.Join(errors.New("encode the self-test's pod"), err)) // a constant
	}
	return &admissionv1.AdmissionRequest{
		UID:       "self-test",
		Kind:      metav1.GroupVersionKind{Version: "v1", Kind: "Pod"},
		Resource:  metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
		Name:      pod.Name,
		Namespace: pod.Namespace,
		Operation: admissionv1.Create,
		Object:    runtime.RawExtension{Raw: raw},
	}
}
