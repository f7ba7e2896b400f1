package policies

import (
	"context"
	"fmt"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// sampleEvery is how many calls of a generation one is asked again of, from the
// first: a policy is to be a function of its input, and one that is not makes
// decisions that nobody can explain or repeat.
const sampleEvery = 256

// sampled says whether a call is to be asked again.
func (g *generation) sampled() bool { return !g.stateful && g.asked.Add(1)%sampleEvery == 1 }

func (g *generation) unstable(point policyv1alpha1.ExtensionPoint, format string, args ...any) {
	g.metrics[point].impure.Inc()
	if g.impure.CompareAndSwap(false, true) {
		g.host.tell(Event{Kind: Impure, Policy: g.name, Generation: g.number,
			Reason: fmt.Sprintf("%s: %s", point, fmt.Sprintf(format, args...))})
	}
}

// again reports a second call that failed where the first did not, unless the
// caller gave up, the machine was slow or the store did not answer.
func (g *generation) again(ctx context.Context, point policyv1alpha1.ExtensionPoint, err error) (ok bool) {
	if err != nil && ctx.Err() == nil && !isCircumstance(err) {
		g.unstable(point, "asked again, it failed: %v", err)
	}
	return err == nil
}

func (p *pinned) filterAgain(ctx context.Context, c Cycle, pod *corev1.Pod, fleet *abi.Fleet, verdicts []uint8) {
	second := make([]uint8, len(verdicts))
	_, err := p.use().Filter(ctx, c, pod, fleet, second)
	if !p.again(ctx, policyv1alpha1.ExtensionFilter, err) {
		return
	}
	for row, node := range fleet.Nodes {
		if node != nil && verdicts[row] != second[row] {
			p.unstable(policyv1alpha1.ExtensionFilter, "node %s has verdict %d, and %d for the same question", node.Name, verdicts[row], second[row])
			return
		}
	}
}

func (p *pinned) scoreAgain(ctx context.Context, c Cycle, pod *corev1.Pod, fleet *abi.Fleet, verdicts []uint8, scores []int64) {
	second := make([]int64, len(scores))
	_, err := p.use().Score(ctx, c, pod, fleet, verdicts, second)
	if !p.again(ctx, policyv1alpha1.ExtensionScore, err) {
		return
	}
	for row, node := range fleet.Nodes {
		if node != nil && verdicts[row] == 0 && scores[row] != second[row] {
			p.unstable(policyv1alpha1.ExtensionScore, "node %s has score %d, and %d for the same question", node.Name, scores[row], second[row])
			return
		}
	}
}

func (g *generation) admitAgain(ctx context.Context, session Session, c Cycle, point policyv1alpha1.ExtensionPoint,
	request *admissionv1.AdmissionRequest, response *admissionv1.AdmissionResponse) {
	second, _, err := session.Admit(ctx, c, point, request)
	if g.again(ctx, point, err) && !equality.Semantic.DeepEqual(response, second) {
		g.unstable(point, "two answers to the same request")
	}
}
