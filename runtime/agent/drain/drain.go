package drain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
)

// Options of Run. Client, NodeName, Runtime, Check and Empty are needed.
type Options struct {
	Client   kubernetes.Interface
	NodeName string
	Runtime  string // that the agent runs at present
	// Check says whether the node could run another runtime.
	Check func(runtime string) error
	// Empty ends all that the present runtime runs. It may be repeated.
	Empty func(ctx context.Context) error
	// Event tells of the node; nil = nobody.
	Event  func(kind, reason, message string)
	Clock  clock.Clock  // nil = real
	Logger *slog.Logger // nil = discard
}

// retry is how long a plan waits for pods to go, for a budget to allow an eviction, or after an error.
const retry = 2 * time.Second

// Run looks after the plan of a node until ctx ends or the runtime is to be changed: then it returns the new one's name, and
// nothing of the old one's runs.
func Run(ctx context.Context, opts Options) (to string, err error) {
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Event == nil {
		opts.Event = func(string, string, string) {}
	}
	d := &drain{opts: opts, since: opts.Clock.Now()}
	kick := make(chan struct{}, 1)
	factory := informers.NewSharedInformerFactoryWithOptions(opts.Client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, opts.NodeName).String()
	}))
	nodes := factory.Core().V1().Nodes()
	wake := func(any) {
		select {
		case kick <- struct{}{}:
		default:
		}
	}
	if _, err := nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: wake, UpdateFunc: func(_, o any) { wake(o) }}); err != nil {
		return "", err
	}
	watching, cancel := context.WithCancel(ctx)
	factory.StartWithContext(watching)
	defer func() {
		cancel()
		factory.Shutdown()
	}()
	for {
		var timer <-chan time.Time
		if ctx.Err() == nil {
			if node, err := nodes.Lister().Get(opts.NodeName); err == nil && d.concerns(node) {
				to, again := d.step(ctx)
				if to != "" {
					return to, nil
				}
				if again {
					timer = opts.Clock.After(retry)
				}
			}
		}
		select {
		case <-ctx.Done():
			return "", nil
		case <-kick:
		case <-timer:
		}
	}
}

type drain struct {
	opts  Options
	since time.Time // when this runtime began
	last  string    // the event that was told last
}

// concerns tells whether a node has a plan or is to have one: most have not, and are not asked for.
func (d *drain) concerns(node *v1.Node) bool {
	_, planned := node.Annotations[StateAnnotation]
	wanted := node.Annotations[Annotation]
	return planned || wanted != "" && wanted != d.opts.Runtime || node.Annotations[Current] != d.opts.Runtime
}

// step does what is next. It is asked again in any case when the Node changes.
func (d *drain) step(ctx context.Context) (to string, again bool) {
	to, again, err := d.next(ctx)
	if err != nil && ctx.Err() == nil {
		d.tell(v1.EventTypeWarning, Failed, err.Error())
		return "", true
	}
	return to, again
}

func (d *drain) next(ctx context.Context) (to string, again bool, err error) {
	client := d.opts.Client.CoreV1()
	node, err := client.Nodes().Get(ctx, d.opts.NodeName, metav1.GetOptions{})
	if err != nil {
		return "", true, err
	}
	list, err := client.Pods("").List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", d.opts.NodeName).String()})
	if err != nil {
		return "", true, err
	}
	var pods []*v1.Pod
	for i := range list.Items {
		if list.Items[i].Spec.NodeName == d.opts.NodeName {
			pods = append(pods, &list.Items[i])
		}
	}
	action, state, err := Plan(node, pods, d.opts.Runtime)
	if err != nil {
		return "", false, err
	}
	if node.Annotations[Current] != d.opts.Runtime {
		return "", true, d.patch(ctx, node, map[string]any{"metadata": map[string]any{"annotations": map[string]any{Current: d.opts.Runtime}}})
	}
	switch action {
	case Begin:
		if err := d.opts.Check(state.To); err != nil {
			return "", false, fmt.Errorf("runtime %s: %w", state.To, err)
		}
		node.Spec.Unschedulable = true
		if err := d.save(ctx, node, state); err != nil {
			return "", true, err
		}
		d.tell(v1.EventTypeNormal, "RuntimeSwitchStarted", fmt.Sprintf("The runtime is to change from %s to %s: the node takes no pods and is drained", state.From, state.To))
		return "", true, nil
	case Evict:
		return "", true, d.evict(ctx, Evictable(pods), node.Annotations)
	case Empty:
		state.Step = Switching
		return "", true, d.save(ctx, node, state)
	case Switch:
		if err := d.opts.Empty(ctx); err != nil {
			return "", true, fmt.Errorf("end what runtime %s runs: %w", d.opts.Runtime, err)
		}
		return state.To, false, nil
	case Finish:
		if state.Step == Switching && !d.ready(node) {
			return "", true, nil
		}
		if state.Cordoned {
			node.Spec.Unschedulable = false
		}
		if err := d.save(ctx, node, nil); err != nil {
			return "", true, err
		}
		if state.To == d.opts.Runtime {
			d.tell(v1.EventTypeNormal, "RuntimeSwitched", fmt.Sprintf("The runtime has changed from %s to %s", state.From, state.To))
		} else {
			d.tell(v1.EventTypeNormal, "RuntimeSwitchCancelled", "The runtime stays "+d.opts.Runtime)
		}
	}
	return "", false, nil
}

