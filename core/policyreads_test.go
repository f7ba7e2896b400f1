package core_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core"
	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	"github.com/quaymaster/quaymaster/core/coretest"
)

// gateSource refuses pods while the ConfigMap gate says so, keeps them on the node
// that it names, and refuses what cannot be: a is always written before b, so at no
// revision is b ahead. Work between the two reads gives the writer time.
const gateSource = `package gate

map(name) := quaymaster.get("configmaps", "default", name).data

deny contains "the gate is closed" if map("gate").closed == "true"

deny contains sprintf("torn: a %s, b %s", [a, b]) if {
	input.request.object.metadata.labels.torn
	a := map("a").n
	count([i | some i in numbers.range(1, 2000); i % 7 == 0]) == 285
	b := map("b").n
	to_number(a) < to_number(b)
}

filter contains "node(s) are not the gate's" if map("gate").node != input.node.metadata.name
`

const gateObjects = `apiVersion: policy.quaymaster.dev/v1alpha1
kind: Policy
metadata: {name: gate}
spec:
  engine: Rego
  source: {file: gate.rego}
  grants: {reads: [configmaps]}
  limits: {deadline: 1m}
  match: {rules: [{apiGroups: [""], resources: [pods], operations: [CREATE]}]}
---
apiVersion: policy.quaymaster.dev/v1alpha1
kind: Policy
metadata: {name: ungranted}
spec:
  engine: Rego
  source: {file: gate.rego}
---
apiVersion: scheduling.quaymaster.dev/v1alpha1
kind: SchedulerProfile
metadata: {name: default-scheduler}
spec:
  plugins:
    filter: {enabled: [{policy: gate}]}
`

// A policy that may read ConfigMaps decides by what they hold at the revision of
// the decision: a write that has been answered counts for the next request, and two
// reads of one decision are of one state, whatever is written between them.
func TestPolicyReadsTheStore(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"gate.rego": gateSource, "gate.yaml": gateObjects} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	e := coretest.Start(t, core.Options{PolicyDir: dir, Nodes: core.Nodes("node", 2)})
	var nodes *corev1.NodeList
	coretest.Eventually(t, "both nodes to join", func(ctx context.Context) (_ bool, err error) {
		nodes, err = e.Client().CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		return err == nil && len(nodes.Items) == 2, err
	})
	maps, pods := e.Client().CoreV1().ConfigMaps("default"), e.Client().CoreV1().Pods("default")
	put := func(ctx context.Context, name string, data map[string]string) error {
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
		_, err := maps.Update(ctx, m, metav1.UpdateOptions{})
		return err
	}
	for _, name := range []string{"gate", "a", "b"} {
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"n": "0"}}
		if _, err := maps.Create(t.Context(), m, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	pod := func(name string, labels map[string]string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "web"}}}}
	}

	// what a policy may not read keeps it out of force
	coretest.Eventually(t, "the policy without a grant is refused", func(ctx context.Context) (bool, error) {
		p, err := e.API().Policies.Get(ctx, "ungranted", metav1.GetOptions{})
		return err == nil && p.Status.LastError != nil && strings.Contains(p.Status.LastError.Message, "spec.grants.reads"), err
	})

	coretest.Eventually(t, "the other is in force", func(ctx context.Context) (bool, error) {
		p, err := e.API().Policies.Get(ctx, "gate", metav1.GetOptions{})
		return err == nil && p.Status.ActiveGeneration > 0, err
	})

	if err := put(t.Context(), "gate", map[string]string{"node": nodes.Items[0].Name}); err != nil {
		t.Fatal(err)
	}
	foreseen(t, e, pod("probe", nil), func(d *decisionv1alpha1.Decision) bool {
		return d.Node == nodes.Items[0].Name && len(d.Nodes) == 2 && len(d.Policies) == 1
	})
	for i, node := range append(nodes.Items, nodes.Items...) {
		if err := put(t.Context(), "gate", map[string]string{"closed": "true", "node": node.Name}); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprint("web", i)
		if _, err := pods.Create(t.Context(), pod(name, nil), metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "the gate is closed") {
			t.Fatalf("while the gate is closed: %v", err)
		}
		if err := put(t.Context(), "gate", map[string]string{"closed": "false", "node": node.Name}); err != nil {
			t.Fatal(err)
		}
		if _, err := pods.Create(t.Context(), pod(name, nil), metav1.CreateOptions{}); err != nil {
			t.Fatalf("after it has opened: %v", err)
		}
		coretest.Eventually(t, "the pod is bound", func(ctx context.Context) (bool, error) {
			p, err := pods.Get(ctx, name, metav1.GetOptions{})
			if err == nil && p.Spec.NodeName != "" && p.Spec.NodeName != node.Name {
				return false, fmt.Errorf("the pod is on %s, the gate's node is %s", p.Spec.NodeName, node.Name)
			}
			return err == nil && p.Spec.NodeName != "", err
		})
	}

	ctx, cancel := context.WithCancel(t.Context())
	var writer sync.WaitGroup
	var written atomic.Int64
	writer.Go(func() {
		for ctx.Err() == nil {
			n := fmt.Sprint(written.Add(1))
			for _, name := range []string{"a", "b"} {
				if err := put(t.Context(), name, map[string]string{"n": n}); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for i := 0; (i < 100 || written.Load() < 20) && !t.Failed(); i++ { // with fewer writes the reads have nothing to tell apart
		_, err := pods.Create(t.Context(), pod(fmt.Sprint("torn", i), map[string]string{"torn": "no"}), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			t.Errorf("request %d: %v", i, err)
			break
		}
	}
	cancel()
	writer.Wait()
}
