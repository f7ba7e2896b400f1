package demo

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
)

// writePolicy puts a file into the watched directory in one step.
func (t *tour) writePolicy(name string, content []byte) error {
	temporary := filepath.Join(t.DataDir, name+".new")
	if err := os.WriteFile(temporary, content, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(t.policyDir(), name))
}

// inForce waits until the policy is ready, shows a generation above after, and
// its status speaks of the newest spec. It returns the generation.
func (t *tour) inForce(ctx context.Context, name string, after int64) (status policyv1alpha1.PolicyStatus, err error) {
	err = eventually(ctx, "policy "+name+" to be in force", func(ctx context.Context) (bool, error) {
		policy, err := t.ours.Policies.Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, nil
		} else if err != nil {
			return false, err
		}
		status = policy.Status
		return meta.IsStatusConditionTrue(status.Conditions, policyv1alpha1.ConditionReady) &&
			status.ObservedGeneration == policy.Generation && status.ActiveGeneration > after && status.LastError == nil, nil
	})
	return status, err
}

func (t *tour) regoPolicy(ctx context.Context) error {
	policy := manifest("required-label.yaml")
	if err := t.writePolicy("required-label.yaml", policy); err != nil {
		return err
	}
	status, err := t.inForce(ctx, "required-label", 0)
	if err != nil {
		return err
	}
	pods := t.kubernetes.CoreV1().Pods(metav1.NamespaceDefault)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "nobodys", Labels: map[string]string{"app": "nobodys"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "httpserver:1.0"}}},
	}
	_, err = pods.Create(ctx, pod, metav1.CreateOptions{})
	if !apierrors.IsForbidden(err) {
		return fmt.Errorf("a pod without an owner should have been forbidden, but: %v", err)
	}
	if err := contains(err.Error(), "every pod needs the label owner"); err != nil {
		return err
	}
	t.say("refused: %v", err)
	edited := bytes.Replace(policy, []byte(`{"default", "production"}`), []byte(`{"production"}`), 1)
	if bytes.Equal(edited, policy) {
		return fmt.Errorf("the edit changed nothing")
	}
	if err := t.writePolicy("required-label.yaml", edited); err != nil {
		return err
	}
	if status, err = t.inForce(ctx, "required-label", status.ActiveGeneration); err != nil {
		return err
	}
	if _, err := pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("after the edit: %w", err)
	}
	t.say("file edited, generation %d in force: the same pod is accepted", status.ActiveGeneration)
	return nil
}
