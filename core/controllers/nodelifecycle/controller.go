package nodelifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/quaymaster/quaymaster/core/controllers/loop"
	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

const workers = 8

// Controller watches over all nodes.
type Controller struct {
	env      loop.Env
	nodes    cache.SharedIndexInformer
	pods     cache.SharedIndexInformer
	leases   cache.SharedIndexInformer
	recorder record.EventRecorder
	loop     *loop.Loop[string]

	mu      sync.Mutex
	health  map[string]Health
	uids    map[string]types.UID // nodes that were announced
	unready map[string]bool      // nodes whose pods are still to be marked not ready
	zones   map[string]*bucket   // nil before the first look
	down    bool                 // no zone has a ready node
}

// New makes the controller.
func New(env loop.Env) (*Controller, error) {
	c := &Controller{
		env:      env,
		nodes:    env.Informers.Core().V1().Nodes().Informer(),
		pods:     env.Informers.Core().V1().Pods().Informer(),
		leases:   env.Informers.Coordination().V1().Leases().Informer(),
		recorder: env.Recorder("node-controller"),
		health:   make(map[string]Health),
		uids:     make(map[string]types.UID),
		unready:  make(map[string]bool),
	}
	c.loop = loop.New("nodelifecycle", env, c.sync)
	c.loop.Also(func(ctx context.Context) {
		if cache.WaitFor(ctx, "", c.leases.HasSyncedChecker()) {
			loop.Tick(ctx, env.Clock, period, c.look)
		}
	})
	if err := pods.AddNodeIndex(c.pods); err != nil {
		return nil, err
	}
	if err := c.loop.Watch(c.nodes, loop.Handler(c.nodeChanged)); err != nil {
		return nil, err
	}
	return c, c.loop.Watch(c.pods, loop.Handler(c.podChanged))
}

// Run works until the context ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, workers) }

func (c *Controller) nodeChanged(_, node *corev1.Node) {
	if node != nil {
		c.loop.Add(node.Name)
	}
}

// podChanged heeds pods that are bound to a node that is not ready.
func (c *Controller) podChanged(old, pod *corev1.Pod) {
	if pod == nil || pod.Spec.NodeName == "" || old != nil && old.Spec.NodeName == pod.Spec.NodeName {
		return
	}
	if node := c.node(pod.Spec.NodeName); node != nil && pods.Ready(pod) && !isReady(node) {
		c.mu.Lock()
		c.unready[node.Name] = true
		c.mu.Unlock()
		c.loop.Add(node.Name)
	}
}

func isReady(node *corev1.Node) bool {
	ready := condition(node, corev1.NodeReady)
	return ready == nil || ready.Status == corev1.ConditionTrue
}

func (c *Controller) node(name string) *corev1.Node {
	return loop.Cached[*corev1.Node](c.nodes, name)
}

// sync brings one node's taints and labels in line with its state, and marks
// its pods not ready if that is due.
func (c *Controller) sync(ctx context.Context, name string) (time.Duration, error) {
	node := c.node(name)
	if node == nil {
		return 0, nil
	}
	var errs []error
	if c.due(node) {
		if err := c.markPodsNotReady(ctx, name); err != nil {
			errs = append(errs, err)
		}
	}
	now := c.env.Clock.Now()
	permit := c.permit()
	taints, changed, waits := Taints(node, permit, now)
	var wait time.Duration
	if waits {
		var granted bool
		if granted, wait = c.take(node, now); granted {
			taints, changed, _ = Taints(node, Grant, now)
		}
	}
	if labels := Labels(node); changed || labels != nil {
		if err := c.patch(ctx, node, taints, labels); err != nil {
			errs = append(errs, err)
		}
	}
	return wait, errors.Join(errs...)
}

func (c *Controller) due(node *corev1.Node) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unready[node.Name] && !isReady(node)
}

func (c *Controller) permit() Permit {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down {
		return Clear
	}
	return Keep
}

func (c *Controller) take(node *corev1.Node, now time.Time) (bool, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.zones[zoneOf(node)]
	if b == nil { // not looked at yet
		return false, time.Second
	}
	return b.take(now)
}

// patch fails with a conflict if the node is not the latest; its next event
// brings the node back here.
func (c *Controller) patch(ctx context.Context, node *corev1.Node, taints []corev1.Taint, labels map[string]string) error {
	if taints == nil {
		taints = []corev1.Taint{}
	}
	metadata := map[string]any{"resourceVersion": node.ResourceVersion, "uid": node.UID}
	if labels != nil {
		metadata["labels"] = labels
	}
	data, err := json.Marshal(map[string]any{"metadata": metadata, "spec": map[string]any{"taints": taints}})
	if err != nil {
		return fmt.Errorf("encode taints of node %s: %w", node.Name, err)
	}
	_, err = c.env.Client.CoreV1().Nodes().Patch(ctx, node.Name, types.StrategicMergePatchType, data, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (c *Controller) markPodsNotReady(ctx context.Context, node string) error {
	var errs []error
	for _, pod := range pods.OnNode(c.pods, node) {
		if !pods.Ready(pod) {
			continue
		}
		next := pod.DeepCopy()
		ready := pods.Condition(next, corev1.PodReady)
		ready.Status, ready.LastTransitionTime = corev1.ConditionFalse, metav1.NewTime(c.env.Clock.Now())
		if err := pods.PatchStatus(ctx, c.env.Client, pod, next.Status); err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, err)
			continue
		}
		c.recorder.Event(pod, corev1.EventTypeWarning, "NodeNotReady", "Node is not ready")
	}
	if len(errs) == 0 {
		c.mu.Lock()
		delete(c.unready, node)
		c.mu.Unlock()
	}
	return errors.Join(errs...)
}

