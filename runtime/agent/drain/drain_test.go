package drain

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
	testclock "k8s.io/utils/clock/testing"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func podOf(name, owner string, change ...func(*v1.Pod)) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)}, Spec: v1.PodSpec{NodeName: "n1"}, Status: v1.PodStatus{Phase: v1.PodRunning}}
	if owner != "" {
		yes := true
		p.OwnerReferences = []metav1.OwnerReference{{Kind: owner, Name: "o", Controller: &yes}}
	}
	for _, f := range change {
		f(p)
	}
	return p
}

func nodeOf(wanted string, s string) *v1.Node {
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Annotations: map[string]string{}}}
	if wanted != "" {
		n.Annotations[Annotation] = wanted
	}
	if s != "" {
		n.Annotations[StateAnnotation] = s
	}
	return n
}

func TestPlan(t *testing.T) {
	draining, switching := `{"from":"a","to":"b","step":"Draining","cordoned":true}`, `{"from":"a","to":"b","step":"Switching","cordoned":true}`
	web := podOf("web", "ReplicaSet")
	for name, test := range map[string]struct {
		node    *v1.Node
		pods    []*v1.Pod
		current string
		want    Action
		to      string
	}{
		"nothing wanted":                  {nodeOf("", ""), nil, "a", Nothing, ""},
		"there already":                   {nodeOf("a", ""), nil, "a", Nothing, ""},
		"another":                         {nodeOf("b", ""), nil, "a", Begin, "b"},
		"pods":                            {nodeOf("b", draining), []*v1.Pod{web}, "a", Evict, "b"},
		"only the node's own":             {nodeOf("b", draining), []*v1.Pod{podOf("ds", "DaemonSet"), podOf("m", "Node", func(p *v1.Pod) { p.Annotations = map[string]string{v1.MirrorPodAnnotationKey: "x"} })}, "a", Empty, "b"},
		"ended pods":                      {nodeOf("b", draining), []*v1.Pod{podOf("job", "Job", func(p *v1.Pod) { p.Status.Phase = v1.PodSucceeded })}, "a", Empty, "b"},
		"drained":                         {nodeOf("b", switching), nil, "a", Switch, "b"},
		"drained, whatever comes":         {nodeOf("b", switching), []*v1.Pod{web}, "a", Switch, "b"},
		"changed":                         {nodeOf("b", switching), []*v1.Pod{web}, "b", Finish, "b"},
		"called off":                      {nodeOf("a", draining), []*v1.Pod{web}, "a", Finish, "b"},
		"annotation removed":              {nodeOf("", draining), []*v1.Pod{web}, "a", Finish, "b"},
		"annotation removed, late":        {nodeOf("", switching), nil, "a", Switch, "b"},
		"annotation removed, later":       {nodeOf("", switching), nil, "b", Finish, "b"},
		"another mind":                    {nodeOf("c", draining), []*v1.Pod{web}, "a", Begin, "c"},
		"back from one that does not run": {nodeOf("a", switching), nil, "b", Begin, "a"},
	} {
		t.Run(name, func(t *testing.T) {
			got, s, err := Plan(test.node, test.pods, test.current)
			if err != nil || got != test.want || s != nil && s.To != test.to {
				t.Errorf("%q to %v, %v; want %q to %s", got, s, err, test.want, test.to)
			}
		})
	}
	if _, _, err := Plan(nodeOf("b", "{"), nil, "a"); err == nil {
		t.Error("a plan that cannot be read was followed")
	}
}

// cluster is a server with a node, where the n-th write can be the last that an agent makes.
type cluster struct {
	t      *testing.T
	client *fake.Clientset

	mu      sync.Mutex
	writes  int
	dies    int                // at which write; 0 = never
	after   bool               // it dies after the write, not before
	die     context.CancelFunc // the agent
	blocked int                // evictions that a budget refuses yet
	emptied map[string]int     // by runtime
	log     []string
}

