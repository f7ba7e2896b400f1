package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/quaymaster/quaymaster/core/coretest"
	"github.com/quaymaster/quaymaster/runtime/agent/drain"
)

// TestNodeSwitch changes a node's runtime by the command; a disruption budget holds the plan up, the agent is
// killed meanwhile, and the next agent goes on once the budget is gone.
func TestNodeSwitch(t *testing.T) {
	_, url, dir, client := server(t)
	token, err := os.ReadFile(filepath.Join(dir, "join-token"))
	if err != nil {
		t.Fatal(err)
	}
	agent := []string{"agent", "--server", url, "--token", strings.TrimSpace(string(token)), "--name", "n1", "--data", t.TempDir(), "--runtime", "sim"}
	first := command(context.WithoutCancel(t.Context()), t, agent...)
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	defer func() {
		if !ended {
			_ = first.Process.Kill()
			_ = first.Wait()
		}
	}()
	labels := map[string]string{"app": "web"}
	replicas := int32(2)
	if _, err := client.AppsV1().ReplicaSets("default").Create(t.Context(), &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.ReplicaSetSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "app"}}}}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	all := intstr.FromInt32(2)
	if _, err := client.PolicyV1().PodDisruptionBudgets("default").Create(t.Context(), &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: policyv1.PodDisruptionBudgetSpec{MinAvailable: &all, Selector: &metav1.LabelSelector{MatchLabels: labels}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	coretest.Eventually(t, "two pods that run and a budget that knows them", func(ctx context.Context) (bool, error) {
		b, err := client.PolicyV1().PodDisruptionBudgets("default").Get(ctx, "web", metav1.GetOptions{})
		return err == nil && b.Status.CurrentHealthy == 2, err
	})
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if out, err := command(t.Context(), t, "node", "switch", "n1", "--runtime", "/bin/sh", "--kubeconfig", kubeconfig).CombinedOutput(); err == nil || !strings.Contains(string(out), "it is containerd, cri, oci, wasm or sim") {
		t.Errorf("a runtime that is a program: %v, %s", err, out)
	}
	if out, err := command(t.Context(), t, "node", "switch", "n1", "--runtime", "wasm", "--detach", "--kubeconfig", kubeconfig).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	get := func(ctx context.Context) (*corev1.Node, *drain.State) {
		node, err := client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		s, err := drain.StateOf(node)
		if err != nil {
			t.Fatal(err)
		}
		return node, s
	}
	coretest.Eventually(t, "the event that the budget keeps the plan", func(ctx context.Context) (bool, error) {
		list, err := client.CoreV1().Events("").List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		for _, e := range list.Items {
			if e.Reason == drain.Blocked && strings.Contains(e.Message, "disruption budget") {
				return true, nil
			}
		}
		return false, nil
	})
	if node, s := get(t.Context()); s == nil || s.Step != drain.Draining || !node.Spec.Unschedulable {
		t.Errorf("the plan is %v, unschedulable %v", s, node.Spec.Unschedulable)
	}
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	ended = true
	start(t, agent...)
	if _, s := get(t.Context()); s == nil || s.Step != drain.Draining {
		t.Errorf("after the agent's end the plan is %v", s)
	}
	if err := client.PolicyV1().PodDisruptionBudgets("default").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	out, err := command(t.Context(), t, "node", "switch", "n1", "--runtime", "wasm", "--timeout", "2m", "--kubeconfig", kubeconfig).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "node n1: has runtime wasm") {
		t.Fatalf("%v\n%s", err, out)
	}
	coretest.Eventually(t, "the node to say which runtime it has", func(ctx context.Context) (bool, error) {
		node, s := get(ctx)
		return s == nil && !node.Spec.Unschedulable && node.Annotations[drain.Current] == "wasm" && strings.HasPrefix(node.Status.NodeInfo.ContainerRuntimeVersion, "wasm://"), nil
	})
}
