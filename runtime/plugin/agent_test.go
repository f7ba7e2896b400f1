package plugin_test

import (
	"context"
	"fmt"
	"io"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/quaymaster/quaymaster/runtime/agent"
	"github.com/quaymaster/quaymaster/runtime/agent/apitest"
)

// TestAgentSeesPodsAfterItsBackendWasKilled runs a real WASI pod by an agent over
// a backend process, kills that process, and goes on with the pod.
func TestAgentSeesPodsAfterItsBackendWasKilled(t *testing.T) {
	dir := t.TempDir()
	wasmDir := filepath.Join(dir, "wasm")
	importHello(t, wasmDir)
	s := start(t, "wasm", wasmDir, nil)
	client := apitest.New(&v1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "settings", Namespace: "default"}, Data: map[string]string{"colour": "blue"},
	})
	informer := agent.NodePods(client, "n1")
	pods, err := agent.NewDispatcher(informer)
	if err != nil {
		t.Fatal(err)
	}
	a, err := agent.New(agent.Options{NodeName: "n1", Client: client, Backend: s.Backend(), Pods: pods, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { informer.RunWithContext(ctx); ended <- nil }()
	go func() { ended <- a.Run(ctx) }()
	defer func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}()
	get := func(name string) *v1.Pod {
		t.Helper()
		pod, err := client.CoreV1().Pods("default").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		return pod
	}
	until := func(name, what string, cond func(*v1.Pod) bool) *v1.Pod {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			pod := get(name)
			if cond(pod) {
				return pod
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s %s; the status is %+v", name, what, pod.Status)
			}
		}
	}
	create := func(name, image string, args ...string) {
		t.Helper()
		ref := v1.LocalObjectReference{Name: "settings"}
		pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name)}, Spec: v1.PodSpec{
			NodeName: "n1", RestartPolicy: v1.RestartPolicyNever,
			Containers: []v1.Container{{
				Name: "c", Image: image, Args: args,
				Env: []v1.EnvVar{
					{Name: "COLOUR", ValueFrom: &v1.EnvVarSource{ConfigMapKeyRef: &v1.ConfigMapKeySelector{LocalObjectReference: ref, Key: "colour"}}},
					{Name: "NAME", ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
				},
				VolumeMounts: []v1.VolumeMount{{Name: "settings", MountPath: "/etc/settings"}, {Name: "scratch", MountPath: "/tmp"}},
			}},
			Volumes: []v1.Volume{
				{Name: "settings", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: ref}}},
				{Name: "scratch", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
			},
		}}
		if _, err := client.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	running := func(p *v1.Pod) bool { return p.Status.Phase == v1.PodRunning }
	api := httptest.NewServer(a.Handler())
	defer api.Close()
	log := func(name string) string {
		t.Helper()
		r, err := api.Client().Get(api.URL + "/containerLogs/default/" + name + "/c")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}

	// A program that ends: its log, its exit code, its volumes.
	create("short", "hello", "--env", "COLOUR", "--env", "NAME", "--cat", "/etc/settings/colour", "--write", "/tmp/x", "--args", "--exit", "3")
	pod := until("short", "does not fail", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
	if end := pod.Status.ContainerStatuses[0].State.Terminated; end == nil || end.ExitCode != 3 || end.Reason != "Error" || !strings.HasPrefix(end.ContainerID, "wasm://") {
		t.Errorf("how it ended: %+v", pod.Status.ContainerStatuses)
	}
	for _, want := range []string{"hello from hello\n", "COLOUR=blue\n", "NAME=short\n", "\nblue", "wrote /tmp/x\n", "args: hello --env COLOUR"} {
		if got := log("short"); !strings.Contains(got, want) {
			t.Errorf("the log has no %q:\n%s", want, got)
		}
	}

	// A program that goes on while its backend is killed.
	create("long", "hello", "--sleep", "600000")
	before := until("long", "does not run", running).Status.ContainerStatuses[0]
	old := kill(t, s)
	for pid, _ := s.PID(); pid == old || pid == 0; pid, _ = s.PID() {
		time.Sleep(time.Millisecond)
	}
	create("after", "hello", "--lines", "2") // the agent works with the new process
	until("after", "does not succeed", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodSucceeded })
	if after := get("long").Status.ContainerStatuses[0]; after.ContainerID != before.ContainerID || after.RestartCount != 0 || after.State.Running == nil {
		t.Errorf("the pod was harmed: before %+v, after %+v", before, after)
	}
	until("long", "does not say its one line", func(*v1.Pod) bool { return log("long") == "hello from hello\n" })

	// An image that is not there.
	create("nowhere", "registry.example/none:1")
	pod = until("nowhere", "does not wait", func(p *v1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil && p.Status.ContainerStatuses[0].State.Waiting.Reason == "ErrImagePull"
	})
	if m := pod.Status.ContainerStatuses[0].State.Waiting.Message; !strings.Contains(m, "quaymaster image import") {
		t.Errorf("message %q", m)
	}

	for _, name := range []string{"short", "long", "after", "nowhere"} {
		if err := client.CoreV1().Pods("default").Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	left := func() string {
		var out []string
		for _, pattern := range []string{"wasm/containers/*", "wasm/sandboxes/*", "pods/*", "log/*"} {
			names, err := filepath.Glob(filepath.Join(dir, pattern))
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, names...)
		}
		return strings.Join(out, "\n")
	}
	for deadline := time.Now().Add(time.Minute); left() != ""; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(fmt.Sprint("left behind:\n", left()))
		}
	}
}
