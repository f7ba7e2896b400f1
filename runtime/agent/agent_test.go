package agent_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/quaymaster/quaymaster/runtime/agent"
	"github.com/quaymaster/quaymaster/runtime/agent/apitest"
	"github.com/quaymaster/quaymaster/runtime/agent/fleet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is a fake API with a fleet of simulated nodes.
type cluster struct {
	t      testing.TB
	client *fake.Clientset
	pods   *agent.Dispatcher
	fleet  *fleet.Fleet
	heard  sync.Map // verb to func(clienttesting.Action): what a test does with requests about pods
}

func newCluster(t testing.TB, opts fleet.Options, nodes ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, client: apitest.New()}
	c.client.PrependReactor("*", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		c.heard.Range(func(_, f any) bool {
			f.(func(clienttesting.Action))(a)
			return true
		})
		return false, nil, nil
	})
	factory := informers.NewSharedInformerFactory(c.client, 0)
	var err error
	if c.pods, err = agent.NewDispatcher(factory.Core().V1().Pods().Informer()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	opts.Client, opts.Pods = c.client, c.pods
	if c.fleet, err = fleet.New(opts); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if err := c.fleet.Add(fleet.Node{Name: n}); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() { done <- c.fleet.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		factory.Shutdown()
	})
	return c
}

// hear calls f with every request of the verb about pods.
func (c *cluster) hear(verb string, f func(clienttesting.Action)) {
	c.heard.Store(verb, func(a clienttesting.Action) {
		if a.GetVerb() == verb {
			f(a)
		}
	})
}

func podObject(node, name string, change func(*v1.Pod)) *v1.Pod {
	pod := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name)},
		Spec: v1.PodSpec{
			NodeName: node, RestartPolicy: v1.RestartPolicyAlways,
			Containers: []v1.Container{{Name: "c", Image: "registry.example/app:1"}},
		},
	}
	if change != nil {
		change(pod)
	}
	return pod
}

func (c *cluster) create(pod *v1.Pod) {
	c.t.Helper()
	if _, err := c.client.CoreV1().Pods(pod.Namespace).Create(context.Background(), pod, metav1.CreateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) pod(name string) *v1.Pod {
	pod, err := c.client.CoreV1().Pods("default").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return pod
}

// change updates a pod, again where its status was written meanwhile.
func (c *cluster) change(name string, f func(*v1.Pod)) {
	c.t.Helper()
	eventually(c.t, func() string {
		pod := c.pod(name)
		f(pod)
		if _, err := c.client.CoreV1().Pods("default").Update(context.Background(), pod, metav1.UpdateOptions{}); err != nil {
			return err.Error()
		}
		return ""
	})
}

// eventually polls a condition that says what is missing, "" for nothing.
func eventually(t testing.TB, missing func() string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		what := missing()
		if what == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (c *cluster) phase(name string, want v1.PodPhase) *v1.Pod {
	c.t.Helper()
	var pod *v1.Pod
	eventually(c.t, func() string {
		if pod = c.pod(name); pod != nil && pod.Status.Phase == want {
			return ""
		}
		return fmt.Sprintf("pod %s: want phase %s, have %+v", name, want, pod)
	})
	return pod
}

func TestPodRuns(t *testing.T) {
	c := newCluster(t, fleet.Options{}, "n1")
	c.create(podObject("n1", "a", nil))
	pod := c.phase("a", v1.PodRunning)
	if pod.Status.PodIP == "" || pod.Status.HostIP == "" || pod.Status.StartTime == nil {
		t.Errorf("addresses or start time are missing: %+v", pod.Status)
	}
	for _, cond := range pod.Status.Conditions {
		if cond.Status != v1.ConditionTrue {
			t.Errorf("condition %s is %s: %s", cond.Type, cond.Status, cond.Message)
		}
	}
	if len(pod.Status.Conditions) != 5 {
		t.Errorf("want five conditions, have %v", pod.Status.Conditions)
	}
}
