package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/quaymaster/quaymaster/runtime/agent/remote"
)

// TestBadInput gives a node pods that cannot be: each says why, as an event or in its status, and the others go on.
func TestBadInput(t *testing.T) {
	n := newNode(t)
	n.create(n.podOf("stays", forever, always))
	before := n.ready("stays")
	dir := filepath.Join(n.daemon.Dir, "host")
	n.write(filepath.Join(dir, "file"), "x", 0o644)
	for name, mode := range map[string]uint32{"char": unix.S_IFCHR, "block": unix.S_IFBLK} {
		if err := unix.Mknod(filepath.Join(dir, name), mode|0o600, int(unix.Mkdev(1, 3))); err != nil {
			t.Fatal(err)
		}
	}
	socket, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if err := os.Symlink("/etc", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for class, handler := range map[string]string{"magic": "wand", "plain": "runc"} {
		if _, err := n.client.NodeV1().RuntimeClasses().Create(t.Context(), &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: class}, Handler: handler}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.client.CoreV1().ConfigMaps("default").Create(t.Context(), &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "m"}, Data: map[string]string{"key": "x"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.client.NodeV1().RuntimeClasses().Create(t.Context(), &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "real"}, Handler: "runc"}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var names []string
	create := func(name string, change ...func(*v1.Pod)) {
		t.Helper()
		n.create(n.podOf(name, forever, change...))
		names = append(names, name)
	}
	mounted := func(source v1.VolumeSource, at string, sub ...string) func(*v1.Pod) {
		return func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: source}}
			p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "v", MountPath: at, SubPath: strings.Join(sub, "")}}
		}
	}
	host := func(name string, kind v1.HostPathType) v1.VolumeSource {
		return v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: filepath.Join(dir, name), Type: &kind}}
	}

	// Each type of hostPath with what it is for, and with something else.
	types := []struct {
		kind        v1.HostPathType
		good, wrong string
		what        string
	}{
		{v1.HostPathDirectory, ".", "file", "directory"}, {v1.HostPathDirectoryOrCreate, "newdir", "file", "directory"},
		{v1.HostPathFile, "file", "char", "file"}, {v1.HostPathFileOrCreate, "newfile", ".", "file"},
		{v1.HostPathSocket, "socket", "file", "socket file"}, {v1.HostPathCharDev, "char", "file", "character device"},
		{v1.HostPathBlockDev, "block", "char", "block device"},
	}
	for i, k := range types {
		create(fmt.Sprintf("good%d", i), mounted(host(k.good, k.kind), "/host"))
		create(fmt.Sprintf("wrong%d", i), mounted(host(k.wrong, k.kind), "/host"))
	}
	create("gone", mounted(host("none", v1.HostPathDirectory), "/host"))

	create("nomap", mounted(v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "none"}}}, "/m"))
	create("nokey", mounted(v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{
		LocalObjectReference: v1.LocalObjectReference{Name: "m"}, Items: []v1.KeyToPath{{Key: "other", Path: "x"}},
	}}, "/m"))
	create("nosecret", mounted(v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "none"}}, "/s"))
	create("onfile", mounted(host(".", v1.HostPathDirectory), "/etc/passwd"))
	create("link", mounted(host(".", v1.HostPathDirectory), "/x", "link/shadow"))
	create("handler", func(p *v1.Pod) { p.Spec.RuntimeClassName = ptr("magic") })
	create("real", func(p *v1.Pod) { p.Spec.RuntimeClassName = ptr("real") })
	create("classed", func(p *v1.Pod) { p.Spec.RuntimeClassName = ptr("plain") })
	create("ownusers", func(p *v1.Pod) { p.Spec.HostUsers = ptr(false) })
	create("badname", func(p *v1.Pod) { p.Spec.Containers[0].Image = "Not An Image" })
	create("workdir", func(p *v1.Pod) { p.Spec.Containers[0].WorkingDir = "/bin/busybox/x" })
	create("nouser", func(p *v1.Pod) {
		p.Spec.SecurityContext = &v1.PodSecurityContext{Sysctls: []v1.Sysctl{{Name: "kernel.shm_rmid_forced", Value: "nonsense"}}}
	})

	for i, k := range types {
		n.phase(fmt.Sprintf("good%d", i), v1.PodRunning)
		n.event(fmt.Sprintf("wrong%d", i), "FailedMount", fmt.Sprintf(`MountVolume.SetUp failed for volume "v" : hostPath type check failed: %s is not a %s`, filepath.Join(dir, k.wrong), k.what))
	}
	n.phase("classed", v1.PodRunning)
	n.phase("real", v1.PodRunning)
	for _, made := range []string{"newdir", "newfile"} {
		if _, err := os.Stat(filepath.Join(dir, made)); err != nil {
			t.Error(err)
		}
	}
	for _, e := range [][3]string{
		{"gone", "FailedMount", `MountVolume.SetUp failed for volume "v" : hostPath type check failed: ` + filepath.Join(dir, "none") + " is not a directory"},
		{"nomap", "FailedMount", `MountVolume.SetUp failed for volume "v" : configmap "none" not found`},
		{"nokey", "FailedMount", `MountVolume.SetUp failed for volume "v" : configmap references non-existent config key: other`},
		{"nosecret", "FailedMount", `MountVolume.SetUp failed for volume "v" : secret "none" not found`},
		{"handler", "FailedCreatePodSandBox", `Failed to create pod sandbox: `},
		{"handler", "FailedCreatePodSandBox", `"wand"`},
		{"ownusers", "FailedCreatePodSandBox", "can't set `spec.hostUsers: false`, runtime does not support user namespaces"},
		{"badname", "InspectFailed", `Failed to apply default image tag "Not An Image": couldn't parse image name`},
		{"nouser", "FailedCreatePodSandBox", "shm_rmid_forced"},
	} {
		n.event(e[0], e[1], e[2])
	}
	for name, want := range map[string][]string{
		"onfile": {"not a directory"}, "workdir": {"not a directory"},
		"link": {"failed to prepare subPath"}, "badname": {"couldn't parse image name"},
	} {
		n.until(name, "does not say what is wrong", func(p *v1.Pod) bool {
			w := waiting(p)
			if w != nil {
				return containsOne(w.Message, want)
			}
			return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Terminated != nil && containsOne(p.Status.ContainerStatuses[0].State.Terminated.Message, want)
		})
	}
	n.unharmed(before, "bad pods")
	n.nodeReady(v1.ConditionTrue)
	n.delete(append(names, "stays")...)
	n.clean()
	for _, name := range []string{"file", "char", "block", "socket", "link"} { // what was the host's is the host's
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

// TestBadRequests asks the agent's server for what is not there.
func TestBadRequests(t *testing.T) {
	n := newNode(t)
	config, client := n.outside()
	const bytesOfLine = 5 << 20
	n.create(n.podOf("talks", fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; echo; echo end", bytesOfLine)))
	n.create(n.podOf("stays", forever, always))
	before := n.ready("stays")
	n.phase("talks", v1.PodSucceeded)
	if log := n.log("talks", "c"); len(log) != bytesOfLine+len("\nend\n") || strings.Trim(log, "x") != "\nend\n" {
		t.Errorf("a line of %d bytes comes back in a log of %d", bytesOfLine, len(log))
	}
	exec := func(pod, container string, command ...string) error {
		u := client.CoreV1().RESTClient().Post().Resource("pods").Namespace("default").Name(pod).SubResource("exec").
			VersionedParams(&v1.PodExecOptions{Container: container, Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec).URL()
		e, err := remotecommand.NewSPDYExecutor(config, http.MethodPost, u)
		if err != nil {
			t.Fatal(err)
		}
		var said bytes.Buffer // one runtime says there why, another one in the error
		if err = e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard, Stderr: &said}); err != nil {
			return fmt.Errorf("%w; %s", err, said.String())
		}
		return nil
	}
	for _, test := range []struct {
		pod, container, command, want string
	}{
		{"none", "c", "true", `pods "none" not found`},
		{"stays", "other", "true", "container other is not valid for pod stays"},
		{"stays", "c", "/no/such/program", "no such file or directory"},
		{"stays", "c", "/etc", "ermission denied"},
		{"talks", "c", "true", "not"}, // it has ended
	} {
		if err := exec(test.pod, test.container, test.command); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("exec %s in %s of %s: %v, want %q", test.command, test.container, test.pod, err, test.want)
		}
	}
	_, err := n.client.CoreV1().Pods("default").GetLogs("stays", &v1.PodLogOptions{Previous: true}).Stream(t.Context())
	if !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), `previous terminated container "c" in pod "stays" not found`) {
		t.Errorf("the log of a container that never was: %v", err)
	}

	// A port that nobody listens at: the stream of errors says so, and both end.
	conn, _, err := n.portforward(config, "stays").Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var streams []io.ReadCloser
	for _, kind := range []string{v1.StreamTypeError, v1.StreamTypeData} {
		s, err := conn.CreateStream(http.Header{v1.StreamType: {kind}, v1.PortHeader: {"8081"}, v1.PortForwardRequestIDHeader: {"0"}})
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, s)
	}
	if data, err := io.ReadAll(streams[0]); err != nil || !strings.Contains(string(data), "8081") || !strings.Contains(string(data), "connection refused") {
		t.Errorf("a closed port: %q, %v", data, err)
	}
	if data, err := io.ReadAll(streams[1]); err != nil || len(data) > 0 {
		t.Errorf("a closed port's data: %q, %v", data, err)
	}
	_ = conn.Close()
	n.unharmed(before, "bad requests")
	n.delete("talks", "stays")
	n.clean()
}

