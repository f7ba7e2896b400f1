package core_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/apiserver"
	"github.com/quaymaster/quaymaster/core/coretest"
)

// TestAuditHasWhatThePartsDo: controllers and agents of the process write by
// requests where an audit log is kept.
func TestAuditHasWhatThePartsDo(t *testing.T) {
	dir := t.TempDir()
	policy, log := filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "audit.log")
	if err := os.WriteFile(policy, []byte("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata, resources: [{group: \"\", resources: [pods, pods/status]}]}, {level: None}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := start(t, core.Options{Nodes: core.Nodes("node", 1), API: core.API{Audit: &apiserver.Audit{Policy: policy, Log: log}}})
	labels := map[string]string{"app": "web"}
	if _, err := e.Client().AppsV1().ReplicaSets("default").Create(t.Context(), &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.ReplicaSetSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	coretest.Eventually(t, "the pod's creation and its status in the log", func(context.Context) (bool, error) {
		content, err := os.ReadFile(log)
		created, reported := false, false
		for line := range bytes.Lines(content) {
			created = created || bytes.Contains(line, []byte(`"verb":"create"`)) && bytes.Contains(line, []byte(`"name":"web-`))
			reported = reported || bytes.Contains(line, []byte(`"subresource":"status"`)) && bytes.Contains(line, []byte(`"name":"web-`))
		}
		return created && reported, err
	})
}
