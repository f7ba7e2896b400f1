package main

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
)

func TestHistoryCommands(t *testing.T) {
	ctx := t.Context()
	e := coretest.Start(t, core.Options{Listen: "127.0.0.1:0"})
	kubeconfig, err := e.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := writeSecret(path, kubeconfig); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", path)
	must := func(args ...string) string {
		t.Helper()
		out, err := run(t, args...)
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return out
	}
	says := func(out string, patterns ...string) {
		t.Helper()
		for _, p := range patterns {
			if !regexp.MustCompile(p).MatchString(out) {
				t.Errorf("%q is not in\n%s", p, out)
			}
		}
	}
	refused := func(want string, args ...string) {
		t.Helper()
		if out, err := run(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v\n%s\nwant %q", args, err, out, want)
		}
	}
	maps := e.Client().CoreV1().ConfigMaps("default")
	made, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings"}, Data: map[string]string{"colour": "red", "size": "1"}}, metav1.CreateOptions{FieldManager: "setup"})
	if err != nil {
		t.Fatal(err)
	}
	made.Data["colour"] = "blue"
	changed, err := maps.Update(ctx, made, metav1.UpdateOptions{FieldManager: "painter"})
	if err != nil {
		t.Fatal(err)
	}
	says(must("history", "cm", "settings"), `(?m)^\d+ +\S+ \S+ +created$`, `painter +\.data\.colour: red → blue`)
	says(must("history", "configmap/settings", "--field", ".data", "--limit", "1", "-o", "json"), `(?s)^\[\s*\{\s*"revision": `+changed.ResourceVersion, `"painter"`)
	says(must("diff", "--from", made.ResourceVersion), `(?m)^configmaps default/settings changed$`, `^  .*\.data\.colour: red → blue  \(painter\)|\n  \.data\.colour: red → blue  \(painter\)`)
	says(must("diff", "--from", changed.ResourceVersion, "--to", made.ResourceVersion, "configmaps", "default/settings", "-o", "json"), `"path":"\.data\.colour","old":"blue","new":"red"`)
	says(must("diff", "--from", made.ResourceVersion, "--field", ".status", "configmaps", "default/settings"), `nothing differs between revision `+made.ResourceVersion+` and \d+`)
	refused("it exists", "undelete", "cm", "settings")
	if err := maps.Delete(ctx, "settings", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	says(must("undelete", "cm", "settings", "--dry-run"), `would be made`)
	says(must("undelete", "cm", "settings", "--revision", made.ResourceVersion), `configmaps default/settings made as it was at revision `+made.ResourceVersion)
	again, err := maps.Get(ctx, "settings", metav1.GetOptions{})
	if err != nil || again.Data["colour"] != "red" || again.UID == made.UID {
		t.Errorf("%v, %v", again, err)
	}
	says(must("history", "cm", "settings"), `deleted\n\d+ +\S+ \S+ +created`)

	// A ReplicaSet whose Deployment is gone comes back without it.
	yes := true
	set := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: "web", OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: "settings", UID: made.UID, Controller: &yes}}},
		Spec: appsv1.ReplicaSetSpec{Replicas: new(int32), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}}}
	if _, err := e.Client().AppsV1().ReplicaSets("default").Create(ctx, set, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := e.Client().AppsV1().ReplicaSets("default").Delete(ctx, "web", metav1.DeleteOptions{}); err != nil && !strings.Contains(err.Error(), "not found") {
		t.Fatal(err) // the garbage collector may have been faster
	}
	says(must("undelete", "rs", "web"), `its owner ConfigMap settings is gone`, `replicasets default/web made`)

	refused("no moment", "diff", "--from", "yesterday")
	refused("can be read", "diff", "--from", "24h")
	refused("can be read", "diff", "--from", "2d")
	refused("which one?", "history", "cm")
	refused(`there is no kind "unicorn"; quaymaster kubectl api-resources lists`, "history", "unicorn", "x")
	refused("can be read", "history", "cm", "never")
	if err := maps.Delete(ctx, "settings", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	refused("had no state at revision 1", "undelete", "--revision", "1", "cm", "settings")
}
