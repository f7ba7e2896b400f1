package core_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
	"github.com/quaymaster/quaymaster/core/storage"
)

func forked(t testing.TB, e *core.Engine, moment core.Moment, options core.Options) *core.Engine {
	t.Helper()
	f, err := e.Fork(t.Context(), moment, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, f) })
	return f
}

func closed(t testing.TB, e *core.Engine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if err := e.Close(ctx); err != nil {
		t.Error(err)
	}
}

func texts(t *testing.T, e *core.Engine) string {
	t.Helper()
	list, err := e.Client().CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range list.Items {
		if text := m.Data["text"]; text != "" {
			out = append(out, m.Name+"="+text)
		}
	}
	return strings.Join(out, " ")
}

func TestFork(t *testing.T) {
	embedded(t)
	ctx := t.Context()
	e := coretest.Start(t, core.Options{Nodes: core.Nodes("node", 2)})
	maps := e.Client().CoreV1().ConfigMaps("default")
	made, err := maps.Create(ctx, setting("a", "then"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	then := core.Revision(revisionOf(t, made))
	made.Data["text"] = "now"
	if _, err := maps.Update(ctx, made, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}

	past, present := forked(t, e, then, core.Options{}), forked(t, e, core.Moment{}, core.Options{})
	if got := texts(t, past); got != "a=then" {
		t.Errorf("the fork of the past has %s", got)
	}
	if got := texts(t, present); got != "a=now" {
		t.Errorf("the fork of the present has %s", got)
	}
	for i, f := range []*core.Engine{past, present, e} {
		if _, err := f.Client().CoreV1().ConfigMaps("default").Create(ctx, setting("own", fmt.Sprint(i)), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	deeper := forked(t, present, core.Moment{}, core.Options{})
	if err := deeper.Client().CoreV1().ConfigMaps("default").Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, check := range map[string]struct {
		*core.Engine
		want string
	}{"past": {past, "a=then own=0"}, "present": {present, "a=now own=1"}, "parent": {e, "a=now own=2"}, "deeper": {deeper, "own=1"}} {
		if got := texts(t, check.Engine); got != check.want {
			t.Errorf("%s has %s, not %s", name, got, check.want)
		}
	}
	// Admission is in force.
	if _, err := past.Client().CoreV1().ConfigMaps("nowhere").Create(ctx, setting("a", ""), metav1.CreateOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("in a namespace that is not there: %v", err)
	}
	if _, err := past.Kubeconfig(); err == nil {
		t.Error("there is a kubeconfig without a port")
	}

	// A fork that works: what would a Deployment do?
	what := forked(t, e, core.Moment{}, core.Options{Nodes: core.Nodes("node", 2), Listen: "127.0.0.1:0"})
	if err := what.Start(ctx); err != nil {
		t.Fatal(err)
	}
	replicas := int32(3)
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.DeploymentSpec{Replicas: &replicas,
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}}}
	if _, err := what.Client().AppsV1().Deployments("default").Create(ctx, deployment, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	coretest.Eventually(t, "the fork to run the pods", func(ctx context.Context) (bool, error) {
		d, err := what.Client().AppsV1().Deployments("default").Get(ctx, "web", metav1.GetOptions{})
		return err == nil && d.Status.AvailableReplicas == 3, err
	})
	if code, _ := get(t, overHTTPS(t, what), "/api/v1/namespaces/default/pods"); code != 200 {
		t.Errorf("its port answers %d", code)
	}
	if pods, err := e.Client().CoreV1().Pods("default").List(ctx, metav1.ListOptions{}); err != nil || len(pods.Items) != 0 {
		t.Errorf("the parent has %d pods, %v", len(pods.Items), err)
	}
	if err := what.Start(ctx); err == nil {
		t.Error("it started twice")
	}
}

func TestForkRefusals(t *testing.T) {
	embedded(t)
	e := coretest.Start(t, core.Options{})
	for _, test := range []struct {
		moment  core.Moment
		options core.Options
		want    string
	}{
		{core.Revision(1 << 40), core.Options{}, "can be read"},
		{core.Time(time.Now().Add(-time.Hour)), core.Options{}, "can be read"},
		{core.Moment{}, core.Options{DataDir: t.TempDir()}, "a fork is in memory"},
		{core.Moment{}, core.Options{Listen: "nonsense"}, "is not host:port"},
	} {
		if f, err := e.Fork(t.Context(), test.moment, test.options); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v, %v, not %q", f, err, test.want)
		}
	}
}

// Forks are gone without a trace when they are closed, also those that nobody
// closed when the engine ends.
func TestForksLeaveNothing(t *testing.T) {
	embedded(t)
	e, err := core.New(core.Options{DataDir: t.TempDir()}) // nothing of it runs but its store
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, e)
	before := goleak.IgnoreCurrent()
	for range 3 {
		f, err := e.Fork(t.Context(), core.Moment{}, core.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Client().CoreV1().ConfigMaps("default").Create(t.Context(), setting("a", "x"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		closed(t, f)
	}
	goleak.VerifyNone(t, before)
	f, err := e.Fork(t.Context(), core.Moment{}, core.Options{})
	if err != nil {
		t.Fatal(err)
	}
	closed(t, e)
	select {
	case <-f.Done():
	case <-time.After(3 * time.Minute):
		t.Fatal("the fork outlived its engine")
	}
	if _, err := f.Client().CoreV1().ConfigMaps("default").Get(t.Context(), "a", metav1.GetOptions{}); err == nil {
		t.Error("a fork of a closed engine answers")
	}
	if err := f.Close(t.Context()); err != nil && !errors.Is(err, storage.ErrClosed) {
		t.Error(err)
	}
}
