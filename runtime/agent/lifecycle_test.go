package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/quaymaster/quaymaster/runtime/agent/fleet"
)

func sim(annotations ...string) func(*v1.Pod) {
	return func(p *v1.Pod) {
		if p.Annotations == nil {
			p.Annotations = map[string]string{}
		}
		for i := 0; i < len(annotations); i += 2 {
			p.Annotations["sim.quaymaster.dev/"+annotations[i]] = annotations[i+1]
		}
	}
}

func both(fns ...func(*v1.Pod)) func(*v1.Pod) {
	return func(p *v1.Pod) {
		for _, f := range fns {
			f(p)
		}
	}
}

func policy(policy v1.RestartPolicy) func(*v1.Pod) {
	return func(p *v1.Pod) { p.Spec.RestartPolicy = policy }
}

// until polls the pod until a check has nothing to say.
func (c *cluster) until(name string, check func(*v1.Pod) string) *v1.Pod {
	c.t.Helper()
	var pod *v1.Pod
	eventually(c.t, func() string {
		if pod = c.pod(name); pod == nil {
			return "there is no pod " + name
		}
		if what := check(pod); what != "" {
			return fmt.Sprintf("%s; the status is %+v", what, pod.Status)
		}
		return ""
	})
	return pod
}

func waiting(reason string) func(*v1.Pod) string {
	return func(p *v1.Pod) string {
		if len(p.Status.ContainerStatuses) == 1 {
			if w := p.Status.ContainerStatuses[0].State.Waiting; w != nil && w.Reason == reason {
				return ""
			}
		}
		return "want the container to wait with reason " + reason
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

func TestPodsThatEnd(t *testing.T) {
	c := newCluster(t, fleet.Options{}, "n1")
	for name, test := range map[string]struct {
		change func(*v1.Pod)
		phase  v1.PodPhase
		code   int32
		reason string
		ready  string // the Ready condition's reason
	}{
		"succeeds":     {both(policy(v1.RestartPolicyNever), sim("run-for", "5ms")), v1.PodSucceeded, 0, "Completed", "PodCompleted"},
		"at-once":      {both(policy(v1.RestartPolicyOnFailure), sim("run-for", "0s")), v1.PodSucceeded, 0, "Completed", "PodCompleted"},
		"fails":        {both(policy(v1.RestartPolicyNever), sim("run-for", "5ms", "exit-code", "3")), v1.PodFailed, 3, "Error", "PodFailed"},
		"fails-at-run": {both(policy(v1.RestartPolicyNever), sim("fail", "start")), v1.PodFailed, 128, "StartError", "PodFailed"},
	} {
		t.Run(name, func(t *testing.T) {
			c := &cluster{t: t, client: c.client}
			c.create(podObject("n1", name, test.change))
			pod := c.phase(name, test.phase)
			end := pod.Status.ContainerStatuses[0].State.Terminated
			if end == nil || end.ExitCode != test.code || end.Reason != test.reason || end.ContainerID == "" || end.FinishedAt.IsZero() {
				t.Errorf("how it ended: %+v", end)
			}
			if ready := condition(pod, v1.PodReady); ready.Status != v1.ConditionFalse || ready.Reason != test.ready {
				t.Errorf("ready condition: %+v", ready)
			}
			if up := condition(pod, v1.PodReadyToStartContainers); up.Status != v1.ConditionFalse {
				t.Errorf("the sandbox's condition: %+v", up)
			}
		})
	}
}

func TestCrashLoopBackOff(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0))
	c := newCluster(t, fleet.Options{Clock: clock}, "n1")
	c.create(podObject("n1", "loop", sim("run-for", "0s", "exit-code", "1")))
	// The first restart is at once, then there is 10 s, 20 s, … between them.
	for restarts, delay := range []time.Duration{0, 10 * time.Second, 20 * time.Second, 40 * time.Second} {
		if restarts == 0 {
			continue
		}
		pod := c.until("loop", func(p *v1.Pod) string {
			if what := waiting("CrashLoopBackOff")(p); what != "" {
				return what
			}
			if p.Status.ContainerStatuses[0].RestartCount != int32(restarts) {
				return fmt.Sprintf("want %d restarts", restarts)
			}
			return ""
		})
		st := pod.Status.ContainerStatuses[0]
		want := fmt.Sprintf("back-off %s restarting failed container=c pod=loop_default(uid-loop)", delay)
		if st.State.Waiting.Message != want {
			t.Errorf("message %q, want %q", st.State.Waiting.Message, want)
		}
		if last := st.LastTerminationState.Terminated; last == nil || last.ExitCode != 1 {
			t.Errorf("last state: %+v", st.LastTerminationState)
		}
		if pod.Status.Phase != v1.PodRunning {
			t.Errorf("phase %s", pod.Status.Phase)
		}
		timers(t, clock)
		clock.Step(delay)
	}
}