// safeBuffer is one that several goroutines write to and read.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestStaticManifests runs a pod of a file beside files that are none: the agent says which and why.
func TestStaticManifests(t *testing.T) {
	log := &safeBuffer{}
	var manifests string
	n := newNode(t, func(n *node) {
		n.options = func(o *remote.Options) {
			manifests = filepath.Join(o.Dir, "manifests")
			o.Manifests, o.Logger = manifests, slog.New(slog.NewTextHandler(log, nil))
		}
	})
	manifest := func(name, image string) string {
		return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers: [{name: c, image: %q, command: [sh, -c, %q]}]\n", name, image, forever)
	}
	n.write(filepath.Join(manifests, "good.yaml"), manifest("good", n.daemon.Busybox), 0o600)
	n.write(filepath.Join(manifests, "text.yaml"), "this is no manifest\n", 0o600)
	n.write(filepath.Join(manifests, "name.yaml"), manifest("Bad_Name", n.daemon.Busybox), 0o600)
	n.write(filepath.Join(manifests, "kind.yaml"), "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n", 0o600)
	n.write(filepath.Join(manifests, "noimage.yaml"), manifest("noimage", n.daemon.None), 0o600)
	pod := n.phase("good-n1", v1.PodRunning)
	n.until("noimage-n1", "does not say that it has no image", func(p *v1.Pod) bool { return waiting(p) != nil && strings.Contains(waiting(p).Message, "not found") })
	eventually(t, "the log to tell of all that is wrong", func(context.Context) (bool, error) {
		for file, why := range map[string]string{"text.yaml": "", "name.yaml": "Invalid value", "kind.yaml": "Service"} {
			if !strings.Contains(log.String(), filepath.Join(manifests, file)) || !strings.Contains(log.String(), why) {
				return false, nil
			}
		}
		return true, nil
	})
	n.write(filepath.Join(manifests, "good.yaml"), "{", 0o600)
	eventually(t, "the log to tell of the file that was good", func(context.Context) (bool, error) {
		return strings.Contains(log.String(), "good.yaml"), nil
	})
	if now := n.phase("good-n1", v1.PodRunning); now.Status.ContainerStatuses[0].ContainerID != pod.Status.ContainerStatuses[0].ContainerID {
		t.Errorf("a malformed manifest harmed its pod: %+v", now.Status)
	}
	for _, file := range []string{"good.yaml", "noimage.yaml"} {
		if err := os.Remove(filepath.Join(manifests, file)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"good-n1", "noimage-n1"} {
		eventually(t, "the end of "+name, func(context.Context) (bool, error) { return n.get(name) == nil, nil })
	}
	n.clean()
}
