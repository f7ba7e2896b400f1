package daemonset

import (
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

// tolerated by every daemon: it stays on a node in trouble, and is started on one.
var tolerated = []corev1.Toleration{
	{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
	{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
	{Key: corev1.TaintNodeDiskPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	{Key: corev1.TaintNodeMemoryPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	{Key: corev1.TaintNodePIDPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	{Key: corev1.TaintNodeUnschedulable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
}

func tolerate(spec *corev1.PodSpec) {
	all := tolerated
	if spec.HostNetwork {
		all = append(slices.Clone(all), corev1.Toleration{Key: corev1.TaintNodeNetworkUnavailable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule})
	}
	for _, t := range all {
		if !slices.ContainsFunc(spec.Tolerations, func(has corev1.Toleration) bool { return has.MatchToleration(&t) }) {
			spec.Tolerations = append(spec.Tolerations, t)
		}
	}
}

// runsOn reports whether a daemon is to be started on the node, and whether one
// that is there may stay.
func runsOn(set *appsv1.DaemonSet, node *corev1.Node) (start, stay bool) {
	spec := set.Spec.Template.Spec
	if spec.NodeName != "" && spec.NodeName != node.Name {
		return false, false
	}
	pod := &corev1.Pod{Spec: spec}
	pod.Spec.NodeName, pod.Spec.Tolerations = node.Name, slices.Clone(spec.Tolerations)
	tolerate(&pod.Spec)
	if fits, _ := nodeaffinity.GetRequiredNodeAffinity(pod).Match(node); !fits { // what cannot be parsed fits nothing
		return false, false
	}
	refused := func(effects ...corev1.TaintEffect) bool {
		_, found := corev1helpers.FindMatchingUntoleratedTaint(klog.Background(), node.Spec.Taints, pod.Spec.Tolerations, func(t *corev1.Taint) bool {
			return slices.Contains(effects, t.Effect)
		}, false)
		return found
	}
	if refused(corev1.TaintEffectNoExecute, corev1.TaintEffectNoSchedule) {
		return false, !refused(corev1.TaintEffectNoExecute)
	}
	return true, true
}

// target is the node of a daemon: the one it is bound to, or made for.
func target(pod *corev1.Pod) string {
	if pod.Spec.NodeName != "" {
		return pod.Spec.NodeName
	}
	if pod.Spec.Affinity == nil || pod.Spec.Affinity.NodeAffinity == nil || pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return ""
	}
	for _, term := range pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, field := range term.MatchFields {
			if field.Key == metav1.ObjectNameField && field.Operator == corev1.NodeSelectorOpIn && len(field.Values) == 1 {
				return field.Values[0]
			}
		}
	}
	return ""
}

// newPod makes the daemon of a node. The scheduler binds it, to that node alone.
func newPod(set *appsv1.DaemonSet, node, hash string) *corev1.Pod {
	pod := pods.FromTemplate(&set.Spec.Template, set, kind)
	tolerate(&pod.Spec)
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] = hash
	if g := generation(set); g != "" {
		pod.Labels[generationLabel] = g
	}
	pinned := corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{{
		Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node},
	}}}
	if pod.Spec.Affinity == nil {
		pod.Spec.Affinity = &corev1.Affinity{}
	}
	if pod.Spec.Affinity.NodeAffinity == nil {
		pod.Spec.Affinity.NodeAffinity = &corev1.NodeAffinity{}
	}
	// What else was required was met when the node was chosen.
	pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{pinned}}
	return pod
}

// The age of a template before there were revisions.
const generationLabel = "pod-template-generation"

func generation(set *appsv1.DaemonSet) string {
	return set.Annotations[appsv1.DeprecatedTemplateGeneration]
}

// updated reports whether a pod has the present template.
func updated(set *appsv1.DaemonSet, pod *corev1.Pod, hash string) bool {
	g := generation(set)
	return pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == hash || g != "" && pod.Labels[generationLabel] == g
}