// timers waits until the lease's, the status', the relist's and a pod's timer run.
func timers(t *testing.T, clock *clocktesting.FakeClock) {
	t.Helper()
	eventually(t, func() string {
		if n := clock.Waiters(); n < 4 {
			return fmt.Sprintf("%d timers run, want 4", n)
		}
		return ""
	})
}

// TestEndIsToldBeforeTheRestart has a container that ends and is to run again: the API hears of its end, and the pod is not
// ready meanwhile.
func TestEndIsToldBeforeTheRestart(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Now())
	c := newCluster(t, fleet.Options{Clock: clock}, "n1")
	told := make(chan *v1.Pod, 100)
	c.hear("update", func(a clienttesting.Action) {
		if update, ok := a.(clienttesting.UpdateAction); ok {
			told <- update.GetObject().(*v1.Pod)
		}
	})
	c.create(podObject("n1", "again", sim("run-for", "5s")))
	c.until("again", func(p *v1.Pod) string {
		if condition(p, v1.PodReady).Status != v1.ConditionTrue {
			return "want the pod to be ready"
		}
		return ""
	})
	timers(t, clock)
	clock.Step(5 * time.Second)
	for {
		select {
		case p := <-told:
			if len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].State.Terminated == nil {
				continue
			}
			if ready := condition(p, v1.PodReady); ready.Status != v1.ConditionFalse || p.Status.ContainerStatuses[0].RestartCount != 0 || p.Status.Phase != v1.PodRunning {
				t.Errorf("the end is told as %+v", p.Status)
			}
			return
		case <-time.After(time.Minute):
			t.Fatal("the container's end is not told")
		}
	}
}

func TestImageThatCannotBePulled(t *testing.T) {
	c := newCluster(t, fleet.Options{}, "n1")
	c.create(podObject("n1", "nopull", sim("fail", "pull")))
	pod := c.until("nopull", waiting("ErrImagePull"))
	if pod.Status.Phase != v1.PodPending {
		t.Errorf("phase %s", pod.Status.Phase)
	}
	pod = c.until("nopull", waiting("ImagePullBackOff"))
	if m := pod.Status.ContainerStatuses[0].State.Waiting.Message; !strings.HasPrefix(m, `Back-off pulling image "registry.example/app:1": ErrImagePull: `) {
		t.Errorf("message %q", m)
	}
	c.create(podObject("n1", "never", func(p *v1.Pod) { p.Spec.Containers[0].ImagePullPolicy = v1.PullNever }))
	pod = c.until("never", waiting("ErrImageNeverPull"))
	if m := pod.Status.ContainerStatuses[0].State.Waiting.Message; m != `Container image "registry.example/app:1" is not present with pull policy of Never` {
		t.Errorf("message %q", m)
	}
	c.create(podObject("n1", "badname", func(p *v1.Pod) { p.Spec.Containers[0].Image = "Not A Name" }))
	c.until("badname", waiting("InvalidImageName"))
	c.create(podObject("n1", "noconfig", func(p *v1.Pod) {
		p.Spec.Containers[0].EnvFrom = []v1.EnvFromSource{{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "none"}}}}
	}))
	pod = c.until("noconfig", waiting("CreateContainerConfigError"))
	if m := pod.Status.ContainerStatuses[0].State.Waiting.Message; m != `configmap "none" not found` {
		t.Errorf("message %q", m)
	}
}

