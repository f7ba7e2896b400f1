package job

import (
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// verdict is what a Job's failure policy says of a failed pod.
type verdict struct {
	action  batchv1.PodFailurePolicyAction // "" when no rule matches
	message string                         // of FailJob
}

// counts reports whether the failure counts towards the limits.
func (v verdict) counts() bool { return v.action != batchv1.PodFailurePolicyActionIgnore }

func judge(policy *batchv1.PodFailurePolicy, pod *corev1.Pod) verdict {
	if policy == nil {
		return verdict{}
	}
	for i, rule := range policy.Rules {
		message := ""
		if rule.OnExitCodes != nil {
			status := exited(pod.Status.ContainerStatuses, rule.OnExitCodes)
			if status == nil {
				status = exited(pod.Status.InitContainerStatuses, rule.OnExitCodes)
			}
			if status == nil {
				continue
			}
			message = fmt.Sprintf("Container %s for pod %s/%s failed with exit code %v matching %v rule at index %d",
				status.Name, pod.Namespace, pod.Name, status.State.Terminated.ExitCode, rule.Action, i)
		} else {
			condition := conditionIn(pod, rule.OnPodConditions)
			if condition == nil {
				continue
			}
			message = fmt.Sprintf("Pod %s/%s has condition %v matching %v rule at index %d", pod.Namespace, pod.Name, condition.Type, rule.Action, i)
		}
		if rule.Action != batchv1.PodFailurePolicyActionFailJob {
			message = ""
		}
		return verdict{rule.Action, message}
	}
	return verdict{}
}

func exited(statuses []corev1.ContainerStatus, rule *batchv1.PodFailurePolicyOnExitCodesRequirement) *corev1.ContainerStatus {
	for i := range statuses {
		s := &statuses[i]
		if s.State.Terminated == nil || s.State.Terminated.ExitCode == 0 || rule.ContainerName != nil && *rule.ContainerName != s.Name {
			continue
		}
		listed := slices.Contains(rule.Values, s.State.Terminated.ExitCode)
		if listed == (rule.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn) {
			return s
		}
	}
	return nil
}

func conditionIn(pod *corev1.Pod, patterns []batchv1.PodFailurePolicyOnPodConditionsPattern) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		c := &pod.Status.Conditions[i]
		if slices.ContainsFunc(patterns, func(p batchv1.PodFailurePolicyOnPodConditionsPattern) bool {
			return p.Type == c.Type && p.Status == c.Status
		}) {
			return c
		}
	}
	return nil
}

// succeeded returns which rule of a success policy is met, -1 if none.
func succeeded(policy *batchv1.SuccessPolicy, done indexes, completions int) int {
	if policy == nil || len(done) == 0 {
		return -1
	}
	for i, rule := range policy.Rules {
		switch {
		case rule.SucceededIndexes != nil:
			wanted := parseIndexes(*rule.SucceededIndexes, completions)
			have := wanted.common(done)
			if len(wanted) > 0 && (have == wanted.total() || rule.SucceededCount != nil && have >= int(*rule.SucceededCount)) {
				return i
			}
		case rule.SucceededCount != nil && done.total() >= int(*rule.SucceededCount):
			return i
		}
	}
	return -1
}