// look judges every node, and then every zone.
func (c *Controller) look(ctx context.Context) {
	now := c.env.Clock.Now()
	zones := make(map[string]census)
	present := make(map[string]bool)
	for _, obj := range c.nodes.GetStore().List() {
		node, ok := obj.(*corev1.Node)
		if !ok {
			continue
		}
		present[node.Name] = true
		c.announce(node)
		after, err := c.judge(ctx, node, now)
		if err != nil {
			c.env.Logger.WarnContext(ctx, "node health not updated", "node", node.Name, "error", err)
			continue
		}
		if _, excluded := node.Labels[excludeLabel]; excluded {
			continue
		}
		z := zones[zoneOf(node)]
		if after == corev1.ConditionTrue {
			z.ready++
		} else {
			z.notReady++
		}
		zones[zoneOf(node)] = z
	}
	c.farewell(present)
	c.judgeZones(zones, now)
}

func (c *Controller) judge(ctx context.Context, node *corev1.Node, now time.Time) (corev1.ConditionStatus, error) {
	lease := loop.Cached[*coordinationv1.Lease](c.leases, corev1.NamespaceNodeLease+"/"+node.Name)
	c.mu.Lock()
	var was *Health
	if h, ok := c.health[node.Name]; ok {
		was = &h
	}
	v := Judge(was, node, lease, now)
	c.health[node.Name] = v.Health
	if v.Before == corev1.ConditionTrue { // noted before the write, whose event asks for it
		c.unready[node.Name] = v.Conditions != nil
	}
	c.mu.Unlock()
	if v.Conditions == nil {
		return v.After, nil
	}
	next := node.DeepCopy()
	next.Status.Conditions = v.Conditions
	if _, err := c.env.Client.CoreV1().Nodes().UpdateStatus(ctx, next, metav1.UpdateOptions{}); err != nil {
		return v.After, err
	}
	if v.Before == corev1.ConditionTrue {
		c.recorder.Eventf(reference(node.Name, node.UID), corev1.EventTypeNormal, "NodeNotReady", "Node %s status is now: %s", node.Name, "NodeNotReady")
	}
	return v.After, nil
}

func reference(name string, uid types.UID) *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: name, UID: uid}
}

func (c *Controller) announce(node *corev1.Node) {
	c.mu.Lock()
	uid, known := c.uids[node.Name]
	c.uids[node.Name] = node.UID
	if known && uid != node.UID {
		delete(c.health, node.Name)
	}
	c.mu.Unlock()
	if !known || uid != node.UID {
		c.nodeEvent(node.Name, node.UID, "RegisteredNode", "Registered Node %s in Controller")
	}
}

func (c *Controller) farewell(present map[string]bool) {
	c.mu.Lock()
	gone := maps.Clone(c.uids)
	maps.DeleteFunc(gone, func(name string, _ types.UID) bool { return present[name] })
	for name := range gone {
		delete(c.uids, name)
		delete(c.health, name)
		delete(c.unready, name)
	}
	c.mu.Unlock()
	for name, uid := range gone {
		c.nodeEvent(name, uid, "RemovingNode", "Removing Node %s from Controller")
	}
}

func (c *Controller) nodeEvent(name string, uid types.UID, reason, format string) {
	c.recorder.Eventf(reference(name, uid), corev1.EventTypeNormal, reason, "Node %s event: "+format, name, name)
}

// judgeZones sets the pace of each zone, and wakes all nodes if evicting as
// such stops or starts.
func (c *Controller) judgeZones(zones map[string]census, now time.Time) {
	down := allDown(zones)
	c.mu.Lock()
	turned := c.down != down
	if c.down && !down { // the nodes could not be heard; what they did meanwhile is not known
		for name, h := range c.health {
			h.Seen = now
			c.health[name] = h
		}
	}
	c.down = down
	next := make(map[string]*bucket, len(zones))
	for name, z := range zones {
		b := c.zones[name]
		if b == nil {
			b = &bucket{}
		}
		b.qps = z.qps()
		next[name] = b
	}
	c.zones = next
	c.mu.Unlock()
	if turned {
		for _, key := range c.nodes.GetStore().ListKeys() {
			c.loop.Add(key)
		}
	}
}
