package main

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/core/coretest"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
)

// TestNodeSwitchOfContainers changes a node with real containers from containerd to none and back. A pod with an emptyDir holds
// it up until its loss is asked for; each runtime is left without a pod; a pod of a controller runs on on the other.
func TestNodeSwitchOfContainers(t *testing.T) {
	d := containerdtest.Start(t)
	n := newNodeOn(t, d, "--runtime", "containerd", "--runtime-address", d.Address())
	labels := map[string]string{"app": "web"}
	grace := int64(1)
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			Volumes:                       []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
			Containers: []corev1.Container{{Name: "c", Image: d.Busybox, Command: []string{"sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"},
				VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}}},
		}},
	}}
	if _, err := n.client.AppsV1().Deployments("default").Create(t.Context(), deployment, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	runsOn := func(runtime string) {
		t.Helper()
		coretest.Eventually(t, "the pod to run on "+runtime, func(ctx context.Context) (bool, error) {
			list, err := n.client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=web"})
			if err != nil || len(list.Items) != 1 || list.Items[0].DeletionTimestamp != nil || list.Items[0].Status.Phase != corev1.PodRunning {
				return false, err
			}
			return strings.HasPrefix(list.Items[0].Status.ContainerStatuses[0].ContainerID, runtime+"://"), nil
		})
	}
	runsOn("containerd")
	kubeconfig := filepath.Join(n.dir, "kubeconfig")
	change := func(args ...string) (string, error) {
		out, err := command(t.Context(), t, append([]string{"node", "switch", "n1", "--kubeconfig", kubeconfig, "--timeout", "3m", "--runtime"}, args...)...).CombinedOutput()
		return string(out), err
	}
	if out, err := change("oci"); err == nil || !strings.Contains(out, "use --delete-emptydir-data to override): default/web-") {
		t.Fatalf("a pod with data is let go: %v, %s", err, out)
	}
	runsOn("containerd")
	if out, err := change("oci", "--delete-emptydir-data"); err != nil || !strings.Contains(out, "node n1: has runtime oci") {
		t.Fatalf("%v\n%s", err, out)
	}
	runsOn("runc")
	b, err := containerd.New(containerd.Options{Address: d.Address()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if left, err := b.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{}); err != nil || len(left.Items) > 0 {
		t.Errorf("containerd still has %v, %v", left, err)
	}
	address := "containerd@" + d.Address()
	if out, err := change(address, "--delete-emptydir-data"); err != nil || !strings.Contains(out, "node n1: has runtime "+address) {
		t.Fatalf("%v\n%s", err, out)
	}
	runsOn("containerd")
	if left := containerdtest.Commands("oci-shim"); len(left) > 0 {
		t.Errorf("shims of the runtime before run: %v", left)
	}
	if err := n.client.AppsV1().Deployments("default").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	n.gone()
}
