package demo

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// crash kills the engine while clients write to it, starts it again on the same
// data, and looks for everything that had been acknowledged.
func (t *tour) crash(ctx context.Context) error {
	const writers, atLeast = 8, 200
	maps := t.kubernetes.CoreV1().ConfigMaps(metav1.NamespaceDefault)
	var (
		mu           sync.Mutex
		acknowledged = map[string]string{} // name → resource version
		wg           sync.WaitGroup
	)
	before, err := t.inventory(ctx)
	if err != nil {
		return err
	}
	writing, stop := context.WithCancel(ctx)
	defer stop()
	for w := range writers {
		wg.Go(func() {
			for i := 0; writing.Err() == nil; i++ {
				object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("acknowledged-%d-%d", w, i)}}
				created, err := maps.Create(writing, object, metav1.CreateOptions{})
				if err != nil {
					return // the engine is gone
				}
				mu.Lock()
				acknowledged[created.Name] = created.ResourceVersion
				mu.Unlock()
			}
		})
	}
	err = eventually(ctx, "writes to be acknowledged", func(context.Context) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		return len(acknowledged) >= atLeast, nil
	})
	if err != nil {
		return err
	}
	t.engine.kill()
	stop()
	wg.Wait()
	t.say("killed in the middle of writing; %d new objects had been acknowledged", len(acknowledged))

	begin := time.Now()
	if err := t.startEngine(ctx); err != nil {
		return err
	}
	list, err := t.kubernetes.CoreV1().ConfigMaps(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, found := range list.Items {
		if acknowledged[found.Name] == found.ResourceVersion {
			delete(acknowledged, found.Name)
		}
	}
	if len(acknowledged) > 0 {
		return fmt.Errorf("%d acknowledged objects are lost: %v", len(acknowledged), acknowledged)
	}
	after, err := t.inventory(ctx)
	if err != nil {
		return err
	}
	for name, uid := range before {
		if after[name] != uid {
			return fmt.Errorf("%s is lost", name)
		}
	}
	t.say("all of them are there, and the %d pods, deployments, nodes and policies from before", len(before))
	running, err := t.running(ctx, "httpserver", 1)
	if err != nil {
		return err
	}
	t.say("%s still runs on %s; back to work %s after the start", running[0].Name, running[0].Spec.NodeName, since(begin))
	return nil
}

// inventory of what the tour has made: name → UID.
func (t *tour) inventory(ctx context.Context) (map[string]string, error) {
	found := map[string]string{}
	add := func(kind string, object metav1.Object) { found[kind+" "+object.GetName()] = string(object.GetUID()) }
	pods, err := t.kubernetes.CoreV1().Pods(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for i := range pods.Items {
		add("pod", &pods.Items[i])
	}
	deployments, err := t.kubernetes.AppsV1().Deployments(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for i := range deployments.Items {
		add("deployment", &deployments.Items[i])
	}
	nodes, err := t.kubernetes.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for i := range nodes.Items {
		add("node", &nodes.Items[i])
	}
	policies, err := t.ours.Policies.List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for i := range policies.Items {
		add("policy", &policies.Items[i])
	}
	return found, nil
}
