package volume_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/runtime/agent/volume"
)

func same(s string) string { return s }

func TestVolumes(t *testing.T) {
	client := fake.NewClientset(
		&v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "m", Namespace: "ns"}, Data: map[string]string{"a": "1", "b": "2"}},
		&v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "ns"}, Data: map[string][]byte{"key": []byte("hidden")}},
	)
	client.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		return true, &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{Token: "token of " + a.(clienttesting.CreateActionImpl).Name}}, nil
	})
	dir := t.TempDir()
	m := volume.New(volume.Options{Dir: dir, Client: client, NodeName: "n1", Clock: clock.RealClock{}})
	yes := true
	ref := func(name string) v1.LocalObjectReference { return v1.LocalObjectReference{Name: name} }
	pod := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u", Labels: map[string]string{"x": "y", "a": "b"}},
		Spec: v1.PodSpec{ServiceAccountName: "sa", Volumes: []v1.Volume{
			{Name: "empty", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
			{Name: "map", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: ref("m")}}},
			{Name: "part", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: ref("m"), Items: []v1.KeyToPath{{Key: "b", Path: "deep/er"}}}}},
			{Name: "maybe", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "none", Optional: &yes}}},
			{Name: "all", VolumeSource: v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{
				{Secret: &v1.SecretProjection{LocalObjectReference: ref("s")}},
				{ServiceAccountToken: &v1.ServiceAccountTokenProjection{Path: "token"}},
				{DownwardAPI: &v1.DownwardAPIProjection{Items: []v1.DownwardAPIVolumeFile{
					{Path: "labels", FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
					{Path: "one", FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.labels['x']"}},
				}}},
			}}}},
		}},
	}
	if err := m.Setup(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(dir, "pods", "u", "volumes")
	for name, want := range map[string]string{
		"map/a": "1", "map/b": "2", "part/deep/er": "2", "all/key": "hidden", "all/token": "token of sa", "all/labels": "a=\"b\"\nx=\"y\"", "all/one": "y",
	} {
		if got, err := os.ReadFile(filepath.Join(base, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	if err := os.Symlink("/", filepath.Join(base, "empty", "out")); err != nil {
		t.Fatal(err)
	}
	mounts, err := m.Mounts(pod, &v1.Container{Name: "c", VolumeMounts: []v1.VolumeMount{
		{Name: "empty", MountPath: "/e"}, {Name: "map", MountPath: "/m"}, {Name: "empty", MountPath: "/sub", SubPath: "new/folder", ReadOnly: true},
	}}, same)
	if err != nil {
		t.Fatal(err)
	}
	if len(mounts) != 3 || mounts[0].Readonly || !mounts[1].Readonly || !mounts[2].Readonly || mounts[2].HostPath != filepath.Join(base, "empty", "new", "folder") {
		t.Errorf("mounts %v", mounts)
	}
	for _, sub := range []string{"../map", "/etc", "out/etc", "a/../../.."} {
		if got, err := m.Mounts(pod, &v1.Container{Name: "c", VolumeMounts: []v1.VolumeMount{{Name: "empty", MountPath: "/e", SubPath: sub}}}, same); err == nil {
			t.Errorf("sub path %s leads to %v", sub, got)
		}
	}
	if _, err := m.Mounts(pod, &v1.Container{VolumeMounts: []v1.VolumeMount{{Name: "none"}}}, same); err == nil {
		t.Error("a mount of no volume")
	}
	if err := m.TearDown("u"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(base); !os.IsNotExist(err) {
		t.Errorf("volumes are left: %v", err)
	}
}

func TestVolumesThatCannotBe(t *testing.T) {
	client := fake.NewClientset(&v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "m", Namespace: "ns"}, Data: map[string]string{"a": "1"}})
	dir := t.TempDir()
	m := volume.New(volume.Options{Dir: dir, Client: client, Clock: clock.RealClock{}})
	isDir := v1.HostPathDirectory
	ref := v1.LocalObjectReference{Name: "m"}
	for want, source := range map[string]v1.VolumeSource{
		`configmaps "none" not found`:    {ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "none"}}},
		`secrets "none" not found`:       {Secret: &v1.SecretVolumeSource{SecretName: "none"}},
		"references non-existent":        {ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: ref, Items: []v1.KeyToPath{{Key: "z", Path: "z"}}}},
		"escapes":                        {ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: ref, Items: []v1.KeyToPath{{Key: "a", Path: "../../../../out"}}}},
		"hostPath type check failed":     {HostPath: &v1.HostPathVolumeSource{Path: filepath.Join(dir, "none"), Type: &isDir}},
		"are not supported on this node": {NFS: &v1.NFSVolumeSource{}},
	} {
		pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", UID: "u"}, Spec: v1.PodSpec{Volumes: []v1.Volume{{Name: "v", VolumeSource: source}}}}
		if err := m.Setup(t.Context(), pod); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, have %v", want, err)
		}
	}
}