func newCluster(t *testing.T, pods ...*v1.Pod) *cluster {
	node := nodeOf("b", "")
	node.Status.Conditions = []v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionTrue, LastHeartbeatTime: metav1.NewTime(time.Now().Add(time.Hour))}}
	objects := []runtime.Object{node}
	for _, p := range pods {
		objects = append(objects, p)
	}
	c := &cluster{t: t, client: fake.NewClientset(objects...), emptied: map[string]int{}}
	c.client.PrependReactor("create", "pods", func(action k8stesting.Action) (bool, runtime.Object, error) {
		if action.GetSubresource() != "eviction" {
			return false, nil, nil
		}
		if err := c.write("evict"); err != nil {
			return true, nil, err
		}
		c.mu.Lock()
		refused := c.blocked > 0
		c.blocked--
		c.mu.Unlock()
		if refused {
			return true, nil, apierrors.NewTooManyRequests("Cannot evict pod as it would violate the pod's disruption budget.", 0)
		}
		e, _ := action.(k8stesting.CreateAction).GetObject().(metav1.Object)
		err := c.client.Tracker().Delete(v1.SchemeGroupVersion.WithResource("pods"), "default", e.GetName())
		return true, nil, errors.Join(err, c.wrote())
	})
	plain := k8stesting.ObjectReaction(c.client.Tracker())
	c.client.PrependReactor("patch", "nodes", func(action k8stesting.Action) (bool, runtime.Object, error) {
		if err := c.write("patch"); err != nil {
			return true, nil, err
		}
		_, o, err := plain(action)
		return true, o, errors.Join(err, c.wrote())
	})
	return c
}

var errDied = errors.New("the agent was killed")

// write counts one; the agent may die at it.
func (c *cluster) write(what string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes++
	c.log = append(c.log, what)
	if c.writes == c.dies && !c.after {
		c.die()
		return errDied
	}
	return nil
}

func (c *cluster) wrote() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writes == c.dies && c.after {
		c.die()
		return errDied
	}
	return nil
}

// run is an agent on a runtime until it dies, changes the runtime, or is done.
func (c *cluster) run(current string) (to string, done bool) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c.mu.Lock()
	c.die = cancel
	c.mu.Unlock()
	clock := testclock.NewFakeClock(time.Now())
	finished := make(chan struct{})
	go func() { // time passes whenever it is waited for, and the end is looked for
		defer close(finished)
		for ctx.Err() == nil {
			clock.Step(retry)
			n, err := c.client.Tracker().Get(v1.SchemeGroupVersion.WithResource("nodes"), "", "n1")
			if err == nil {
				node := n.(*v1.Node)
				if _, planned := node.Annotations[StateAnnotation]; !planned && node.Annotations[Current] == "b" {
					done = true
					cancel()
				}
			}
			time.Sleep(time.Millisecond)
		}
	}()
	to, err := Run(ctx, Options{
		Client: c.client, NodeName: "n1", Runtime: current, Check: func(string) error { return nil }, Clock: clock,
		Empty: func(context.Context) error {
			if left := c.evictable(); len(left) > 0 {
				c.t.Errorf("the runtime is emptied with pods that were not evicted: %v", left)
			}
			c.emptied[current]++
			if err := c.write("empty"); err != nil {
				return err
			}
			return c.wrote()
		},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	cancel()
	<-finished
	return to, done
}

func (c *cluster) evictable() []string {
	list, err := c.client.Tracker().List(v1.SchemeGroupVersion.WithResource("pods"), v1.SchemeGroupVersion.WithKind("Pod"), "default")
	if err != nil {
		c.t.Fatal(err)
	}
	var pods []*v1.Pod
	for i := range list.(*v1.PodList).Items {
		pods = append(pods, &list.(*v1.PodList).Items[i])
	}
	var out []string
	for _, p := range Evictable(pods) {
		out = append(out, p.Name)
	}
	return out
}

// all runs agents one after the other until the plan is done, and checks its end.
func (c *cluster) all() {
	c.t.Helper()
	current := "a"
	for range 20 {
		to, done := c.run(current)
		if to != "" {
			current = to // as the agent's file says it at its next start
		}
		if done {
			break
		}
	}
	n, err := c.client.Tracker().Get(v1.SchemeGroupVersion.WithResource("nodes"), "", "n1")
	if err != nil {
		c.t.Fatal(err)
	}
	node := n.(*v1.Node)
	if node.Spec.Unschedulable || node.Annotations[Current] != "b" || node.Annotations[StateAnnotation] != "" || c.emptied["a"] == 0 || c.emptied["b"] > 0 {
		c.t.Errorf("unschedulable %v, annotations %v, emptied %v; it did %v", node.Spec.Unschedulable, node.Annotations, c.emptied, c.log)
	}
}

func pods() []*v1.Pod {
	return []*v1.Pod{podOf("web-1", "ReplicaSet"), podOf("web-2", "ReplicaSet"), podOf("ds", "DaemonSet")}
}

// TestInterruptedAtEveryStep kills the agent before and after each of its writes.
func TestInterruptedAtEveryStep(t *testing.T) {
	whole := newCluster(t, pods()...)
	whole.all()
	if whole.writes < 7 { // which runtime, plan, two evictions, drained, emptied, finished
		t.Fatalf("a plan of %d writes: %v", whole.writes, whole.log)
	}
	for dies := 1; dies <= whole.writes; dies++ {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s %d, after %v", whole.log[dies-1], dies, after), func(t *testing.T) {
				c := newCluster(t, pods()...)
				c.dies, c.after = dies, after
				c.all()
			})
		}
	}
}

