// Package policy brings Policy objects into force. Its controller loads the
// program of each into the policy host and writes what came of it into the
// object's status; its syncer keeps Policy and SchedulerProfile objects equal to
// the files of a watched directory.
package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	appsinformers "k8s.io/client-go/informers/apps/v1"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/core/api"
	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
)

const (
	workers = 2
	costs   = time.Minute // between two writes of a policy's cost
	// fetchAgain is how long a registry is left alone that did not give an image.
	fetchAgain = 30 * time.Second
	quiet      = 40 * time.Millisecond // without file events before files are read
	poll       = 2 * time.Second       // between two looks at files, for what gives no events
)

// Component is the source of the events.
const Component = "policy-controller"

// Options of a Controller.
type Options struct {
	Client *api.Client
	// Policies is the informer of *policyv1alpha1.Policy. The engine starts it.
	Policies cache.SharedIndexInformer
	// ConfigMaps serve the sources that name one; nil refuses those.
	ConfigMaps coreinformers.ConfigMapInformer
	// Kube and Revisions keep the versions that can be rolled back to, as
	// ControllerRevisions; Kube also reads pull secrets. nil: neither.
	Kube      kubernetes.Interface
	Revisions appsinformers.ControllerRevisionInformer
	Host      *policies.Host
	// Dir that relative file names refer to; "" refuses those.
	Dir      string
	Recorder record.EventRecorder // nil: no events
	Clock    clock.Clock          // nil: the real one
	Logger   *slog.Logger         // nil: discard
}

// Controller loads policies.
type Controller struct {
	Options
	queue  workqueue.TypedRateLimitingInterface[string]
	files  *watcher
	synced chan struct{}

	mu      sync.Mutex
	states  map[string]*state
	pending map[string]bool // policies of the first list that were not tried yet; nil later
}

// state is what the controller knows of a policy besides its object.
type state struct {
	refused *attempt
	file    string            // that its source is read from, or ""
	images  map[string]string // digest of the program, by image that was fetched
	// put in force, by generation
	generations map[int64]inForce
	// failed is the version that the host rolled back last
	failed *policyv1alpha1.PolicyRollback
	newest *appsv1.ControllerRevision // that was written
	costAt time.Time                  // when the cost was last written
}

// inForce tells which version a generation is.
type inForce struct {
	id       string
	revision int64 // 0: not kept
	written  bool  // or not to be written
}

// attempt is a version that was refused, so that it is not built again and again.
type attempt struct {
	id  string
	err error
}

// state of a policy. The caller holds the lock.
func (c *Controller) state(name string) *state {
	s := c.states[name]
	if s == nil {
		s = &state{images: map[string]string{}, generations: map[int64]inForce{}}
		c.states[name] = s
	}
	return s
}

// New returns a controller. Run it.
func New(options Options) *Controller {
	if options.Clock == nil {
		options.Clock = clock.RealClock{}
	}
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	return &Controller{
		Options: options, synced: make(chan struct{}), states: map[string]*state{},
	}
}

// Synced is closed when every policy there was at the start of Run is in force
// or refused.
func (c *Controller) Synced() <-chan struct{} { return c.synced }

// Run works until ctx ends. It is called once, while the informers run.
func (c *Controller) Run(ctx context.Context) error {
	c.queue = workqueue.NewTypedRateLimitingQueueWithConfig(
		workqueue.NewTypedItemExponentialFailureRateLimiter[string](5*time.Millisecond, 10*time.Second),
		workqueue.TypedRateLimitingQueueConfig[string]{Name: "policy"})
	defer c.queue.ShutDown()
	c.files = newWatcher(c.Logger)
	defer c.files.close()

	registration, err := c.Policies.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { c.enqueue(o) },
		UpdateFunc: func(_, o any) { c.enqueue(o) },
		DeleteFunc: func(o any) { c.enqueue(o) },
	})
	if err != nil {
		return fmt.Errorf("watch policies: %w", err)
	}
	defer c.Policies.RemoveEventHandler(registration) //nolint:errcheck // the informer may have ended
	ready := []cache.InformerSynced{registration.HasSynced}
	if c.ConfigMaps != nil {
		informer := c.ConfigMaps.Informer()
		r, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { c.configMapChanged(o) },
			UpdateFunc: func(_, o any) { c.configMapChanged(o) },
			DeleteFunc: func(o any) { c.configMapChanged(o) },
		})
		if err != nil {
			return fmt.Errorf("watch config maps: %w", err)
		}
		defer informer.RemoveEventHandler(r) //nolint:errcheck // as above
		ready = append(ready, r.HasSynced)
	}
	if c.Revisions != nil {
		ready = append(ready, c.Revisions.Informer().HasSynced)
	}
	if !cache.WaitForCacheSync(ctx.Done(), ready...) {
		return ctx.Err()
	}
	c.expect(c.Policies.GetStore().ListKeys())
	c.Host.OnEvent(c.happened)
	defer c.Host.OnEvent(nil)

	var tasks sync.WaitGroup
	tasks.Go(func() { c.files.run(ctx, 0, quiet, poll, c.filesChanged) })
	tasks.Go(func() { c.tellCost(ctx) })
	for range workers {
		tasks.Go(func() {
			for c.next(ctx) {
			}
		})
	}
	<-ctx.Done()
	c.queue.ShutDown()
	tasks.Wait()
	return nil
}