func TestInitContainersRunInOrder(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0))
	c := newCluster(t, fleet.Options{Clock: clock}, "n1")
	always := v1.ContainerRestartPolicyAlways
	c.create(podObject("n1", "init", both(sim("run-for.one", "10s", "run-for.two", "10s"), func(p *v1.Pod) {
		p.Spec.InitContainers = []v1.Container{
			{Name: "one", Image: "app"}, {Name: "side", Image: "app", RestartPolicy: &always}, {Name: "two", Image: "app"},
		}
	})))
	states := func(p *v1.Pod) string {
		var out []string
		for _, s := range append(append([]v1.ContainerStatus(nil), p.Status.InitContainerStatuses...), p.Status.ContainerStatuses...) {
			switch {
			case s.State.Running != nil:
				out = append(out, "running")
			case s.State.Terminated != nil:
				out = append(out, "ended")
			default:
				out = append(out, s.State.Waiting.Reason)
			}
		}
		return string(p.Status.Phase) + ": " + strings.Join(out, " ")
	}
	want := func(text string) func(*v1.Pod) string {
		return func(p *v1.Pod) string {
			if got := states(p); got != text {
				return fmt.Sprintf("have %q, want %q", got, text)
			}
			return ""
		}
	}
	pod := c.until("init", want("Pending: running PodInitializing PodInitializing PodInitializing"))
	if cond := condition(pod, v1.PodInitialized); cond.Status != v1.ConditionFalse || cond.Message != "containers with incomplete status: [one side two]" {
		t.Errorf("condition %+v", cond)
	}
	timers(t, clock)
	clock.Step(10 * time.Second)
	c.until("init", want("Pending: ended running running PodInitializing"))
	timers(t, clock)
	clock.Step(10 * time.Second)
	pod = c.until("init", want("Running: ended running ended running"))
	if cond := condition(pod, v1.PodReady); cond.Status != v1.ConditionTrue {
		t.Errorf("condition %+v", cond)
	}
}

func TestInitContainerThatFails(t *testing.T) {
	c := newCluster(t, fleet.Options{}, "n1")
	c.create(podObject("n1", "badinit", both(policy(v1.RestartPolicyNever), sim("run-for.one", "0s", "exit-code.one", "4"), func(p *v1.Pod) {
		p.Spec.InitContainers = []v1.Container{{Name: "one", Image: "app"}}
	})))
	pod := c.phase("badinit", v1.PodFailed)
	if end := pod.Status.InitContainerStatuses[0].State.Terminated; end == nil || end.ExitCode != 4 {
		t.Errorf("init container: %+v", pod.Status.InitContainerStatuses)
	}
	if w := pod.Status.ContainerStatuses[0].State.Waiting; w == nil || w.Reason != "PodInitializing" {
		t.Errorf("container: %+v", pod.Status.ContainerStatuses)
	}
}

// deletions records how the agent deletes pods.
type deletions struct {
	mu   sync.Mutex
	opts map[string]metav1.DeleteOptions
}

func watchDeletions(c *cluster) *deletions {
	d := &deletions{opts: map[string]metav1.DeleteOptions{}}
	c.hear("delete", func(a clienttesting.Action) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.opts[a.(clienttesting.DeleteActionImpl).Name] = a.(clienttesting.DeleteActionImpl).DeleteOptions
	})
	return d
}

// mark begins a graceful deletion, as the API server does.
func (c *cluster) mark(name string, grace int64, now time.Time) {
	c.t.Helper()
	at := metav1.NewTime(now.Add(time.Duration(grace) * time.Second))
	c.change(name, func(pod *v1.Pod) { pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &at, &grace })
}

func TestGracefulDeletion(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0))
	c := newCluster(t, fleet.Options{Clock: clock}, "n1")
	d := watchDeletions(c)
	var mu sync.Mutex
	var last *v1.Pod
	c.hear("update", func(a clienttesting.Action) {
		mu.Lock()
		defer mu.Unlock()
		if a.GetSubresource() == "status" {
			last = a.(clienttesting.UpdateAction).GetObject().(*v1.Pod)
		}
	})
	c.create(podObject("n1", "stubborn", sim("ignore-sigterm", "true")))
	c.phase("stubborn", v1.PodRunning)
	c.mark("stubborn", 30, clock.Now())
	timers(t, clock)
	if c.pod("stubborn") == nil {
		t.Fatal("it was deleted within its grace period")
	}
	clock.Step(30 * time.Second)
	eventually(t, func() string {
		if c.pod("stubborn") != nil {
			return "the pod is still there"
		}
		return ""
	})
	d.mu.Lock()
	opts := d.opts["stubborn"]
	d.mu.Unlock()
	if opts.GracePeriodSeconds == nil || *opts.GracePeriodSeconds != 0 || opts.Preconditions == nil || *opts.Preconditions.UID != "uid-stubborn" {
		t.Errorf("delete options %+v", opts)
	}
	mu.Lock()
	defer mu.Unlock()
	if last.Status.Phase != v1.PodFailed || last.Status.ContainerStatuses[0].State.Terminated.ExitCode != 137 {
		t.Errorf("last status: %+v", last.Status)
	}
}

