package volume_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"

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
	}}, false, same)
	if err != nil {
		t.Fatal(err)
	}
	if len(mounts) != 3 || mounts[0].Readonly || !mounts[1].Readonly || !mounts[2].Readonly || mounts[2].HostPath != filepath.Join(base, "empty", "new", "folder") {
		t.Errorf("mounts %v", mounts)
	}
	for _, sub := range []string{"../map", "/etc", "out/etc", "a/../../.."} {
		if got, err := m.Mounts(pod, &v1.Container{Name: "c", VolumeMounts: []v1.VolumeMount{{Name: "empty", MountPath: "/e", SubPath: sub}}}, false, same); err == nil {
			t.Errorf("sub path %s leads to %v", sub, got)
		}
	}
	if _, err := m.Mounts(pod, &v1.Container{VolumeMounts: []v1.VolumeMount{{Name: "none"}}}, false, same); err == nil {
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
		`configmap "none" not found`:     {ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "none"}}},
		`secret "none" not found`:        {Secret: &v1.SecretVolumeSource{SecretName: "none"}},
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

func TestUpdatesComeInOneStep(t *testing.T) {
	client := fake.NewClientset(&v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "m", Namespace: "ns"}, Data: map[string]string{"a": "1", "b": "1", "gone": "x"}})
	dir := t.TempDir()
	m := volume.New(volume.Options{Dir: dir, Client: client, Clock: clock.RealClock{}})
	mode := int32(0o400)
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", UID: "u"}, Spec: v1.PodSpec{Volumes: []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{
		ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "m"}, DefaultMode: &mode},
	}}}}}
	if err := m.Setup(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(dir, "pods", "u", "volumes", "v")
	if info, err := os.Stat(filepath.Join(at, "a")); err != nil || info.Mode().Perm() != 0o400 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	generation, err := os.Readlink(filepath.Join(at, "..data"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Refresh(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if again, _ := os.Readlink(filepath.Join(at, "..data")); again != generation {
		t.Error("what did not change was written again")
	}
	done := make(chan struct{})
	go func() { // a reader never sees one file new and the other old
		defer close(done)
		for range 2000 {
			now, err := os.Readlink(filepath.Join(at, "..data"))
			if err != nil {
				t.Error(err)
				return
			}
			a, errA := os.ReadFile(filepath.Join(at, now, "a"))
			b, errB := os.ReadFile(filepath.Join(at, now, "b"))
			if errA == nil && errB == nil && string(a) != string(b) {
				t.Errorf("a is %s, b is %s", a, b)
				return
			}
		}
	}()
	for _, value := range []string{"2", "3", "4"} {
		if _, err := client.CoreV1().ConfigMaps("ns").Update(t.Context(), &v1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: "m", Namespace: "ns"}, Data: map[string]string{"a": value, "b": value},
		}, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := m.Refresh(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(at, "a")); err != nil || string(got) != value {
			t.Errorf("%q, %v", got, err)
		}
	}
	<-done
	entries, err := os.ReadDir(at)
	if err != nil || len(entries) != 4 { // a, b, ..data and one generation
		t.Errorf("%v, %v", entries, err)
	}
}

func TestTokensAreRenewed(t *testing.T) {
	fakeClock := clocktesting.NewFakePassiveClock(time.Unix(1_700_000_000, 0))
	client := fake.NewClientset()
	asked := 0
	client.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		asked++
		return true, &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{
			Token: fmt.Sprint("token ", asked), ExpirationTimestamp: metav1.NewTime(fakeClock.Now().Add(time.Hour)),
		}}, nil
	})
	dir := t.TempDir()
	m := volume.New(volume.Options{Dir: dir, Client: client, Clock: fakeClock})
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", UID: "u"}, Spec: v1.PodSpec{Volumes: []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{
		Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{{ServiceAccountToken: &v1.ServiceAccountTokenProjection{Path: "token"}}}},
	}}}}}
	for _, test := range []struct {
		after time.Duration
		want  string
	}{{0, "token 1"}, {47 * time.Minute, "token 1"}, {2 * time.Minute, "token 2"}, {time.Minute, "token 2"}} {
		fakeClock.SetTime(fakeClock.Now().Add(test.after))
		if err := m.Setup(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "pods", "u", "volumes", "v", "token")); err != nil || string(got) != test.want {
			t.Errorf("%q, %v; want %q", got, err, test.want)
		}
	}
}

func TestClaims(t *testing.T) {
	dir := t.TempDir()
	local := filepath.Join(dir, "disk")
	if err := os.Mkdir(local, 0o700); err != nil {
		t.Fatal(err)
	}
	claim := func(name, pv string, phase v1.PersistentVolumeClaimPhase) *v1.PersistentVolumeClaim {
		return &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: types.UID(name)},
			Spec: v1.PersistentVolumeClaimSpec{VolumeName: pv}, Status: v1.PersistentVolumeClaimStatus{Phase: phase}}
	}
	pv := func(name, claim string, source v1.PersistentVolumeSource) *v1.PersistentVolume {
		return &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1.PersistentVolumeSpec{
			PersistentVolumeSource: source, ClaimRef: &v1.ObjectReference{UID: types.UID(claim)},
		}}
	}
	client := fake.NewClientset(
		claim("good", "pv1", v1.ClaimBound), pv("pv1", "good", v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: local}}),
		claim("pending", "", v1.ClaimPending), claim("stolen", "pv1", v1.ClaimBound),
		claim("nodisk", "pv2", v1.ClaimBound), pv("pv2", "nodisk", v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: local + "/none"}}),
		claim("nfs", "pv3", v1.ClaimBound), pv("pv3", "nfs", v1.PersistentVolumeSource{NFS: &v1.NFSVolumeSource{}}),
	)
	m := volume.New(volume.Options{Dir: dir, Client: client, Clock: clock.RealClock{}})
	for name, want := range map[string]string{
		"good": "", "none": "failed to fetch PVC from API server", "pending": "PVC is not bound", "stolen": "it is of another claim",
		"nodisk": "does not exist", "nfs": "are not supported on this node",
	} {
		pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", UID: "u"}, Spec: v1.PodSpec{Volumes: []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{
			PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: name},
		}}}}}
		err := m.Setup(t.Context(), pod)
		if want != "" {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		mounts, err := m.Mounts(pod, &v1.Container{VolumeMounts: []v1.VolumeMount{{Name: "v", MountPath: "/data"}}}, false, same)
		if err != nil || len(mounts) != 1 || mounts[0].HostPath != local {
			t.Errorf("%s: %v, %v", name, mounts, err)
		}
	}
	if err := m.TearDown("u"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(local); err != nil {
		t.Errorf("a local volume went with the pod: %v", err)
	}
}
