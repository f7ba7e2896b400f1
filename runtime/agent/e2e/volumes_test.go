package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestVolumes(t *testing.T) {
	n := newNode(t)
	maps := n.client.CoreV1().ConfigMaps("default")
	if _, err := maps.Create(t.Context(), &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "m"}, Data: map[string]string{"key": "one", "other": "two"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.client.CoreV1().Secrets("default").Create(t.Context(), &v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Data: map[string][]byte{"key": []byte("hidden")}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	precious := filepath.Join(n.daemon.Dir, "precious")
	if err := os.MkdirAll(filepath.Join(precious, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(precious, "sub", "file"), []byte("keep\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := n.client.CoreV1().PersistentVolumes().Create(t.Context(), &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "local"}, Spec: v1.PersistentVolumeSpec{
		Capacity: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}, AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
		PersistentVolumeSource: v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: precious}},
		NodeAffinity: &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{MatchExpressions: []v1.NodeSelectorRequirement{
			{Key: v1.LabelHostname, Operator: v1.NodeSelectorOpIn, Values: []string{"n1"}},
		}}}}},
	}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.client.CoreV1().PersistentVolumeClaims("default").Create(t.Context(), &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "mine"}, Spec: v1.PersistentVolumeClaimSpec{
		AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce}, VolumeName: "local", StorageClassName: ptr(""),
		Resources: v1.VolumeResourceRequirements{Requests: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}},
	}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ref := v1.LocalObjectReference{Name: "m"}
	volumes := func(p *v1.Pod) {
		p.Labels = map[string]string{"colour": "blue"}
		p.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: ptr(int64(2000))}
		p.Spec.Volumes = []v1.Volume{
			{Name: "map", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: ref}}},
			{Name: "secret", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "s", DefaultMode: ptr(int32(0o400))}}},
			{Name: "memory", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory, SizeLimit: ptr(resource.MustParse("1Mi"))}}},
			{Name: "disk", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
			{Name: "host", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: precious, Type: ptr(v1.HostPathDirectory)}}},
			{Name: "claim", VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "mine"}}},
			{Name: "down", VolumeSource: v1.VolumeSource{DownwardAPI: &v1.DownwardAPIVolumeSource{Items: []v1.DownwardAPIVolumeFile{
				{Path: "labels", FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
				{Path: "cpu", ResourceFieldRef: &v1.ResourceFieldSelector{ContainerName: "c", Resource: "limits.cpu", Divisor: resource.MustParse("1m")}},
			}}}},
		}
		c := &p.Spec.Containers[0]
		c.Resources.Limits = v1.ResourceList{v1.ResourceCPU: resource.MustParse("500m")}
		c.VolumeMounts = []v1.VolumeMount{
			{Name: "map", MountPath: "/map"}, {Name: "secret", MountPath: "/secret"}, {Name: "memory", MountPath: "/memory"}, {Name: "disk", MountPath: "/disk"},
			{Name: "host", MountPath: "/one", SubPath: "sub/file"}, {Name: "host", MountPath: "/sub", SubPath: "sub", ReadOnly: true}, {Name: "down", MountPath: "/down"},
			{Name: "map", MountPath: "/single", SubPath: "key"}, {Name: "claim", MountPath: "/claim"},
		}
	}
	n.create(n.podOf("vols", forever, volumes))
	pod := n.phase("vols", v1.PodRunning)
	for script, want := range map[string]string{
		"cat /map/key /map/other /single":                              "onetwoone",
		"cat /secret/key; stat -c %a:%g -L /secret/key":                "hidden440:2000\n",
		"grep -c ' /secret tmpfs' /proc/mounts":                        "1\n",
		"grep ' /memory ' /proc/mounts | grep -c size=1024k":           "1\n",
		"echo x > /disk/f; stat -c %g /disk/f":                         "2000\n",
		"cat /one /sub/file; touch /sub/new 2>&1":                      "keep\nkeep\ntouch: /sub/new: Read-only file system\n",
		"cat /down/labels; cat /down/cpu":                              `colour="blue"500`,
		"cat /claim/sub/file; echo new > /claim/file; cat /claim/file": "keep\nnew\n",
		"touch /map/x 2>&1":                                            "touch: /map/x: Read-only file system\n",
		"test -s /var/run/secrets/kubernetes.io/serviceaccount/token && cat /var/run/secrets/kubernetes.io/serviceaccount/namespace": "default",
	} {
		if got := n.exec(pod, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	// A change of labels brings the downward API, and with it all else, up to date at once.
	if _, err := maps.Update(t.Context(), &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "m"}, Data: map[string]string{"key": "new", "other": "two"}}, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod.Labels["colour"] = "red"
	if _, err := n.client.CoreV1().Pods("default").Patch(t.Context(), "vols", "application/merge-patch+json", []byte(`{"metadata":{"labels":{"colour":"red"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	n.until("vols", "does not see the change", func(*v1.Pod) bool {
		return strings.Contains(n.exec(pod, "cat /down/labels /map/key"), `colour="red"new`)
	})
	n.delete("vols")

	// A link in a volume leads nowhere, whoever makes it.
	n.create(n.podOf("escape", "ln -s / /disk/out; ln -s /etc/shadow /disk/file", func(p *v1.Pod) {
		volumes(p)
		p.Spec.InitContainers = []v1.Container{*p.Spec.Containers[0].DeepCopy()}
		p.Spec.InitContainers[0].Name = "init"
		p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "disk", MountPath: "/x", SubPath: "out/etc"}}
	}))
	n.until("escape", "is let out of its volume", func(p *v1.Pod) bool {
		w := p.Status.ContainerStatuses
		return len(w) == 1 && w[0].State.Waiting != nil && w[0].State.Waiting.Reason == "CreateContainerConfigError" && strings.Contains(w[0].State.Waiting.Message, "failed to prepare subPath")
	})
	n.create(n.podOf("nomount", "true", func(p *v1.Pod) {
		p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: precious, Type: ptr(v1.HostPathSocket)}}}}
	}))
	n.event("nomount", "FailedMount", `MountVolume.SetUp failed for volume "v" : hostPath type check failed: `+precious+` is not a socket file`)
	n.delete("escape", "nomount")
	n.recursiveReadOnly()
	n.clean()
	for file, want := range map[string]string{"sub/file": "keep\n", "file": "new\n"} {
		if data, err := os.ReadFile(filepath.Join(precious, file)); err != nil || string(data) != want {
			t.Errorf("a host's file %s after its pods: %q, %v", file, data, err)
		}
	}
}

// recursiveReadOnly writes where another file system is mounted below what pods mount read-only. It goes as the node says that its
// runtime can: with Debian's runc and a kernel from 5.12 on the backend without a daemon can, containerd 1.6 cannot.
func (n *node) recursiveReadOnly() {
	n.t.Helper()
	outer := n.t.TempDir()
	inner := filepath.Join(outer, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", inner, "tmpfs", 0, ""); err != nil {
		n.t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(inner, unix.MNT_DETACH); err != nil {
			n.t.Error(err)
		}
	}()
	object, err := n.client.CoreV1().Nodes().Get(n.t.Context(), "n1", metav1.GetOptions{})
	if err != nil {
		n.t.Fatal(err)
	}
	can := false
	for _, h := range object.Status.RuntimeHandlers {
		can = can || h.Name == "" && *h.Features.RecursiveReadOnlyMounts
	}
	n.t.Logf("recursive read-only mounts: %v", can)
	mounted := func(modes ...v1.RecursiveReadOnlyMode) func(*v1.Pod) {
		return func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "host", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: outer}}}}
			for _, mode := range modes {
				p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, v1.VolumeMount{
					Name: "host", MountPath: "/" + string(mode), ReadOnly: true, RecursiveReadOnly: &mode,
				})
			}
		}
	}
	n.create(n.podOf("may", forever, mounted(v1.RecursiveReadOnlyDisabled, v1.RecursiveReadOnlyIfPossible)))
	n.create(n.podOf("must", forever, mounted(v1.RecursiveReadOnlyEnabled)))
	modes := map[string]bool{"Disabled": false, "IfPossible": can}
	if can {
		modes["Enabled"] = true
		n.phase("must", v1.PodRunning)
	} else {
		n.until("must", "does not say that the runtime cannot do it", func(p *v1.Pod) bool {
			w := p.Status.ContainerStatuses
			return len(w) == 1 && w[0].State.Waiting != nil && w[0].State.Waiting.Reason == "CreateContainerConfigError" &&
				w[0].State.Waiting.Message == `failed to resolve recursive read-only mode: volume "host" requested recursive read-only mode, but it is not supported by the runtime`
		})
	}
	n.phase("may", v1.PodRunning)
	for mode, recursive := range modes {
		name, want, told := "may", "", v1.RecursiveReadOnlyDisabled
		if mode == "Enabled" {
			name = "must"
		}
		at := "/" + mode + "/inner/x"
		if recursive {
			want, told = "touch: "+at+": Read-only file system\n", v1.RecursiveReadOnlyEnabled
		}
		pod := n.get(name)
		if got := n.exec(pod, "touch "+at+" 2>&1"); got != want {
			n.t.Errorf("%s: %q, want %q", at, got, want)
		}
		for _, m := range pod.Status.ContainerStatuses[0].VolumeMounts {
			if m.MountPath == "/"+mode && (m.RecursiveReadOnly == nil || *m.RecursiveReadOnly != told) {
				n.t.Errorf("the status of %s has %v, want %s", m.MountPath, m, told)
			}
		}
		if got := n.exec(pod, "touch /"+mode+"/x 2>&1"); got != "touch: /"+mode+"/x: Read-only file system\n" {
			n.t.Errorf("%s itself: %q", mode, got)
		}
	}
	n.delete("may", "must")
}