// save writes a plan down, or removes it, and says whether the node takes pods.
func (d *drain) save(ctx context.Context, node *v1.Node, s *State) error {
	var text any // null removes
	if s != nil {
		data, err := json.Marshal(s)
		if err != nil {
			return err
		}
		text = string(data)
	}
	return d.patch(ctx, node, map[string]any{
		"metadata": map[string]any{"resourceVersion": node.ResourceVersion, "annotations": map[string]any{StateAnnotation: text}},
		"spec":     map[string]any{"unschedulable": node.Spec.Unschedulable},
	})
}

// patch changes nothing of the Node beside: a node may not touch its taints, which others change at the same time.
func (d *drain) patch(ctx context.Context, node *v1.Node, change map[string]any) error {
	data, err := json.Marshal(change)
	if err != nil {
		return err
	}
	_, err = d.opts.Client.CoreV1().Nodes().Patch(ctx, node.Name, types.MergePatchType, data, metav1.PatchOptions{})
	if apierrors.IsConflict(err) {
		return nil // the step comes again
	}
	return err
}

// ready tells whether the node has been ready since this runtime began.
func (d *drain) ready(node *v1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == v1.NodeReady {
			return c.Status == v1.ConditionTrue && c.LastHeartbeatTime.Add(time.Second).After(d.since) // times of the API have no fractions
		}
	}
	return false
}

// evict asks for the end of pods, and says which of them cannot be.
func (d *drain) evict(ctx context.Context, pods []*v1.Pod, annotations map[string]string) error {
	var blocked string
	var errs []error
	for _, p := range pods {
		if p.DeletionTimestamp != nil {
			continue
		}
		name := p.Namespace + "/" + p.Name
		if metav1.GetControllerOf(p) == nil && annotations[Force] != "true" {
			blocked = fmt.Sprintf("pod %s has no controller that would make it anew: delete it, or set the node's annotation %s=true", name, Force)
			continue
		}
		if LosesData(p) && annotations[DeleteEmptyDir] != "true" {
			blocked = fmt.Sprintf("the data in pod %s's emptyDir volumes would be lost: delete it, or set the node's annotation %s=true", name, DeleteEmptyDir)
			continue
		}
		err := d.opts.Client.PolicyV1().Evictions(p.Namespace).Evict(ctx, &policyv1.Eviction{
			ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}, DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &p.UID}},
		})
		switch {
		case err == nil, apierrors.IsNotFound(err), apierrors.IsConflict(err): // gone, or another of the same name
		case apierrors.IsTooManyRequests(err):
			blocked = fmt.Sprintf("pod %s: %v", name, err)
		default:
			errs = append(errs, fmt.Errorf("evict pod %s: %w", name, err))
		}
	}
	if blocked != "" {
		d.tell(v1.EventTypeWarning, Blocked, blocked)
	}
	return errors.Join(errs...)
}

// tell makes an event, unless it is the last one's repetition.
func (d *drain) tell(kind, reason, message string) {
	if d.last == reason+message {
		return
	}
	d.last = reason + message
	d.opts.Logger.Info(message, "reason", reason)
	d.opts.Event(kind, reason, message)
}