func TestBudgetIsHonoured(t *testing.T) {
	c := newCluster(t, pods()...)
	c.blocked = 5
	c.all()
	evictions := 0
	for _, what := range c.log {
		if what == "evict" {
			evictions++
		}
	}
	if evictions != 7 {
		t.Errorf("%d evictions were asked for, want 5 that a budget refuses and 2", evictions)
	}
}

func emptyDir(p *v1.Pod) {
	p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}
}

// TestDataIsLostByLeave evicts a pod with an emptyDir where the Node says that it may.
func TestDataIsLostByLeave(t *testing.T) {
	c := newCluster(t, podOf("cache", "ReplicaSet", emptyDir))
	node := nodeOf("b", "")
	node.Annotations[DeleteEmptyDir] = "true"
	node.Status.Conditions = []v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionTrue, LastHeartbeatTime: metav1.NewTime(time.Now().Add(time.Hour))}}
	if err := c.client.Tracker().Update(v1.SchemeGroupVersion.WithResource("nodes"), node, ""); err != nil {
		t.Fatal(err)
	}
	c.all()
	if left := c.evictable(); len(left) > 0 {
		t.Errorf("pods: %v", left)
	}
}

// TestWhatKeepsAPlan is told by one event, and nothing is done meanwhile.
func TestWhatKeepsAPlan(t *testing.T) {
	for name, test := range map[string]struct {
		pods   []*v1.Pod
		check  error
		reason string
	}{
		"a pod without a controller":      {[]*v1.Pod{podOf("bare", "")}, nil, Blocked},
		"data that would be lost":         {[]*v1.Pod{podOf("cache", "ReplicaSet", emptyDir)}, nil, Blocked},
		"a runtime that cannot run there": {nil, errors.New("there is no runc"), Failed},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, test.pods...)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			clock := testclock.NewFakeClock(time.Now())
			told, rounds := 0, 0
			go func() {
				for ctx.Err() == nil {
					clock.Step(retry)
					time.Sleep(time.Millisecond)
				}
			}()
			to, err := Run(ctx, Options{
				Client: c.client, NodeName: "n1", Runtime: "a", Clock: clock, Empty: func(context.Context) error { t.Error("emptied"); return nil },
				Check: func(string) error {
					if rounds++; rounds == 5 {
						cancel()
					}
					return test.check
				},
				Event: func(_, reason, _ string) {
					if reason == test.reason {
						if told++; test.check == nil {
							cancel()
						}
					}
				},
			})
			if to != "" || err != nil || told != 1 {
				t.Errorf("to %q, %v, %d events", to, err, told)
			}
			if test.check == nil {
				if left := c.evictable(); len(left) != 1 {
					t.Errorf("pods: %v", left)
				}
			}
		})
	}
}
