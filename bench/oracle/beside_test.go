package oracle

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/events"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	"k8s.io/kubernetes/pkg/scheduler/profile"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
)

var besidePods = flag.Int("beside-pods", 400, "pods of the test that runs upstream's scheduler beside ours")

const (
	ours   = v1.DefaultSchedulerName
	theirs = "kube-scheduler"
)

// TestUpstreamSchedulerBeside runs upstream's scheduler under a name of its own on
// an engine whose scheduler has the default name. Each binds its own pods alone,
// and counts what the other has bound.
//
//	go test . -run Beside -beside-pods=5000
func TestUpstreamSchedulerBeside(t *testing.T) {
	// A node takes four pods of a processor. The nodes of this process say that their pods run.
	const perNode = 4
	nodes := core.Nodes("node", max(2, *besidePods/perNode))
	for i := range nodes {
		nodes[i].Capacity = v1.ResourceList{"cpu": resource.MustParse("4"), "memory": resource.MustParse("32Gi"), "pods": resource.MustParse("110")}
	}
	engine := coretest.Start(t, core.Options{DataDir: t.TempDir(), Listen: "127.0.0.1:0", Nodes: nodes})
	kubeconfig, err := engine.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	startUpstreamScheduler(t, config)
	client := engine.Client()
	room := perNode * len(nodes)

	// Upstream's takes half of the room, then ours all that is left and no more,
	// though it is asked for more.
	create(t, client, "theirs", theirs, room/2)
	bound(t, client, "theirs", room/2)
	create(t, client, "ours", ours, room/2+10)
	bound(t, client, "ours", room/2)
	unschedulable(t, client, "ours", 10)
	noneOverfull(t, client, perNode)

	// What ours has bound is no room for upstream's; when it is gone, it is.
	create(t, client, "late", theirs, 5)
	unschedulable(t, client, "late", 5)
	remove(t, client, "ours")
	bound(t, client, "late", 5)
	remove(t, client, "late")
	remove(t, client, "theirs")

	// Both at once, with room for just as many: what one has decided and not bound
	// yet, the other's bind must not take.
	create(t, client, "first", ours, room/4)
	create(t, client, "second", theirs, room/4)
	create(t, client, "third", ours, room/4)
	create(t, client, "fourth", theirs, room/4)
	for _, namespace := range []string{"first", "second", "third", "fourth"} {
		bound(t, client, namespace, room/4)
	}
	noneOverfull(t, client, perNode)

	// Whose word it was that bound a pod is in its event.
	for namespace, reporter := range map[string]string{"first": ours, "second": theirs, "theirs": theirs} {
		coretest.Eventually(t, "events of "+namespace, func(ctx context.Context) (bool, error) {
			list, err := client.EventsV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=Scheduled"})
			if err != nil || len(list.Items) == 0 {
				return false, err
			}
			for _, e := range list.Items {
				if e.ReportingController != reporter {
					return false, fmt.Errorf("%s was bound by %s, not by %s", e.Regarding.Name, e.ReportingController, reporter)
				}
			}
			return true, nil
		})
	}
}

func startUpstreamScheduler(t *testing.T, config *rest.Config) {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	defaults, err := latest.Default()
	if err != nil {
		t.Fatal(err)
	}
	defaults.Profiles[0].SchedulerName = theirs
	ctx, cancel := context.WithCancel(context.Background())
	factory := scheduler.NewInformerFactory(client, 0)
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		t.Fatal(err)
	}
	s, err := scheduler.New(ctx, client, factory, nil, profile.NewRecorderFactory(broadcaster), scheduler.WithKubeConfig(config), scheduler.WithProfiles(defaults.Profiles...))
	if err != nil {
		t.Fatal(err)
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	if err := s.WaitForHandlersSync(ctx); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		factory.Shutdown()
		broadcaster.Shutdown()
	})
}

func create(t *testing.T, client kubernetes.Interface, namespace, schedulerName string, pods int) {
	t.Helper()
	if _, err := client.CoreV1().Namespaces().Create(t.Context(), &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	coretest.Eventually(t, "the account of "+namespace, func(ctx context.Context) (bool, error) {
		accounts, err := client.CoreV1().ServiceAccounts(namespace).List(ctx, metav1.ListOptions{})
		return err == nil && len(accounts.Items) > 0, err
	})
	for i := range pods {
		pod := &v1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("p-%d", i)},
			Spec: v1.PodSpec{SchedulerName: schedulerName, Containers: []v1.Container{{
				Name: "c", Image: "none.invalid/none", Resources: v1.ResourceRequirements{Requests: v1.ResourceList{"cpu": resource.MustParse("1"), "memory": resource.MustParse("64Mi")}},
			}}},
		}
		if _, err := client.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// bound waits until so many pods of a namespace have a node.
func bound(t *testing.T, client kubernetes.Interface, namespace string, want int) {
	t.Helper()
	coretest.Eventually(t, fmt.Sprintf("%d bound pods of %s", want, namespace), func(ctx context.Context) (bool, error) {
		list, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName!="})
		if err == nil && len(list.Items) > want {
			err = fmt.Errorf("%d are bound", len(list.Items))
		}
		return err == nil && len(list.Items) == want, err
	})
}

// unschedulable waits until so many pods of a namespace say that there is no processor for them.
func unschedulable(t *testing.T, client kubernetes.Interface, namespace string, want int) {
	t.Helper()
	coretest.Eventually(t, fmt.Sprintf("%d unschedulable pods of %s", want, namespace), func(ctx context.Context) (bool, error) {
		list, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName="})
		if err != nil {
			return false, err
		}
		n := 0
		for _, pod := range list.Items {
			for _, c := range pod.Status.Conditions {
				if c.Type == v1.PodScheduled && c.Reason == v1.PodReasonUnschedulable && strings.Contains(c.Message, "Insufficient cpu") {
					n++
				}
			}
		}
		return n == want && n == len(list.Items), nil
	})
}

func noneOverfull(t *testing.T, client kubernetes.Interface, most int) {
	t.Helper()
	list, err := client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName!="})
	if err != nil {
		t.Fatal(err)
	}
	on := map[string]int{}
	for _, pod := range list.Items {
		if pod.Status.Phase == v1.PodFailed {
			t.Errorf("%s/%s failed: %s", pod.Namespace, pod.Name, pod.Status.Reason)
		}
		if on[pod.Spec.NodeName]++; on[pod.Spec.NodeName] > most {
			t.Errorf("%s has more than %d pods", pod.Spec.NodeName, most)
		}
	}
}

func remove(t *testing.T, client kubernetes.Interface, namespace string) {
	t.Helper()
	now := int64(0)
	if err := client.CoreV1().Pods(namespace).DeleteCollection(t.Context(), metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
}