func TestShorterGracePeriod(t *testing.T) {
	c := newCluster(t, fleet.Options{}, "n1")
	c.create(podObject("n1", "stubborn", sim("ignore-sigterm", "true")))
	c.phase("stubborn", v1.PodRunning)
	now := time.Now()
	c.mark("stubborn", 3600, now)
	c.mark("stubborn", 1, now)
	eventually(t, func() string {
		if c.pod("stubborn") != nil {
			return "the pod is still there"
		}
		return ""
	})
}

func TestDeletedByForce(t *testing.T) {
	c := newCluster(t, fleet.Options{}, "n1")
	c.create(podObject("n1", "a", nil))
	c.phase("a", v1.PodRunning)
	if err := c.client.CoreV1().Pods("default").Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if _, body := c.get("n1", "/pods"); strings.Contains(body, "uid-a") {
			return "the node still has the pod"
		}
		return ""
	})
}

// get asks a node's kubelet API.
func (c *cluster) get(node, path string) (int, string) {
	c.t.Helper()
	h, ok := c.fleet.Handler(node)
	if !ok {
		c.t.Fatalf("no node %s", node)
	}
	srv := httptest.NewServer(h)
	defer srv.Close()
	r, err := srv.Client().Get(srv.URL + path)
	if err != nil {
		c.t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return r.StatusCode, string(body)
}

func TestKubeletAPI(t *testing.T) {
	c := newCluster(t, fleet.Options{Dir: t.TempDir()}, "n1")
	c.create(podObject("n1", "a", sim("log", "one\ntwo\nthree")))
	c.phase("a", v1.PodRunning)
	c.create(podObject("n1", "waits", both(sim("fail", "pull"), func(p *v1.Pod) { p.Spec.Containers[0].ImagePullPolicy = v1.PullAlways })))
	c.until("waits", waiting("ImagePullBackOff"))
	for path, want := range map[string]struct {
		code int
		body string
	}{
		"/healthz":                                                  {200, "ok"},
		"/containerLogs/default/a/c":                                {200, "one\ntwo\nthree\n"},
		"/containerLogs/default/a/c?tailLines=1":                    {200, "three\n"},
		"/containerLogs/default/a/c?tail=2":                         {200, "two\nthree\n"},
		"/containerLogs/default/a/c?limitBytes=5":                   {200, "one\nt"},
		"/containerLogs/default/a/c?stream=Stderr":                  {200, ""},
		"/containerLogs/default/a/c?sinceSeconds=3600":              {200, "one\ntwo\nthree\n"},
		"/containerLogs/default/a/c?sinceTime=2999-01-01T00:00:00Z": {200, ""},
		"/containerLogs/default/a/c?tailLines=-1":                   {422, ""},
		"/containerLogs/default/a/c?previous=true":                  {400, `previous terminated container "c" in pod "a" not found`},
		"/containerLogs/default/a/d":                                {404, `container "d" not found in pod "a"`},
		"/containerLogs/default/b/c":                                {404, `pod "b" does not exist`},
		"/containerLogs/default/waits/c":                            {400, `container "c" in pod "waits" is waiting to start: trying and failing to pull image`},
	} {
		code, body := c.get("n1", path)
		if code != want.code || code != 422 && strings.TrimSuffix(body, "\n") != strings.TrimSuffix(want.body, "\n") {
			t.Errorf("%s: %d %q, want %d %q", path, code, body, want.code, want.body)
		}
	}
	if _, body := c.get("n1", "/containerLogs/default/a/c?timestamps=true&tailLines=1"); !strings.HasSuffix(body, "Z three\n") {
		t.Errorf("with time: %q", body)
	}
	var list v1.PodList
	_, body := c.get("n1", "/pods")
	if err := json.Unmarshal([]byte(body), &list); err != nil || len(list.Items) != 2 || list.Kind != "PodList" {
		t.Errorf("pods: %v %s", err, body)
	}
	_, body = c.get("n1", "/runningpods/")
	if err := json.Unmarshal([]byte(body), &list); err != nil || len(list.Items) != 1 || list.Items[0].Name != "a" {
		t.Errorf("running pods: %v %s", err, body)
	}
}

func TestFollowEndsWithItsReader(t *testing.T) {
	c := newCluster(t, fleet.Options{Dir: t.TempDir()}, "n1")
	c.create(podObject("n1", "a", sim("log", "one")))
	c.phase("a", v1.PodRunning)
	h, _ := c.fleet.Handler("n1")
	srv := httptest.NewServer(h)
	defer srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+"/containerLogs/default/a/c?follow=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode != 200 {
		t.Fatalf("%s: %v", r.Status, must(io.ReadAll(r.Body)))
	}
	line := make([]byte, 4)
	if _, err := io.ReadFull(r.Body, line); err != nil || string(line) != "one\n" {
		t.Fatalf("first line %q, %v", line, err)
	}
	cancel()
	if _, err := io.ReadAll(r.Body); err == nil {
		t.Error("the log ended by itself")
	}
}

