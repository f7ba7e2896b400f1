package core_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"

	"github.com/quaymaster/quaymaster/core"
	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	"github.com/quaymaster/quaymaster/core/coretest"
	"github.com/quaymaster/quaymaster/runtime/agent"
	"github.com/quaymaster/quaymaster/runtime/agent/fleet"
)

// joinFleet has nodes of a fleet of its own join an engine until the end of the test.
func joinFleet(t *testing.T, client kubernetes.Interface, opts fleet.Options, nodes ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	factory := informers.NewSharedInformerFactory(client, 0)
	pods, err := agent.NewDispatcher(factory.Core().V1().Pods().Informer())
	if err != nil {
		t.Fatal(err)
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	opts.Client, opts.Pods = client, pods
	f, err := fleet.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range nodes {
		if err := f.Add(fleet.Node{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		factory.Shutdown()
	})
}

// TestBrokenNodeIsNoMagnet has a node that makes no sandboxes: it says why, gets fewer pods and then none, and pods again
// once they start there.
func TestBrokenNodeIsNoMagnet(t *testing.T) {
	e := coretest.Start(t, core.Options{})
	client := e.Client()
	var mended atomic.Bool
	joinFleet(t, client, fleet.Options{Inject: func(step, _, _ string) error {
		if step == "sandbox" && !mended.Load() {
			return errors.New("no space for sandboxes")
		}
		return nil
	}}, "broken")
	joinFleet(t, client, fleet.Options{}, "fine")

	create := func(name, node string) {
		t.Helper()
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "app"}}}}
		coretest.Eventually(t, "the creation of pod "+name, func(ctx context.Context) (bool, error) {
			_, err := client.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{})
			return err == nil, nil
		})
	}
	taint := func(effect corev1.TaintEffect, message string) {
		t.Helper()
		coretest.Eventually(t, fmt.Sprintf("the node to have the effect %q because %q", effect, message), func(ctx context.Context) (bool, error) {
			node, err := client.CoreV1().Nodes().Get(ctx, "broken", metav1.GetOptions{})
			if err != nil {
				return false, nil
			}
			var has corev1.TaintEffect
			for _, x := range node.Spec.Taints {
				if x.Key == "quaymaster.dev/pod-starts-fail" {
					has = x.Effect
				}
			}
			for _, c := range node.Status.Conditions {
				if c.Type == "PodStartsFail" {
					return has == effect && strings.Contains(c.Message, message), nil
				}
			}
			return false, nil
		})
	}
	runs := func(name, node string) {
		t.Helper()
		coretest.Eventually(t, "pod "+name+" to run", func(ctx context.Context) (bool, error) {
			pod, err := client.CoreV1().Pods("default").Get(ctx, name, metav1.GetOptions{})
			if err == nil && pod.Spec.NodeName != "" && pod.Spec.NodeName != node {
				return false, fmt.Errorf("pod %s is on node %s", name, pod.Spec.NodeName)
			}
			return err == nil && pod.Status.Phase == corev1.PodRunning, err
		})
	}
	coretest.Eventually(t, "two nodes", func(ctx context.Context) (bool, error) {
		nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		return err == nil && len(nodes.Items) == 2 && len(nodes.Items[0].Spec.Taints)+len(nodes.Items[1].Spec.Taints) == 0, nil
	})
	for i := range 3 {
		create(fmt.Sprint("bad", i), "broken")
	}
	taint(corev1.TaintEffectPreferNoSchedule, "3 of 3 pods could not be started in 10m0s, the last one because: create a sandbox: ")
	for i := range 6 { // the other one has three pods more at the end, and is preferred
		name := fmt.Sprint("lower", i)
		create(name, "")
		runs(name, "fine")
	}
	for i := range 7 {
		create(fmt.Sprint("worse", i), "broken")
	}
	taint(corev1.TaintEffectNoSchedule, "no space for sandboxes")
	insists := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "insists"}, Spec: corev1.PodSpec{
		NodeSelector: map[string]string{corev1.LabelHostname: "broken"}, Containers: []corev1.Container{{Name: "c", Image: "app"}}}}
	foreseen(t, e, insists, func(d *decisionv1alpha1.Decision) bool { return d.Node == "" && len(d.Nodes) == 2 })
	open(t, e, "insists")
	coretest.Eventually(t, "the pod to say why it goes nowhere", func(ctx context.Context) (bool, error) {
		pod, err := client.CoreV1().Pods("default").Get(ctx, "insists", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		if pod.Spec.NodeName != "" {
			return false, fmt.Errorf("it went to node %s", pod.Spec.NodeName)
		}
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodScheduled && strings.Contains(c.Message, "1 node(s) had untolerated taint") {
				return true, nil
			}
		}
		return false, nil
	})
	mended.Store(true)
	taint("", "pods start")
	runs("insists", "broken")
}
