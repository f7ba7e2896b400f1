package apiserver_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Pods of one account have equal containers and volumes.
func TestTokenVolumesOfAnAccount(t *testing.T) {
	c := start(t, nil)
	if _, err := c.client.CoreV1().ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "other"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	made := func(name, account string, volumes ...corev1.Volume) *corev1.PodSpec {
		t.Helper()
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
			ServiceAccountName: account,
			Containers:         []corev1.Container{{Name: "a", Image: "x"}, {Name: "b", Image: "x", VolumeMounts: []corev1.VolumeMount{{Name: "own", MountPath: "/own"}}}},
			InitContainers:     []corev1.Container{{Name: "i", Image: "x"}},
			Volumes:            append(volumes, corev1.Volume{Name: "own", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})}}
		var out *corev1.Pod
		eventually(t, "the pod "+name, func() (err error) { // its service account may be late
			out, err = c.client.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{})
			return err
		})
		token := out.Spec.Volumes[len(out.Spec.Volumes)-1]
		if token.Projected == nil || !strings.HasPrefix(token.Name, "kube-api-access-") || len(token.Name) != len("kube-api-access-")+5 {
			t.Fatalf("%s: the token's volume: %+v", name, token)
		}
		for _, container := range append(out.Spec.InitContainers, out.Spec.Containers...) {
			if last := container.VolumeMounts[len(container.VolumeMounts)-1]; last.Name != token.Name || last.MountPath != "/var/run/secrets/kubernetes.io/serviceaccount" {
				t.Errorf("%s: container %s mounts %+v, not %s", name, container.Name, container.VolumeMounts, token.Name)
			}
		}
		return &out.Spec
	}
	token := func(spec *corev1.PodSpec) string { return spec.Volumes[len(spec.Volumes)-1].Name }
	first := token(made("a-1", ""))
	for what, differ := range map[string]bool{
		"of the same account": token(made("a-2", "default")) != first,
		"of another":          token(made("b-1", "other")) == first,
	} {
		if differ {
			t.Errorf("volumes' names of pods %s", what)
		}
	}
	// A volume with that prefix is taken for the token's, as by upstream.
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "there"},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Image: "x"}}, Volumes: []corev1.Volume{{Name: "kube-api-access-mine", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}}}
	out, err := c.client.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Spec.Volumes) != 1 || out.Spec.Containers[0].VolumeMounts[0].Name != "kube-api-access-mine" {
		t.Errorf("with a volume of that prefix: %+v, %+v", out.Spec.Volumes, out.Spec.Containers[0].VolumeMounts)
	}
}