func TestNode(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0))
	c := newCluster(t, fleet.Options{Clock: clock, Version: "v1.36.3"})
	var stale atomic.Bool
	c.client.PrependReactor("update", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
		if stale.CompareAndSwap(true, false) {
			return true, nil, apierrors.NewConflict(v1.Resource("nodes"), "n1", errors.New("it has changed"))
		}
		return false, nil, nil
	})
	taint := v1.Taint{Key: "node-role.kubernetes.io/master", Effect: v1.TaintEffectNoSchedule}
	if err := c.fleet.Add(fleet.Node{Name: "n1", Labels: map[string]string{"disktype": "ssd"}, Taints: []v1.Taint{taint}}); err != nil {
		t.Fatal(err)
	}
	if err := c.fleet.Add(fleet.Node{Name: "n1"}); err == nil {
		t.Error("a node was added twice")
	}
	ctx := t.Context()
	var lease time.Time
	eventually(t, func() string {
		l, err := c.client.CoordinationV1().Leases(v1.NamespaceNodeLease).Get(ctx, "n1", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		lease = l.Spec.RenewTime.Time
		if *l.Spec.LeaseDurationSeconds != 40 || len(l.OwnerReferences) != 1 || l.OwnerReferences[0].Kind != "Node" {
			return fmt.Sprintf("lease %+v", l)
		}
		return ""
	})
	n, err := c.client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n.Labels["disktype"] != "ssd" || n.Labels[v1.LabelHostname] != "n1" || len(n.Spec.Taints) != 1 || n.Status.Allocatable.Cpu().Value() != 4 ||
		n.Status.NodeInfo.ContainerRuntimeVersion != "sim://1" || n.Status.NodeInfo.KubeletVersion != "v1.36.3" || len(n.Status.Conditions) != 4 {
		t.Errorf("node %+v", n)
	}
	eventually(t, func() string { // the lease's and the status' timers run
		if clock.Waiters() < 3 {
			return "timers are missing"
		}
		return ""
	})
	clock.Step(11 * time.Second)
	eventually(t, func() string {
		l, err := c.client.CoordinationV1().Leases(v1.NamespaceNodeLease).Get(ctx, "n1", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if !l.Spec.RenewTime.After(lease) {
			return "the lease is not renewed"
		}
		return ""
	})
	// What others give the node to offer, as an extended resource, stays.
	patch := `{"status":{"capacity":{"example.com/dongle":"3"},"allocatable":{"example.com/dongle":"2"}}}`
	if _, err := c.client.CoreV1().Nodes().Patch(ctx, "n1", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	stale.Store(true)
	clock.Step(6 * time.Minute)
	eventually(t, func() string {
		n, err := c.client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		ready := n.Status.Conditions[slices.IndexFunc(n.Status.Conditions, func(c v1.NodeCondition) bool { return c.Type == v1.NodeReady })]
		if stale.Load() || clock.Since(ready.LastHeartbeatTime.Time) > time.Minute {
			return "the status is not reported"
		}
		if has, offers := n.Status.Capacity["example.com/dongle"], n.Status.Allocatable["example.com/dongle"]; has.Value() != 3 || offers.Value() != 3 {
			t.Fatalf("%v of %v dongles are offered, want 3 of 3", &offers, &has)
		}
		return ""
	})
	// A node that is deleted stays deleted, and its lease with it.
	if err := c.client.CoreV1().Nodes().Delete(ctx, "n1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.client.CoordinationV1().Leases(v1.NamespaceNodeLease).Delete(ctx, "n1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	asked := len(c.client.Actions())
	for len(c.client.Actions()) < asked+6 { // a few rounds of lease and status
		clock.Step(11 * time.Second)
		time.Sleep(time.Millisecond)
	}
	if _, err := c.client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the node came back: %v", err)
	}
	if _, err := c.client.CoordinationV1().Leases(v1.NamespaceNodeLease).Get(ctx, "n1", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the lease came back: %v", err)
	}
	if err := c.fleet.Remove("n1"); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.fleet.Handler("n1"); ok {
		t.Error("a removed node has a handler")
	}
}

func must(b []byte, err error) string { return string(b) + fmt.Sprint(err) }