func (c *Controller) enqueue(o any) {
	if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(o); err == nil {
		c.queue.Add(key)
	}
}

func (c *Controller) configMapChanged(o any) {
	if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = d.Obj
	}
	m, ok := o.(*corev1.ConfigMap)
	if !ok {
		return
	}
	for _, o := range c.Policies.GetStore().List() {
		p := o.(*policyv1alpha1.Policy)
		if k := p.Spec.Source.ConfigMap; k != nil && k.Namespace == m.Namespace && k.Name == m.Name {
			c.queue.Add(p.Name)
		}
	}
}

func (c *Controller) filesChanged() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, s := range c.states {
		if s.file != "" {
			c.queue.Add(name)
		}
	}
	return 0
}

// happened is told of by the host.
func (c *Controller) happened(e policies.Event) {
	defer c.queue.Add(e.Policy)
	p, ok := c.get(e.Policy)
	if !ok {
		return
	}
	switch e.Kind {
	case policies.BreakerOpened:
		c.event(p, corev1.EventTypeWarning, "PolicyBreakerOpen", "the policy failed too often and is not called for a minute: "+e.Reason)
	case policies.BreakerClosed:
		c.event(p, corev1.EventTypeNormal, "PolicyBreakerClosed", "the policy works again")
	case policies.RolledBack:
		c.failed(e)
		c.event(p, corev1.EventTypeWarning, "PolicyRolledBack",
			fmt.Sprintf("generation %d failed too often while it was new, generation %d is in force again: %s", e.Generation, e.To, e.Reason))
	case policies.Impure:
		c.event(p, corev1.EventTypeWarning, "PolicyImpure", "the policy answers the same question differently: "+e.Reason)
	}
}

func (c *Controller) event(p *policyv1alpha1.Policy, kind, reason, message string) {
	if c.Recorder != nil {
		c.Recorder.Event(p, kind, reason, message)
	}
}

func (c *Controller) expect(keys []string) {
	c.mu.Lock()
	c.pending = map[string]bool{}
	for _, key := range keys {
		c.pending[key] = true
	}
	empty := len(keys) == 0
	c.mu.Unlock()
	if empty {
		close(c.synced)
	}
}

func (c *Controller) tried(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.pending[key] {
		return
	}
	delete(c.pending, key)
	if len(c.pending) == 0 {
		close(c.synced)
	}
}

func (c *Controller) next(ctx context.Context) bool {
	key, shutdown := c.queue.Get()
	if shutdown {
		return false
	}
	defer c.queue.Done(key)
	err := c.reconcile(ctx, key)
	switch {
	case ctx.Err() != nil:
		return false
	case err == nil:
		c.queue.Forget(key)
	default:
		if !apierrors.IsConflict(err) {
			c.Logger.Error("reconcile policy", "policy", key, "error", err)
		}
		c.queue.AddRateLimited(key)
	}
	c.tried(key)
	return true
}

func (c *Controller) get(name string) (*policyv1alpha1.Policy, bool) {
	o, ok, err := c.Policies.GetStore().GetByKey(name)
	if err != nil || !ok {
		return nil, false
	}
	return o.(*policyv1alpha1.Policy), true
}

func (c *Controller) reconcile(ctx context.Context, name string) error {
	p, ok := c.get(name)
	if !ok || p.DeletionTimestamp != nil {
		c.Host.Remove(name)
		c.mu.Lock()
		delete(c.states, name)
		c.mu.Unlock()
		c.watch(name, "")
		return nil
	}
	before, had := c.Host.Status(name)
	out := c.load(ctx, p)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if now, ok := c.Host.Status(name); ok && (!had || now.Generation != before.Generation) {
		c.Logger.Info("policy in force", "policy", name, "generation", now.Generation, "digest", now.Digest)
		c.event(p, corev1.EventTypeNormal, "PolicyLoaded", fmt.Sprintf("generation %d is in force (%s)", now.Generation, now.Digest))
	}
	if out.refused != nil && out.refused.Step == policies.StepFetch && imageOf(p) != "" {
		c.queue.AddAfter(name, fetchAgain)
	}
	return errors.Join(c.writeStatus(ctx, p, out), out.history)
}
