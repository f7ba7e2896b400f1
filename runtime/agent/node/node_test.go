package node_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/runtime/agent"
	"github.com/quaymaster/quaymaster/runtime/agent/node"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// asked counts requests for nodes by verb.
func asked(c *fake.Clientset) map[string]int {
	out := map[string]int{}
	for _, a := range c.Actions() {
		if a.GetResource().Resource == "nodes" {
			out[a.GetVerb()]++
		}
	}
	return out
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s does not come to be", what)
		}
	}
}

// TestNodeThatOthersMake waits for its object, takes it as it is, and keeps status and lease alone.
func TestNodeThatOthersMake(t *testing.T) {
	client := fake.NewClientset()
	m := node.New(node.Options{
		Name: "n1", Client: client, Unregistered: true, Labels: map[string]string{"from": "agent"}, Taints: []v1.Taint{{Key: "agent", Effect: v1.TaintEffectNoSchedule}},
		Capacity: agent.DefaultCapacity(), Healthy: func() error { return nil }, Clock: clock.RealClock{}, Logger: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	joined, done := make(chan struct{}), make(chan struct{})
	go func() { defer close(done); m.Run(ctx, func() { close(joined) }) }()
	defer func() { cancel(); <-done }()
	eventually(t, "the second look for the node", func() bool { return asked(client)["get"] > 1 })
	select {
	case <-joined:
		t.Fatal("a node that is not there has joined")
	default:
	}
	if leases, err := client.CoordinationV1().Leases(v1.NamespaceNodeLease).List(ctx, metav1.ListOptions{}); err != nil || len(leases.Items) > 0 {
		t.Errorf("leases of no node: %v, %v", leases, err)
	}
	made := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u", Labels: map[string]string{"from": "others"}}}
	if _, err := client.CoreV1().Nodes().Create(ctx, made, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-joined:
	case <-time.After(time.Minute):
		t.Fatal("the node does not join")
	}
	now, err := client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(now.Labels) != 1 || now.Labels["from"] != "others" || len(now.Spec.Taints) > 0 {
		t.Errorf("the object that others made is changed: %+v %+v", now.ObjectMeta, now.Spec)
	}
	if now.Status.Allocatable.Cpu().Value() != 4 || len(now.Status.Conditions) != 4 {
		t.Errorf("its status: %+v", now.Status)
	}
	eventually(t, "the lease", func() bool {
		l, err := client.CoordinationV1().Leases(v1.NamespaceNodeLease).Get(ctx, "n1", metav1.GetOptions{})
		return err == nil && len(l.OwnerReferences) == 1 && l.OwnerReferences[0].UID == "u"
	})
	if verbs := asked(client); verbs["create"] != 1 { // the test's own
		t.Errorf("the agent made the node: %v", verbs)
	}
}
