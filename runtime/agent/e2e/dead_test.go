package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// long makes faults last as long, and dead containers be as many, as the agent has to bear: task faults.
var long = flag.Bool("long", false, "let faults last for minutes and leave a thousand dead containers")

// boxContainers is how many dead containers a pod's sandbox has.
const boxContainers = 20

// TestDeadContainers leaves dead containers, of pods that are gone and of one that goes on, while no agent is there.
// The next one has its pods running no later, and what is dead goes.
func TestDeadContainers(t *testing.T) {
	many := 2 * boxContainers
	if *long {
		many = 1000
	}
	n := newNode(t)
	n.create(n.podOf("stays", forever, always, func(p *v1.Pod) {
		p.Spec.Tolerations = []v1.Toleration{{Operator: v1.TolerationOpExists}} // however long no agent is there
	}))
	before := n.ready("stays")
	n.stop()
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i := range many / boxContainers {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := n.dead(fmt.Sprintf("dead-%d", i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	count := func() int {
		r, err := n.backend.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return len(r.Containers)
	}
	begun := time.Now()
	if got := count(); got != many+1 {
		t.Fatalf("%d containers, want %d", got, many+1)
	}
	t.Logf("the runtime lists %d containers in %v", many+1, time.Since(begun))
	n.run()
	n.create(n.podOf("new", forever))
	n.phase("new", v1.PodRunning)
	t.Logf("a new pod runs beside %d containers", count())
	n.nodeReady(v1.ConditionTrue)
	deadline := time.Now().Add(10 * time.Minute)
	for left := count(); left > 2; left = count() {
		if time.Now().After(deadline) {
			t.Fatalf("%d containers are left", left)
		}
		n.nodeStays()
		time.Sleep(100 * time.Millisecond)
	}
	t.Logf("they are gone after %v", time.Since(begun))
	n.untouched(before, "many dead containers")
	n.delete("stays", "new")
	n.clean()
}

// nodeStays checks that the node is ready now.
func (n *node) nodeStays() {
	n.t.Helper()
	for _, c := range n.node().Status.Conditions {
		if c.Type == v1.NodeReady && c.Status != v1.ConditionTrue {
			n.t.Fatalf("the node is not ready: %+v", c)
		}
	}
}

// dead makes a pod's sandbox with containers that ended, as an agent would have that is there no more.
func (n *node) dead(name string) error {
	ctx, cancel := context.WithTimeout(n.t.Context(), 5*time.Minute)
	defer cancel()
	logs := filepath.Join(n.dir, "log", "default_"+name+"_"+name)
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return err
	}
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name)}, Status: v1.PodStatus{QOSClass: v1.PodQOSBestEffort}}
	if err := n.cgroups.Ensure(pod); err != nil {
		return err
	}
	box := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name}, LogDirectory: logs,
		Labels: map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: n.cgroups.Parent(pod), SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE},
		}},
	}
	r, err := n.backend.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: box})
	if err != nil {
		return err
	}
	image := &runtimeapi.ImageSpec{Image: n.daemon.Busybox}
	for i := range boxContainers {
		c, err := n.backend.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: r.PodSandboxId, SandboxConfig: box, Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "c", Attempt: uint32(i)}, Image: image, Command: []string{"true"}, LogPath: fmt.Sprintf("%d.log", i),
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}}},
		}})
		if err != nil {
			return err
		}
		if _, err := n.backend.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
			return err
		}
		for {
			st, err := n.backend.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.ContainerId})
			if err != nil {
				return err
			}
			if st.Status.State == runtimeapi.ContainerState_CONTAINER_EXITED {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}

// node is the Node object.
func (n *node) node() *v1.Node {
	n.t.Helper()
	var out *v1.Node
	eventually(n.t, "the Node object", func(ctx context.Context) (bool, error) {
		var err error
		out, err = n.client.CoreV1().Nodes().Get(ctx, "n1", getOptions)
		return err == nil, err
	})
	return out
}
