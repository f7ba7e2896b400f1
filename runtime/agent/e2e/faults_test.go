package e2e

import (
	"context"
	"fmt"
	"syscall"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
)

func (n *node) nodeReady(want v1.ConditionStatus) {
	n.t.Helper()
	n.condition(v1.NodeReady, want, "")
}

// always makes a pod's container be restarted, and ready by a probe. The probe is patient: on a machine
// that is busy with other things a program may take longer than the second of default to begin.
func always(p *v1.Pod) {
	p.Spec.RestartPolicy = v1.RestartPolicyAlways
	p.Spec.Containers[0].ReadinessProbe = &v1.Probe{
		PeriodSeconds: 1, TimeoutSeconds: 60, ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"true"}}},
	}
}

// unharmed checks that a pod is as it was before a fault: the same container, the same address, ready all the time.
func (n *node) unharmed(before *v1.Pod, when string) {
	n.t.Helper()
	was, is := condition(before, v1.PodReady), condition(n.untouched(before, when), v1.PodReady)
	if !is.LastTransitionTime.Equal(&was.LastTransitionTime) {
		n.t.Errorf("%s: the pod was unready meanwhile: %+v, then %+v", when, was, is)
	}
}

// untouched is unharmed for a fault that may take longer than the 40 seconds after which the cluster calls the pods of a
// node that says nothing unready.
func (n *node) untouched(before *v1.Pod, when string) *v1.Pod {
	n.t.Helper()
	now := n.ready(before.Name)
	if was, is := before.Status.ContainerStatuses[0], now.Status.ContainerStatuses[0]; was.ContainerID != is.ContainerID || is.RestartCount != was.RestartCount || now.Status.PodIP != before.Status.PodIP {
		n.t.Errorf("%s: a pod was harmed: %+v, then %+v", when, was, is)
	}
	return now
}

// signal sends one to the backend's process.
func (n *node) signal(s syscall.Signal) {
	n.t.Helper()
	pid := 0
	eventually(n.t, "a process of the backend", func(context.Context) (bool, error) { // one that is slow may have been given up just now
		pid, _ = n.process.PID()
		return pid != 0, nil
	})
	signal(n.t, pid, s)
}

// anotherBackend waits until the backend's process is another one.
func (n *node) anotherBackend(starts int) {
	n.t.Helper()
	eventually(n.t, "another process of the backend", func(context.Context) (bool, error) {
		_, now := n.process.PID()
		return now > starts, nil
	})
}

// TestFaults ends and stops the agent, the backend and the daemon under running pods.
func TestFaults(t *testing.T) {
	n := newNode(t)
	n.create(n.podOf("stays", forever, always))
	n.create(n.podOf("dies", "while ! test -e /tmp/die; do sleep 0.1; done; exit 1", always))
	n.create(n.podOf("goes", forever))
	before := n.ready("stays")
	n.ready("dies")
	goes := n.phase("goes", v1.PodRunning)
	kill := func(name string) {
		t.Helper()
		n.exec(n.get(name), "touch /tmp/die")
	}

	// The agent goes; meanwhile one pod is deleted and another one's container dies.
	n.stop()
	kill("dies")
	if err := n.client.CoreV1().Pods("default").Delete(t.Context(), "goes", metav1.DeleteOptions{GracePeriodSeconds: ptr(int64(0))}); err != nil {
		t.Fatal(err)
	}
	n.run()
	n.until("dies", "is not restarted", func(p *v1.Pod) bool { return p.Status.ContainerStatuses[0].RestartCount == 1 && isReady(p) })
	n.unharmed(before, "restart of the agent")
	eventually(t, "what is left of the deleted pod to go", func(context.Context) (bool, error) {
		pods, err := n.cgroups.Pods()
		for _, uid := range pods {
			if uid == goes.UID {
				return false, err
			}
		}
		return true, err
	})

	// The backend's process is killed: another one takes its place.
	_, starts := n.process.PID()
	n.signal(syscall.SIGKILL)
	n.anotherBackend(starts)
	kill("dies")
	n.until("dies", "is not restarted", func(p *v1.Pod) bool { return p.Status.ContainerStatuses[0].RestartCount == 2 && isReady(p) })
	n.unharmed(before, "SIGKILL of the backend")

	// It hangs: the node says so, until another one takes its place.
	_, starts = n.process.PID()
	n.signal(syscall.SIGSTOP)
	n.condition(v1.NodeReady, v1.ConditionFalse, "container runtime is down")
	n.anotherBackend(starts)
	n.nodeReady(v1.ConditionTrue)
	n.unharmed(before, "a backend that hangs")

	if !onOCI() {
		n.daemon.Kill()
		n.condition(v1.NodeReady, v1.ConditionFalse, "container runtime is down")
		n.daemon.Run()
		n.nodeReady(v1.ConditionTrue)
		n.unharmed(before, "SIGKILL of containerd")

		signal(t, n.daemon.PID(), syscall.SIGSTOP)
		n.condition(v1.NodeReady, v1.ConditionFalse, "container runtime is down")
		signal(t, n.daemon.PID(), syscall.SIGCONT)
		n.nodeReady(v1.ConditionTrue)
		n.unharmed(before, "a containerd that hangs")
	}

	// The sandbox's own process is killed: the pod gets a new sandbox. A pod of the backend without a daemon
	// has none; there what holds the container is killed, and the container with it.
	if onOCI() {
		for _, pid := range containerdtest.Commands("oci-shim") {
			signal(t, pid, syscall.SIGKILL)
		}
	} else {
		for _, pid := range containerdtest.Processes("/pause") {
			signal(t, pid, syscall.SIGKILL)
		}
		n.event("stays", "SandboxChanged", "Pod sandbox changed")
	}
	n.until("stays", "does not come back", func(p *v1.Pod) bool {
		return p.Status.ContainerStatuses[0].RestartCount == 1 && isReady(p)
	})
	n.delete("stays", "dies")
	n.clean()
}

