// Package podgc removes pods that nobody else will: those of nodes that are
// gone, ended ones beyond a number, terminating ones that never had a node, and
// terminating ones of nodes taken out of service.
package podgc

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/quaymaster/quaymaster/core/controllers/loop"
	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

const (
	period = 20 * time.Second
	// quarantine is how long a node must be missing before it is asked for at
	// the server, and its pods are deleted if it is not there.
	quarantine = 40 * time.Second
	// threshold is how many ended pods are kept.
	threshold = 12500
)

// Snapshot is all that a plan depends on. Nothing in it is changed.
type Snapshot struct {
	Pods  []*corev1.Pod
	Nodes map[string]*corev1.Node
	// Gone are nodes that are certain not to exist.
	Gone map[string]bool
	// Keep is how many ended pods may stay; 0 keeps all.
	Keep int
}

// Removal is a pod to fail and delete at once.
type Removal struct {
	Pod    *corev1.Pod
	Reason Reason
}

// Reason says why a pod is removed.
type Reason string

// The reasons.
const (
	Ended        Reason = "terminated"
	OutOfService Reason = "terminating on out-of-service node"
	NodeGone     Reason = "orphaned"
	NeverHadNode Reason = "terminating and unscheduled"
)

// Decide plans for the snapshot; each pod is removed for one reason.
func Decide(s Snapshot) []Removal {
	var ended []*corev1.Pod
	var out []Removal
	for _, pod := range s.Pods {
		node, known := s.Nodes[pod.Spec.NodeName]
		terminating := pod.DeletionTimestamp != nil
		switch {
		case terminating && pod.Spec.NodeName == "":
			out = append(out, Removal{pod, NeverHadNode})
		case pod.Spec.NodeName != "" && s.Gone[pod.Spec.NodeName]:
			out = append(out, Removal{pod, NodeGone})
		case terminating && known && outOfService(node):
			out = append(out, Removal{pod, OutOfService})
		case pods.Terminal(pod):
			ended = append(ended, pod)
		}
	}
	if excess := len(ended) - s.Keep; s.Keep > 0 && excess > 0 {
		slices.SortFunc(ended, func(a, b *corev1.Pod) int {
			if ea, eb := evicted(a), evicted(b); ea != eb {
				if ea {
					return -1
				}
				return 1
			}
			return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
		})
		for _, pod := range ended[:excess] {
			out = append(out, Removal{pod, Ended})
		}
	}
	return out
}

func evicted(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodFailed && pod.Status.Reason == "Evicted"
}

func outOfService(node *corev1.Node) bool {
	ready := slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
	return !ready && slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
}

// Controller looks every 20 s.
type Controller struct {
	env     loop.Env
	nodes   cache.SharedIndexInformer
	pods    cache.SharedIndexInformer
	control pods.Control
	missing map[string]time.Time // nodes that pods name and the cache lacks, since when
}

// New makes the controller; pods are deleted through control.
func New(env loop.Env, control pods.Control) (*Controller, error) {
	return &Controller{
		env:     env,
		nodes:   env.Informers.Core().V1().Nodes().Informer(),
		pods:    env.Informers.Core().V1().Pods().Informer(),
		control: control,
		missing: make(map[string]time.Time),
	}, nil
}

// Run works until the context ends.
func (c *Controller) Run(ctx context.Context) error {
	if cache.WaitFor(ctx, "", c.nodes.HasSyncedChecker(), c.pods.HasSyncedChecker()) {
		loop.Tick(ctx, c.env.Clock, period, c.pass)
	}
	return nil
}

func (c *Controller) pass(ctx context.Context) {
	s := Snapshot{Nodes: make(map[string]*corev1.Node), Keep: threshold}
	for _, obj := range c.nodes.GetStore().List() {
		if node, ok := obj.(*corev1.Node); ok {
			s.Nodes[node.Name] = node
		}
	}
	for _, obj := range c.pods.GetStore().List() {
		if pod, ok := obj.(*corev1.Pod); ok {
			s.Pods = append(s.Pods, pod)
		}
	}
	s.Gone = c.gone(ctx, s)
	removals := Decide(s)
	if err := loop.Each(ctx, len(removals), func(i int) error { return c.remove(ctx, removals[i]) }); err != nil && ctx.Err() == nil {
		c.env.Logger.WarnContext(ctx, "pods not removed; the next pass tries again", "error", err)
	}
}

// gone returns the nodes that have been missing for the quarantine and that the
// server does not know either.
func (c *Controller) gone(ctx context.Context, s Snapshot) map[string]bool {
	now := c.env.Clock.Now()
	named := make(map[string]bool)
	for _, pod := range s.Pods {
		if name := pod.Spec.NodeName; name != "" && s.Nodes[name] == nil {
			named[name] = true
		}
	}
	maps.DeleteFunc(c.missing, func(name string, _ time.Time) bool { return !named[name] })
	gone := make(map[string]bool)
	for name := range named {
		since, ok := c.missing[name]
		if !ok {
			c.missing[name] = now
			continue
		}
		if now.Sub(since) < quarantine {
			continue
		}
		if _, err := c.env.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			gone[name] = true
		}
	}
	return gone
}

// remove fails the pod first if it has not ended: there is no agent to do so.
func (c *Controller) remove(ctx context.Context, r Removal) error {
	if !pods.Terminal(r.Pod) {
		now := metav1.NewTime(c.env.Clock.Now())
		status := r.Pod.Status.DeepCopy()
		status.Phase, status.ObservedGeneration = corev1.PodFailed, r.Pod.Generation
		if r.Reason == NodeGone {
			pods.SetCondition(status, corev1.PodCondition{
				Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, ObservedGeneration: r.Pod.Generation,
				Reason: "DeletionByPodGC", Message: "PodGC: node no longer exists",
			}, now)
		}
		if err := pods.PatchStatus(ctx, c.env.Client, r.Pod, *status); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("fail pod %s/%s, %s: %w", r.Pod.Namespace, r.Pod.Name, r.Reason, err)
		}
	}
	err := c.control.Delete(ctx, r.Pod.Namespace, r.Pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: new(int64), Preconditions: &metav1.Preconditions{UID: &r.Pod.UID},
	})
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return fmt.Errorf("delete pod %s/%s, %s: %w", r.Pod.Namespace, r.Pod.Name, r.Reason, err)
}
