// Package work is what both sides of the race do: clusters, pods, and the client
// that makes them and waits until they have nodes.
package work

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
)

// Work does what a scenario asks, through one client.
type Work struct {
	Client  kubernetes.Interface
	Clients int // requests at once
}

// Prepare makes the cluster, and the pods that are there before the clock starts.
func (w *Work) Prepare(ctx context.Context, s *Scenario) error {
	if _, err := w.Client.CoreV1().Namespaces().Create(ctx, &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	for _, class := range classes {
		if _, err := w.Client.SchedulingV1().PriorityClasses().Create(ctx, class, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	if err := w.each(ctx, s.Nodes, func(ctx context.Context, i int) error {
		_, err := w.Client.CoreV1().Nodes().Create(ctx, node(i), metav1.CreateOptions{})
		return err
	}); err != nil {
		return fmt.Errorf("make nodes: %w", err)
	}
	if err := w.schedulable(ctx); err != nil {
		return err
	}
	if s.Before == 0 {
		return nil
	}
	return w.pods(ctx, "before", s.Before, s.first, !s.Stuck)
}

// schedulable waits until no node has a taint.
func (w *Work) schedulable(ctx context.Context) error {
	for {
		list, err := w.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		tainted := 0
		for i := range list.Items {
			if len(list.Items[i].Spec.Taints) > 0 {
				tainted++
			}
		}
		if tainted == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d nodes have taints: %w", tainted, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// pods makes n pods and, if asked to, waits until all of them have nodes.
func (w *Work) pods(ctx context.Context, prefix string, n int, pod func(int) *v1.Pod, wait bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	if wait {
		list, err := w.Client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{Limit: 1})
		if err != nil {
			return err
		}
		group.Go(func() error { return w.bound(ctx, prefix, n, list.ResourceVersion) })
	}
	group.Go(func() error {
		err := w.each(ctx, n, func(ctx context.Context, i int) error {
			_, err := w.Client.CoreV1().Pods(namespace).Create(ctx, named(pod(i), prefix, i), metav1.CreateOptions{})
			return err
		})
		if err != nil {
			return fmt.Errorf("make pods: %w", err)
		}
		return nil
	})
	return group.Wait()
}

// bound waits until n pods with names of that prefix have been seen with a node
// since the revision.
func (w *Work) bound(ctx context.Context, prefix string, n int, since string) error {
	options := metav1.ListOptions{FieldSelector: fields.OneTermNotEqualSelector("spec.nodeName", "").String(), ResourceVersion: since}
	seen := map[string]bool{}
	for len(seen) < n {
		watch, err := w.Client.CoreV1().Pods(namespace).Watch(ctx, options)
		if err != nil {
			return fmt.Errorf("watch pods: %w", err)
		}
		for event := range watch.ResultChan() {
			pod, ok := event.Object.(*v1.Pod)
			if !ok {
				watch.Stop()
				return fmt.Errorf("watch pods: %w", apierrors.FromObject(event.Object))
			}
			options.ResourceVersion = pod.ResourceVersion
			if len(pod.Name) > len(prefix) && pod.Name[:len(prefix)] == prefix && pod.Spec.NodeName != "" {
				seen[pod.Name] = true
			}
			if len(seen) == n {
				break
			}
		}
		watch.Stop()
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%d of %d pods have nodes: %w", len(seen), n, err)
		}
	}
	return nil
}

// Run does the timed part, and returns how long it took.
func (w *Work) Run(ctx context.Context, s *Scenario, mode string) (time.Duration, error) {
	if s.churn {
		stop := w.churn(ctx, s)
		defer stop()
	}
	if mode != ModeDeployment {
		begin := time.Now()
		err := w.pods(ctx, "pod", s.Pods, s.pod, true)
		return time.Since(begin), err
	}
	list, err := w.Client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	if _, err := w.Client.AppsV1().Deployments(namespace).Create(ctx, s.deployment(), metav1.CreateOptions{}); err != nil {
		return 0, err
	}
	err = w.bound(ctx, "race-", s.Pods, list.ResourceVersion)
	return time.Since(begin), err
}

// churn deletes and makes, one after the other, the pods that cannot be bound,
// until the returned function is called.
func (w *Work) churn(ctx context.Context, s *Scenario) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	pods := w.Client.CoreV1().Pods(namespace)
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i = (i + 1) % s.Before {
			pod := named(s.first(i), "before", i)
			if pods.Delete(ctx, pod.Name, metav1.DeleteOptions{}) == nil {
				_, _ = pods.Create(ctx, pod, metav1.CreateOptions{}) // at the end it may be cut short
			}
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() { cancel(); <-done }
}

// each calls f for 0 … n-1, several at once.
func (w *Work) each(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range w.Clients {
		group.Go(func() error {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := f(ctx, i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}
