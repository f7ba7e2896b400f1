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
	"reflect"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coreinformers "k8s.io/client-go/informers/core/v1"
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
	quiet   = 40 * time.Millisecond // without file events before files are read
	poll    = 2 * time.Second       // between two looks at files, for what gives no events
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
	Host       *policies.Host
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

	mu       sync.Mutex
	attempts map[string]attempt
	fromFile map[string]string // path by policy
	pending  map[string]bool   // policies of the first list that were not tried yet; nil later
}

// attempt is a version that was refused, so that it is not built again and again.
type attempt struct {
	spec   policyv1alpha1.PolicySpec
	digest string
	err    error
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
		Options: options, synced: make(chan struct{}),
		attempts: map[string]attempt{}, fromFile: map[string]string{},
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
	if !cache.WaitForCacheSync(ctx.Done(), ready...) {
		return ctx.Err()
	}
	c.expect(c.Policies.GetStore().ListKeys())
	c.Host.OnEvent(c.happened)
	defer c.Host.OnEvent(nil)

	var tasks sync.WaitGroup
	tasks.Go(func() { c.files.run(ctx, 0, quiet, poll, c.filesChanged) })
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
	for name := range c.fromFile {
		c.queue.Add(name)
	}
	return 0
}

// happened is told of by the host.
func (c *Controller) happened(e policies.Event) {
	c.queue.Add(e.Policy)
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
		delete(c.attempts, name)
		c.mu.Unlock()
		c.watch(name, "")
		return nil
	}
	before, had := c.Host.Status(name)
	now, refused := c.load(ctx, p)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if refused == nil && (!had || now.Generation != before.Generation) {
		c.Logger.Info("policy in force", "policy", name, "generation", now.Generation, "digest", now.Digest)
		c.event(p, corev1.EventTypeNormal, "PolicyLoaded", fmt.Sprintf("generation %d is in force (%s)", now.Generation, now.Digest))
	}
	return c.writeStatus(ctx, p, refused)
}

// load brings the policy into force. A version that was refused before is not
// built again.
func (c *Controller) load(ctx context.Context, p *policyv1alpha1.Policy) (policies.Status, *policyv1alpha1.PolicyError) {
	source, file, err := c.fetch(p)
	if err != nil {
		return policies.Status{}, policyError(&policies.LoadError{Step: policies.StepFetch, Err: err}, "")
	}
	digest := policies.Digest(source)
	c.mu.Lock()
	last, tried := c.attempts[p.Name]
	c.mu.Unlock()
	if tried && last.digest == digest && reflect.DeepEqual(last.spec, p.Spec) {
		return policies.Status{}, policyError(last.err, digest)
	}
	status, err := c.Host.Apply(ctx, p.Name, &p.Spec, source, file)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.attempts, p.Name)
	if err == nil {
		return status, nil
	}
	if ctx.Err() == nil && !errors.Is(err, policies.ErrDeadline) { // that may have been the machine's fault
		c.attempts[p.Name] = attempt{p.Spec, digest, err}
	}
	return policies.Status{}, policyError(err, digest)
}

func policyError(err error, digest string) *policyv1alpha1.PolicyError {
	out := &policyv1alpha1.PolicyError{Step: policies.StepFetch, Message: err.Error(), Digest: digest}
	var load *policies.LoadError
	if errors.As(err, &load) {
		out.Step, out.Message = load.Step, load.Err.Error()
	}
	return out
}

// writeStatus writes what is in force and why the newest version is not.
func (c *Controller) writeStatus(ctx context.Context, p *policyv1alpha1.Policy, refused *policyv1alpha1.PolicyError) error {
	next := p.DeepCopy()
	s := &next.Status
	s.ObservedGeneration = p.Generation
	s.LastError = refused
	s.ActiveGeneration, s.ActiveDigest, s.ExtensionPoints = 0, "", nil
	condition := metav1.Condition{Type: policyv1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Loaded",
		ObservedGeneration: p.Generation, LastTransitionTime: metav1.NewTime(c.Clock.Now())}
	active, ok := c.Host.Status(p.Name)
	if ok {
		s.ActiveGeneration, s.ActiveDigest, s.ExtensionPoints = active.Generation, active.Digest, active.Points
		condition.Message = fmt.Sprintf("generation %d is in force", active.Generation)
	}
	stats, _ := c.Host.Stats(p.Name)
	switch {
	case !ok:
		condition.Status, condition.Reason, condition.Message = metav1.ConditionFalse, "Refused", "no version is in force"
		if refused != nil {
			condition.Message = fmt.Sprintf("%s: %s", refused.Step, refused.Message)
		}
	case stats.BreakerOpen:
		condition.Status, condition.Reason, condition.Message = metav1.ConditionFalse, "BreakerOpen", "not called, because it failed too often: "+stats.LastFailure
	case refused != nil:
		condition.Reason = "NewVersionRefused"
		condition.Message = fmt.Sprintf("generation %d stays in force; the newest version was refused: %s: %s", active.Generation, refused.Step, refused.Message)
	}
	meta.SetStatusCondition(&s.Conditions, condition)
	if reflect.DeepEqual(next.Status, p.Status) {
		return nil
	}
	if refused != nil && !reflect.DeepEqual(p.Status.LastError, refused) {
		c.Logger.Warn("policy refused", "policy", p.Name, "step", refused.Step, "error", refused.Message)
		c.event(p, corev1.EventTypeWarning, "PolicyRefused", fmt.Sprintf("%s: %s", refused.Step, refused.Message))
	}
	if _, err := c.Client.Policies.UpdateStatus(ctx, next, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write status of policy %s: %w", p.Name, err)
	}
	return nil
}
