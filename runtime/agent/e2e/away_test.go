package e2e

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/runtime/agent/remote"
)

// road is a way to an address that can be closed: connections over it break, and new ones are refused.
type road struct {
	net.Listener
	to string

	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]bool
}

func newRoad(t testing.TB, to string) *road {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &road{Listener: l, to: to, conns: map[net.Conn]bool{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { r.carry(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		r.set(true)
		wg.Wait()
	})
	return r
}

// take notes a connection, unless the road is closed.
func (r *road) take(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns[c] = true
	return !r.closed
}

func (r *road) carry(conn net.Conn) {
	defer conn.Close()
	if !r.take(conn) {
		return
	}
	far, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer far.Close()
	if !r.take(far) {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(far, conn); _ = far.Close() })
	_, _ = io.Copy(conn, far)
	_ = conn.Close()
	wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, conn)
	delete(r.conns, far)
}

// set closes the road or opens it.
func (r *road) set(closed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = closed
	for c := range r.conns {
		if closed {
			_ = c.Close()
			delete(r.conns, c)
		}
	}
}

// TestAPIServerAway takes the API server away from the agent: pods go on, what dies is restarted, and the
// status catches up. With -long it is away until the cluster has given the node up.
func TestAPIServerAway(t *testing.T) {
	var way *road
	n := newNode(t, func(n *node) {
		n.options = func(o *remote.Options) {
			if way == nil {
				way = newRoad(t, strings.TrimPrefix(o.Server, "https://"))
			}
			o.Server = "https://" + way.Addr().String()
		}
	})
	n.create(n.podOf("stays", forever, always))
	n.create(n.podOf("dies", "while ! test -e /tmp/die; do sleep 0.1; done; exit 1", always))
	n.create(n.podOf("ends", "while ! test -e /tmp/die; do sleep 0.1; done; exit 3"))
	n.create(n.podOf("goes", forever))
	before, dies := n.ready("stays"), n.ready("dies")
	ends, goes := n.phase("ends", v1.PodRunning), n.phase("goes", v1.PodRunning)

	way.set(true)
	n.exec(dies, "touch /tmp/die")
	n.exec(ends, "touch /tmp/die")
	eventually(t, "the container to be restarted without an API server", func(ctx context.Context) (bool, error) {
		r, err := n.backend.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
			LabelSelector: map[string]string{"io.kubernetes.pod.uid": string(dies.UID)}, State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
		}})
		return err == nil && len(r.Containers) == 1 && r.Containers[0].Metadata.Attempt == 1, err
	})
	if err := n.client.CoreV1().Pods("default").Delete(t.Context(), "goes", metav1.DeleteOptions{GracePeriodSeconds: ptr(int64(0))}); err != nil {
		t.Fatal(err)
	}
	if p := n.get("dies"); p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Fatalf("the API server is not away: %+v", p.Status)
	}
	if *long {
		n.givenUp()
	}
	way.set(false)

	n.nodeReady(v1.ConditionTrue)
	n.until("dies", "does not catch up", func(p *v1.Pod) bool { return p.Status.ContainerStatuses[0].RestartCount == 1 && isReady(p) })
	pod := n.phase("ends", v1.PodFailed)
	if end := pod.Status.ContainerStatuses[0].State.Terminated; end == nil || end.ExitCode != 3 {
		t.Errorf("how it ended: %+v", pod.Status)
	}
	eventually(t, "what is left of the deleted pod to go", func(context.Context) (bool, error) {
		pods, err := n.cgroups.Pods()
		for _, uid := range pods {
			if uid == goes.UID {
				return false, err
			}
		}
		return true, err
	})
	n.untouched(before, "an API server that was away")
	n.create(n.podOf("new", forever))
	n.phase("new", v1.PodRunning)
	n.delete("stays", "dies", "ends", "new")
	n.clean()
}

// givenUp waits until the cluster knows nothing of the node any more, and says so of its pods.
func (n *node) givenUp() {
	n.t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		for _, c := range n.node().Status.Conditions {
			if p := n.get("stays"); c.Type == v1.NodeReady && c.Status == v1.ConditionUnknown && !isReady(p) {
				return
			}
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("the node is not given up: %+v", n.node().Status)
		}
	}
}

// jumping is the machine's clock, set wrong. As with the machine's, timers do not jump, nor what passed since
// a moment that the clock itself told.
type jumping struct {
	clock.RealClock
	mu   sync.Mutex
	sets []setting
}

type setting struct {
	at  time.Time // the real one
	off time.Duration
}

func (j *jumping) set(off time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.sets = append(j.sets, setting{time.Now(), off})
}

func (j *jumping) Now() time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.sets) == 0 {
		return time.Now()
	}
	return time.Now().Add(j.sets[len(j.sets)-1].off)
}

func (j *jumping) Since(t time.Time) time.Duration {
	now := j.Now()
	if t == t.Round(0) { // without a monotonic reading: somebody else told it
		return now.Sub(t)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	end := time.Now()
	for i := len(j.sets) - 1; i >= 0; i-- {
		if real := t.Add(-j.sets[i].off); !real.Before(j.sets[i].at) && !real.After(end) {
			return time.Since(real)
		}
		end = j.sets[i].at
	}
	return time.Since(t)
}

// TestClockJumps sets the agent's clock hours ahead and back: nothing is restarted or held back for it.
func TestClockJumps(t *testing.T) {
	jump := &jumping{}
	n := newNode(t, func(n *node) { n.options = func(o *remote.Options) { o.Clock = jump } })
	n.create(n.podOf("stays", forever, always))
	n.create(n.podOf("dies", "while ! test -e /tmp/die; do sleep 0.1; done; exit 1", always))
	before := n.ready("stays")
	restarts := int32(0)
	for _, off := range []time.Duration{3 * time.Hour, -3 * time.Hour} {
		jump.set(off)
		n.exec(n.ready("dies"), "touch /tmp/die")
		restarts++
		n.until("dies", "is not restarted", func(p *v1.Pod) bool { return p.Status.ContainerStatuses[0].RestartCount == restarts && isReady(p) })
		n.unharmed(before, "a clock set by "+off.String())
		n.nodeReady(v1.ConditionTrue)
		name := "new-" + strings.Trim(strings.ToLower(off.String()), "-")
		n.create(n.podOf(name, forever))
		n.phase(name, v1.PodRunning)
		n.delete(name)
	}
	n.delete("stays", "dies")
	n.clean()
}
