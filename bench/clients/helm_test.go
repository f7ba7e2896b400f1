package clients

import (
	"regexp"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestHelm takes a release with a CRD, hooks and a workload through its life.
func TestHelm(t *testing.T) {
	t.Parallel()
	engine := startEngine(t)
	helm := engine.program(t, build(t, ".", "helm.sh/helm/v3/cmd/helm"))
	for _, s := range []step{
		{command: "lint testdata/chart", want: `0 chart\(s\) failed`},
		{command: "install web testdata/chart --wait --timeout 90s", want: `STATUS: deployed`},
		{command: "list -o json", want: `"revision":"1"`},
		{command: "status web", want: `STATUS: deployed`},
		{command: "get manifest web", want: `replicas: 2`},
		{command: "upgrade web testdata/chart --set replicas=3,image=web:2 --wait --timeout 90s", want: `REVISION: 2`},
		{command: "history web", want: `(?s)superseded.*deployed`},
		{command: "rollback web 1 --wait --timeout 90s", want: `Rollback was a success`},
		{command: "get values web --all", want: `replicas: 2`},
		{command: "upgrade web testdata/chart --set replicas=0", want: `spec.size.*should be greater than or equal to 1`, fails: true},
		{command: "install web testdata/chart", want: `cannot re-use a name`, fails: true},
	} {
		out, err := helm.run(t, strings.Fields(s.command)...)
		if (err != nil) != s.fails || !regexp.MustCompile(s.want).MatchString(out) {
			t.Fatalf("helm %s: %v, want %q in\n%s", s.command, err, s.want, out)
		}
	}
	ctx := t.Context()
	web, err := engine.Client().AppsV1().Deployments("default").Get(ctx, "web", metav1.GetOptions{})
	if err != nil || web.Spec.Template.Spec.Containers[0].Image != "web:1" {
		t.Fatalf("after the rollback %+v, %v", web, err)
	}
	for _, hook := range []string{"web-pre-install", "web-post-upgrade"} {
		if job, err := engine.Client().BatchV1().Jobs("default").Get(ctx, hook, metav1.GetOptions{}); err != nil || job.Status.Succeeded != 1 {
			t.Errorf("hook %s: %+v, %v", hook, job, err)
		}
	}
	if out, err := helm.run(t, "uninstall", "web", "--wait", "--timeout", "90s"); err != nil || !strings.Contains(out, "uninstalled") {
		t.Fatalf("uninstall: %v\n%s", err, out)
	}
	if _, err := engine.Client().AppsV1().Deployments("default").Get(ctx, "web", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the deployment of an uninstalled release: %v", err)
	}
}
