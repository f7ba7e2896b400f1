package core_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/quaymaster/quaymaster/core"
	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	"github.com/quaymaster/quaymaster/core/coretest"
	"github.com/quaymaster/quaymaster/policies/rego/regotest"
)

// teamsBundle mutates, validates, and looks at the whole fleet at once, with data
// of its own.
var teamsBundle = map[string]string{
	".manifest": `{"roots": ["teams", "lib", "known"]}`,
	"data.json": `{"known": ["red", "blue"]}`,
	"lib.rego":  "package lib\n\nknown(team) if team in data.known\n",
	"teams.rego": `package teams

import data.lib

patch contains {"op": "add", "path": "/metadata/labels/team", "value": "red"} if not input.request.object.metadata.labels.team

deny contains sprintf("no such team: %s", [team]) if {
	team := input.request.object.metadata.labels.team
	not lib.known(team)
}

filters := {name: {"node(s) were not the emptiest of the team's"} |
	some name, _ in input.nodes
	not name in emptiest
}

own contains name if {
	some name, node in input.nodes
	node.metadata.labels.team == input.pod.metadata.labels.team
}

least := min([input.requested[name].pods | some name in own])

emptiest contains name if {
	some name in own
	input.requested[name].pods == least
}
`,
}

const regoObjects = `apiVersion: policy.quaymaster.dev/v1alpha1
kind: Policy
metadata: {name: %s}
spec:
  engine: Rego
  source: {file: %s}
  limits: {deadline: 1m}
  match: {rules: [{apiGroups: [""], resources: [%s], operations: [CREATE]}]}
---
`

const teamsProfile = `apiVersion: scheduling.quaymaster.dev/v1alpha1
kind: SchedulerProfile
metadata: {name: default-scheduler}
spec:
  plugins:
    filter: {enabled: [{policy: teams}]}
`

// What OPA offers a policy works on a server: a bundle with roots, data and
// libraries mutates, validates and filters the whole fleet; what OPA compiled
// decides beside it; what reaches for the network is refused.
func TestRegoOnTheServer(t *testing.T) {
	bundle := func(files map[string]string) string {
		data, err := regotest.Bundle(files)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	compiled, err := regotest.Build(map[string]string{"names.rego": "package names\n\ndeny contains \"short names only\" if count(input.request.object.metadata.name) > 8\n"}, "names/deny")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := map[string]string{
		"teams.tar.gz": bundle(teamsBundle), "names.tar.gz": string(compiled), "profile.yaml": teamsProfile,
		"network.rego": "package network\n\ndeny contains \"x\" if http.send({\"method\": \"GET\", \"url\": \"http://127.0.0.1:1\"}).status_code == 200\n",
		"policies.yaml": fmt.Sprintf(regoObjects, "teams", "teams.tar.gz", "pods") + fmt.Sprintf(regoObjects, "names", "names.tar.gz", "configmaps") +
			fmt.Sprintf(regoObjects, "network", "network.rego", "secrets"),
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	nodes := core.Nodes("node", 4)
	e := coretest.Start(t, core.Options{PolicyDir: dir, Nodes: nodes})
	for i, node := range nodes {
		patch := fmt.Appendf(nil, `{"metadata":{"labels":{"team":%q}}}`, []string{"red", "blue"}[i%2])
		coretest.Eventually(t, "the node is there", func(ctx context.Context) (bool, error) {
			_, err := e.Client().CoreV1().Nodes().Patch(ctx, node.Name, types.MergePatchType, patch, metav1.PatchOptions{})
			if apierrors.IsNotFound(err) {
				return false, nil
			}
			return true, err
		})
	}
	for _, name := range []string{"teams", "names"} {
		coretest.Eventually(t, name+" is in force", func(ctx context.Context) (bool, error) {
			p, err := e.API().Policies.Get(ctx, name, metav1.GetOptions{})
			if err == nil && p.Status.LastError != nil {
				return false, fmt.Errorf("%s: %s", p.Status.LastError.Step, p.Status.LastError.Message)
			}
			return err == nil && p.Status.ActiveGeneration > 0, err
		})
	}
	coretest.Eventually(t, "the network is refused", func(ctx context.Context) (bool, error) {
		p, err := e.API().Policies.Get(ctx, "network", metav1.GetOptions{})
		return err == nil && p.Status.LastError != nil && strings.Contains(p.Status.LastError.Message, "spec.grants.network"), err
	})

	pods := e.Client().CoreV1().Pods("default")
	create := func(name string, labels map[string]string) (*corev1.Pod, error) {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "web"}}}}
		return pods.Create(t.Context(), p, metav1.CreateOptions{})
	}
	probe := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "probe", Labels: map[string]string{"team": "red"}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "web"}}}}
	red := []string{nodes[0].Name, nodes[2].Name}
	foreseen(t, e, probe, func(d *decisionv1alpha1.Decision) bool {
		return slices.Contains(red, d.Node) && slices.Contains(red, d.RunnerUp) && len(d.Nodes) == len(nodes)
	})
	if _, err := create("green", map[string]string{"team": "green"}); err == nil || !strings.Contains(err.Error(), "no such team: green") {
		t.Errorf("an unknown team: %v", err)
	}
	taken := map[string]int{}
	for i := range 4 {
		name := fmt.Sprint("web", i)
		pod, err := create(name, map[string]string{"app": "web"})
		if err != nil {
			t.Fatal(err)
		}
		if pod.Labels["team"] != "red" {
			t.Fatalf("labels %v", pod.Labels)
		}
		coretest.Eventually(t, name+" is bound", func(ctx context.Context) (bool, error) {
			p, err := pods.Get(ctx, name, metav1.GetOptions{})
			if err == nil && p.Spec.NodeName != "" {
				taken[p.Spec.NodeName]++
				return true, nil
			}
			return false, err
		})
	}
	for i, node := range nodes { // two each for the nodes of the red team: the emptiest first
		if want := 2 * ((i + 1) % 2); taken[node.Name] != want {
			t.Errorf("pods by node %v", taken)
		}
	}

	maps := e.Client().CoreV1().ConfigMaps("default")
	if _, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "long-winded"}}, metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "short names only") {
		t.Errorf("a long name: %v", err)
	}
	if _, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "short"}}, metav1.CreateOptions{}); err != nil {
		t.Error(err)
	}
}
