package core_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/quaymaster/quaymaster/core"
	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/core/coretest"
	"github.com/quaymaster/quaymaster/policies/author"
	"github.com/quaymaster/quaymaster/policies/rego"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

// toolchains by language of a policy.
var toolchains = map[string][]string{
	"go": nil, "rego": nil, "c": {"clang-19", "wasm-ld-19"}, "rust": {"/usr/bin/rustc", "wasm-ld-14"}, "assemblyscript": {"node", "asc"},
}

// TestFromTemplateToScheduler: what `policy new` writes is built, passes its
// tests, is put in force by an engine, and keeps a node for its team.
func TestFromTemplateToScheduler(t *testing.T) {
	asc, err := filepath.Abs("../sdk/assemblyscript/node_modules/.bin")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", os.Getenv("PATH")+string(os.PathListSeparator)+asc)
	for _, lang := range author.Languages() {
		t.Run(lang, func(t *testing.T) {
			for _, tool := range toolchains[lang] {
				if _, err := exec.LookPath(tool); err != nil {
					if os.Getenv("QUAYMASTER_REQUIRE_TOOLCHAINS") != "" {
						t.Fatal(err)
					}
					t.Skip(err)
				}
			}
			engine := wasm.New(wasm.Options{})
			defer engine.Close()
			tools := author.Engines{policyv1alpha1.EngineWasm: engine, policyv1alpha1.EngineRego: rego.New()}
			dir := filepath.Join(t.TempDir(), "teams")
			if _, err := author.New(lang, dir); err != nil {
				t.Fatal(err)
			}
			program, _, err := tools.Build(t.Context(), dir)
			if err != nil {
				t.Fatal(err)
			}
			results, err := tools.Test(t.Context(), filepath.Join(dir, "tests.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range results {
				for _, f := range r.Failures {
					t.Error(f)
				}
			}
			watched := t.TempDir()
			for _, file := range []string{program, filepath.Join(dir, "policy.yaml")} {
				data, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(watched, filepath.Base(file)), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			e := coretest.Start(t, core.Options{PolicyDir: watched, Nodes: core.Nodes("node", 2)})
			label := []byte(`{"metadata":{"labels":{"team":"red"}}}`)
			var nodes *corev1.NodeList
			coretest.Eventually(t, "both nodes to join", func(ctx context.Context) (bool, error) {
				nodes, err = e.Client().CoreV1().Nodes().List(ctx, metav1.ListOptions{})
				return err == nil && len(nodes.Items) == 2, err
			})
			red, free := nodes.Items[0].Name, nodes.Items[1].Name
			if _, err := e.Client().CoreV1().Nodes().Patch(t.Context(), red, types.MergePatchType, label, metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
			pods := e.Client().CoreV1().Pods("default")
			for name, want := range map[string]string{"red": red, "blue": free} {
				pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"team": name}},
					Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "web"}}}}
				// The gate opens when the scheduler knows of both nodes, the label and the policy.
				foreseen(t, e, pod, func(d *decisionv1alpha1.Decision) bool {
					return d.Node == want && len(d.Nodes) == 2 && len(d.Policies) == 1
				})
				open(t, e, name)
				coretest.Eventually(t, "the pod is bound", func(ctx context.Context) (bool, error) {
					pod, err = pods.Get(ctx, name, metav1.GetOptions{})
					return err == nil && pod.Spec.NodeName != "", err
				})
				if pod.Spec.NodeName != want {
					t.Errorf("the pod of team %s is on %s, expected %s", name, pod.Spec.NodeName, want)
				}
			}
		})
	}
}

// BenchmarkGuest binds the pods of a Deployment on 100 simulated nodes with the
// scheduler's own NodeResourcesFit, and with the same as a guest in its place.
//
//	go test ./core -run '^$' -bench Guest -benchtime 1x
func BenchmarkGuest(b *testing.B) {
	replicas := int32(2000)
	if testing.Short() {
		replicas = 100
	}
	module, err := os.ReadFile("../wasm-plugins/c/node-resources-fit/node-resources-fit.wasm")
	if err != nil {
		b.Fatal(err)
	}
	const objects = `apiVersion: policy.quaymaster.dev/v1alpha1
kind: Policy
metadata: {name: fit}
spec: {engine: Wasm, source: {file: fit.wasm}}
---
apiVersion: scheduling.quaymaster.dev/v1alpha1
kind: SchedulerProfile
metadata: {name: default-scheduler}
spec:
  plugins:
    filter: {disabled: [{name: NodeResourcesFit}], enabled: [{policy: fit}]}
    score: {disabled: [{name: NodeResourcesFit}], enabled: [{policy: fit, weight: 1}]}
`
	for _, name := range []string{"native", "guest"} {
		b.Run(fmt.Sprintf("%s/pods=%d", name, replicas), func(b *testing.B) {
			for range b.N {
				options := core.Options{DataDir: b.TempDir(), Nodes: core.Nodes("node", 100)}
				if name == "guest" {
					options.PolicyDir = b.TempDir()
					for file, data := range map[string][]byte{"fit.wasm": module, "fit.yaml": []byte(objects)} {
						if err := os.WriteFile(filepath.Join(options.PolicyDir, file), data, 0o600); err != nil {
							b.Fatal(err)
						}
					}
				}
				e := coretest.Start(b, options)
				watch, err := e.Client().CoreV1().Pods("default").Watch(b.Context(), metav1.ListOptions{})
				if err != nil {
					b.Fatal(err)
				}
				begin, cpu := time.Now(), processTime()
				if _, err := e.Client().AppsV1().Deployments("default").Create(b.Context(), deployment("web", replicas), metav1.CreateOptions{}); err != nil {
					b.Fatal(err)
				}
				bound := map[string]bool{}
				for event := range watch.ResultChan() {
					if pod, ok := event.Object.(*corev1.Pod); ok && pod.Spec.NodeName != "" {
						if bound[pod.Name] = true; len(bound) == int(replicas) {
							break
						}
					}
				}
				watch.Stop()
				b.ReportMetric(time.Since(begin).Seconds(), "s-to-bound")
				b.ReportMetric((processTime()-cpu).Seconds()*1e3/float64(replicas), "cpu-ms/pod-bound")
				if err := e.Close(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
