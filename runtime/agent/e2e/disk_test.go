package e2e

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/eviction"
)

// disk is where the runtime keeps everything: a mount point if prepare made it one.
func (n *node) disk() string {
	if onOCI() {
		return n.oci()
	}
	return filepath.Join(n.daemon.Dir, "root")
}

// smallDisk gives the runtime a disk of 96 MiB.
func smallDisk(t *testing.T) func(*node) {
	return func(n *node) {
		n.prepare = func(dir string) {
			at := filepath.Join(dir, "root")
			if onOCI() {
				at = filepath.Join(dir, "oci")
			}
			err := unix.Mkdir(at, 0o700)
			if err == nil {
				err = unix.Mount("tmpfs", at, "tmpfs", 0, "size=96m,mode=0700")
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestDiskFills lets a pod fill the runtime's disk past the bound. It has to go, and what it wrote goes with it.
func TestDiskFills(t *testing.T) {
	n := newNode(t, smallDisk(t), func(n *node) {
		n.containers.Eviction = []eviction.Threshold{{Signal: eviction.ImageFs, Value: eviction.Value{Percent: 20}}}
	})
	n.create(n.podOf("stays", forever, always))
	before := n.ready("stays")
	n.create(n.podOf("fills", "dd if=/dev/zero of=/file bs=1048576 count=75 2>/dev/null; "+forever))
	n.condition(v1.NodeDiskPressure, v1.ConditionTrue, "kubelet has disk pressure")
	pod := n.phase("fills", v1.PodFailed)
	if pod.Status.Reason != "Evicted" || condition(pod, v1.DisruptionTarget).Reason != "TerminationByKubelet" {
		t.Errorf("status %+v", pod.Status)
	}
	n.event("fills", "Evicted", "The node was low on resource: ephemeral-storage. ")
	n.delete("fills")
	n.unharmed(before, "a full disk")
	n.delete("stays")
	n.clean()
}

// TestFullDisk has no room for a new pod, which says so, and runs when there is room again. How a container ends meanwhile is
// told, by containerd once it has room to write it.
func TestFullDisk(t *testing.T) {
	n := newNode(t, smallDisk(t))
	dir := filepath.Join(n.daemon.Dir, "host")
	host := func(p *v1.Pod) {
		p.Spec.Volumes = []v1.Volume{{Name: "host", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: dir, Type: ptr(v1.HostPathDirectoryOrCreate)}}}}
		p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "host", MountPath: "/host"}}
	}
	n.create(n.podOf("ends", "while ! test -e /host/end; do sleep 0.1; done; exit 3", host))
	n.phase("ends", v1.PodRunning)
	// It waits to be told, as the runtime has no room for a container's start either.
	n.create(n.podOf("fills", "while ! test -e /host/fill; do sleep 0.1; done; dd if=/dev/zero of=/file bs=65536 2>/dev/null; echo full; while ! test -e /host/free; do sleep 0.1; done; rm /file; "+forever, host))
	before := n.phase("fills", v1.PodRunning)
	n.write(filepath.Join(dir, "fill"), "", 0o600)
	n.until("fills", "does not fill the disk", func(*v1.Pod) bool { return n.log("fills", "c") == "full\n" })
	n.create(n.podOf("new", forever))
	n.event("new", "", "no space left on device")
	n.nodeReady(v1.ConditionTrue)
	n.write(filepath.Join(dir, "end"), "", 0o600)
	ended := func() {
		t.Helper()
		pod := n.phase("ends", v1.PodFailed)
		if end := pod.Status.ContainerStatuses[0].State.Terminated; end == nil || end.ExitCode != 3 || end.Reason != "Error" {
			t.Errorf("how a container ended on a full disk: %+v", pod.Status.ContainerStatuses)
		}
	}
	if onOCI() {
		ended()
	}
	n.write(filepath.Join(dir, "free"), "", 0o600)
	ended()
	n.phase("new", v1.PodRunning)
	now := n.phase("fills", v1.PodRunning)
	if was, is := before.Status.ContainerStatuses[0], now.Status.ContainerStatuses[0]; was.ContainerID != is.ContainerID {
		t.Errorf("a full disk harmed the pod that filled it: %+v, then %+v", was, is)
	}
	n.delete("fills", "ends", "new")
	n.clean()
}
