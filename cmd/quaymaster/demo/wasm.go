package demo

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	plugins "github.com/quaymaster/quaymaster/wasm-plugins"
)

// wasmPolicy loads a policy that prefers nodes with an SSD, replaces it, while
// pods arrive, by one that keeps them free, and offers a broken third version.
func (t *tour) wasmPolicy(ctx context.Context) error {
	without, err := t.place(ctx, "without-policy")
	if err != nil {
		return err
	}
	t.say("no policy: a pod goes to %s, the node with the most room", without)
	if without != "node02" {
		return fmt.Errorf("it went to %s: a placement on node02 was expected, or nothing can be shown", without)
	}

	if err := t.writePolicy("prefer-label.wasm", plugins.PreferLabel1); err != nil {
		return err
	}
	if err := t.writePolicy("prefer-label.yaml", manifest("prefer-label.yaml")); err != nil {
		return err
	}
	first, err := t.inForce(ctx, "prefer-label", 0)
	if err != nil {
		return err
	}
	if err := t.decidesWith(ctx, "without-policy", "prefer-label"); err != nil {
		return err
	}
	with, err := t.place(ctx, "with-policy")
	if err != nil {
		return err
	}
	if with != "node01" {
		return fmt.Errorf("the policy prefers node01, the pod went to %s", with)
	}
	t.say("version 1 loaded (%.19s): now one goes to %s, for its SSD", first.ActiveDigest, with)

	second, counts, err := t.replaceWhilePodsArrive(ctx, first.ActiveGeneration)
	if err != nil {
		return err
	}
	t.say("version 2 keeps SSDs free; it replaced version 1 while %d pods came: %d went to node01, then %d to node02",
		counts["node01"]+counts["node02"], counts["node01"], counts["node02"])

	broken := plugins.PreferLabel2[:len(plugins.PreferLabel2)/2]
	if err := t.writePolicy("prefer-label.wasm", broken); err != nil {
		return err
	}
	err = eventually(ctx, "the broken version to be refused", func(ctx context.Context) (bool, error) {
		policy, err := t.ours.Policies.Get(ctx, "prefer-label", metav1.GetOptions{})
		if err != nil || policy.Status.LastError == nil {
			return false, err
		}
		if policy.Status.ActiveGeneration != second {
			return false, fmt.Errorf("generation %d is in force, not %d", policy.Status.ActiveGeneration, second)
		}
		t.say("version 3 is cut in half. Refused at %s: %s", policy.Status.LastError.Step, policy.Status.LastError.Message)
		return true, nil
	})
	if err != nil {
		return err
	}
	after, err := t.place(ctx, "after-refusal")
	if err != nil {
		return err
	}
	if after != "node02" {
		return fmt.Errorf("version 2 should go on, but the pod went to %s", after)
	}
	t.say("version 2 goes on: the next pod goes to %s", after)
	return nil
}

// decidesWith waits until the scheduler would ask the policy about the pod: the
// policy is in force and its profile has arrived.
func (t *tour) decidesWith(ctx context.Context, pod, policy string) error {
	return eventually(ctx, "the scheduler to take the profile with "+policy, func(ctx context.Context) (bool, error) {
		decision, err := t.ours.Decisions(metav1.NamespaceDefault).Get(ctx, pod, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		for _, version := range decision.Policies {
			if version.Name == policy {
				return true, nil
			}
		}
		return false, nil
	})
}

// replaceWhilePodsArrive creates pods one after the other, swaps the policy's
// file after some of them, and stops when a pod has been placed by the new version. It
// returns that version's generation and how many pods went to each node.
func (t *tour) replaceWhilePodsArrive(ctx context.Context, generation int64) (second int64, counts map[string]int, err error) {
	const before, limit = 10, 100
	counts = map[string]int{}
	for i := range limit {
		if i == before {
			if err := t.writePolicy("prefer-label.wasm", plugins.PreferLabel2); err != nil {
				return 0, nil, err
			}
		}
		node, err := t.place(ctx, fmt.Sprintf("arrival-%d", i))
		if err != nil {
			return 0, nil, err
		}
		counts[node]++
		if node == "node01" && counts["node02"] > 0 {
			return 0, nil, fmt.Errorf("pod %d was placed by version 1 after version 2 had placed one", i)
		}
		if counts["node02"] == before {
			status, err := t.inForce(ctx, "prefer-label", generation)
			return status.ActiveGeneration, counts, err
		}
	}
	return 0, nil, fmt.Errorf("version 2 placed %d of %d pods", counts["node02"], limit)
}

// place creates a pod and returns the node that it was bound to.
func (t *tour) place(ctx context.Context, name string) (node string, err error) {
	pods := t.kubernetes.CoreV1().Pods(metav1.NamespaceDefault)
	_, err = pods.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "arrivals"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "main", Image: "httpserver:1.0",
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m")}},
		}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("create pod %s: %w", name, err)
	}
	err = eventually(ctx, "pod "+name+" to be placed", func(ctx context.Context) (bool, error) {
		pod, err := pods.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		node = pod.Spec.NodeName
		return node != "", nil
	})
	return node, err
}