// TestShimHangs stops what holds a pod's containers while who speaks to it is started anew.
func TestShimHangs(t *testing.T) {
	n := newNode(t)
	n.create(n.podOf("p", forever, always))
	before := n.ready("p")
	if onOCI() {
		shim := one(t, containerdtest.Commands("oci-shim"))
		signal(t, shim, syscall.SIGSTOP)
		_, starts := n.process.PID()
		n.signal(syscall.SIGKILL)
		n.anotherBackend(starts)
		n.nodeReady(v1.ConditionTrue)
		if got := n.exec(before, "echo here"); got != "here\n" {
			t.Errorf("a container whose shim hangs: %q", got)
		}
		signal(t, shim, syscall.SIGCONT)
		n.untouched(before, "a shim that hangs")
		n.delete("p")
		n.clean()
		return
	}
	// A containerd that begins gives up a shim that does not answer in time, kills its containers and leaves it running,
	// though it answers again: nothing ever ends it, in 1.6 as in 2. The pod has to come back without it, and it is all that may be left.
	shim := one(t, containerdtest.Processes("containerd-shim"))
	n.daemon.Kill()
	signal(t, shim, syscall.SIGSTOP)
	n.daemon.Impatient()
	n.daemon.Run()
	signal(t, shim, syscall.SIGCONT)
	n.until("p", "does not come back", func(p *v1.Pod) bool {
		return p.Status.ContainerStatuses[0].RestartCount > 0 && isReady(p)
	})
	n.event("p", "SandboxChanged", "Pod sandbox changed")
	n.delete("p")
	n.leaves(fmt.Sprintf("shim %d", shim))
	signal(t, shim, syscall.SIGTERM)
	n.clean()
}

// one is the only process of some.
func one(t *testing.T, pids []int) int {
	t.Helper()
	if len(pids) != 1 {
		t.Fatalf("processes %v where there should be one", pids)
	}
	return pids[0]
}

func signal(t testing.TB, pid int, s syscall.Signal) {
	t.Helper()
	if pid <= 0 { // who would get it are the tests and who started them
		t.Fatalf("no process to send %v to", s)
	}
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}

func condition(p *v1.Pod, t v1.PodConditionType) v1.PodCondition {
	for _, c := range p.Status.Conditions {
		if c.Type == t {
			return c
		}
	}
	return v1.PodCondition{}
}

// TestDeletedInEveryPhase deletes pods at whatever moment it meets them.
func TestDeletedInEveryPhase(t *testing.T) {
	n := newNode(t)
	slow := func(p *v1.Pod) {
		p.Spec.InitContainers = []v1.Container{{Name: "init", Image: n.daemon.Busybox, Command: []string{"sleep", "1000"}}}
	}
	hook := func(p *v1.Pod) {
		p.Spec.Containers[0].Lifecycle = &v1.Lifecycle{PostStart: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"sleep", "1000"}}}}
	}
	grace := func(p *v1.Pod) { p.Spec.TerminationGracePeriodSeconds = ptr(int64(3600)) } // longer than the test waits for anything
	names := []string{}
	for name, test := range map[string]struct {
		script string
		change func(*v1.Pod)
		wait   func(*v1.Pod) bool
	}{
		"at-once": {forever, func(*v1.Pod) {}, func(*v1.Pod) bool { return true }},
		"noimage": {forever, func(p *v1.Pod) { p.Spec.Containers[0].Image = n.daemon.None }, func(p *v1.Pod) bool { return len(p.Status.ContainerStatuses) == 1 }},
		"in-init": {forever, slow, func(p *v1.Pod) bool {
			return len(p.Status.InitContainerStatuses) == 1 && p.Status.InitContainerStatuses[0].State.Running != nil
		}},
		"in-hook": {forever, hook, func(p *v1.Pod) bool { return p.Status.StartTime != nil }},
		"running": {forever, grace, func(p *v1.Pod) bool { return p.Status.Phase == v1.PodRunning }},
		"ended":   {"true", func(*v1.Pod) {}, func(p *v1.Pod) bool { return p.Status.Phase == v1.PodSucceeded }},
		"loops": {"exit 1", func(p *v1.Pod) { p.Spec.RestartPolicy = v1.RestartPolicyAlways }, func(p *v1.Pod) bool {
			return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount > 0
		}},
		"nofolder": {forever, func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "none"}}}}}
		}, func(p *v1.Pod) bool { return p.Status.StartTime != nil }},
	} {
		n.create(n.podOf(name, test.script, test.change))
		n.until(name, "does not come to where it is to be deleted", test.wait)
		names = append(names, name)
	}
	// One that heeds no signal, deleted gently and then at once.
	n.create(n.podOf("stubborn", "trap '' TERM; while true; do sleep 0.1; done", grace))
	n.phase("stubborn", v1.PodRunning)
	if err := n.client.CoreV1().Pods("default").Delete(t.Context(), "stubborn", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	n.event("stubborn", "Killing", "Stopping container c")
	if err := n.client.CoreV1().Pods("default").Delete(t.Context(), "stubborn", metav1.DeleteOptions{GracePeriodSeconds: ptr(int64(1))}); err != nil {
		t.Fatal(err)
	}
	n.delete(names...)
	n.clean() // within its patience: nobody waits for the grace period
}
