// Package node keeps a node's API objects: it registers the Node once, renews
// its Lease and reports its status, as upstream's kubelet does. A Node that
// somebody deletes stays deleted until the agent starts again.
package node

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/runtime/agent/trouble"
)

// Upstream's periods: how long a lease holds and when it is renewed, how often
// the status is looked at, and how often it is written although nothing changed.
const (
	LeaseDuration = 40 * time.Second
	RenewInterval = 10 * time.Second
	StatusPeriod  = 10 * time.Second
	ReportPeriod  = 5 * time.Minute
)

// Options of New.
type Options struct {
	Name        string
	Client      kubernetes.Interface
	Labels      map[string]string // over the well-known ones
	Annotations map[string]string
	Taints      []v1.Taint
	Capacity    v1.ResourceList
	Reserved    v1.ResourceList // capacity − reserved = allocatable
	Addresses   []v1.NodeAddress
	Port        int32 // of the kubelet API; 0 = none
	Info        v1.NodeSystemInfo
	// RuntimeVersion is Info's of the container runtime, which may be known late; nil = Info has it.
	RuntimeVersion func() string
	Unschedulable  bool
	// Unregistered leaves it to others to make the Node: until it is there nothing else is done for it.
	Unregistered bool
	// Healthy says whether pods can run; its error becomes the Ready condition's message.
	Healthy func() error
	// Pressure tells which of the conditions of shortage hold; nil = none ever.
	Pressure func() map[v1.NodeConditionType]bool
	// Trouble tells whether the node breaks pods, and how; nil = never.
	Trouble func() (trouble.Level, string)
	// Images lists what the node has, for the scheduler's image locality; may be nil.
	Images func(context.Context) ([]v1.ContainerImage, error)
	// Features and Handlers are what the runtime said of itself; may be nil.
	Features func() (*v1.NodeFeatures, []v1.NodeRuntimeHandler)
	// Wake makes the status be looked at before its time.
	Wake   <-chan struct{}
	Clock  clock.Clock
	Logger *slog.Logger
}

// Manager keeps one node's objects.
type Manager struct {
	opts     Options
	lease    *coordinationv1.Lease
	node     *v1.Node // as last read or written
	reported time.Time

	shown atomic.Pointer[v1.Node] // the same, for others
}

// New returns a manager that has done nothing yet.
func New(opts Options) *Manager {
	m := &Manager{opts: opts}
	m.shown.Store(&v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: opts.Name, Labels: m.labels()}, Spec: v1.NodeSpec{Taints: opts.Taints},
		Status: v1.NodeStatus{Capacity: opts.Capacity, Allocatable: m.allocatable(opts.Capacity)},
	})
	return m
}

// Run registers the node, calls registered, and renews and reports until ctx
// ends. Registration is tried again until it succeeds.
func (m *Manager) Run(ctx context.Context, registered func()) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 7*time.Second) {
		err := m.register(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return
		}
		m.opts.Logger.Warn("the node is not registered yet", "node", m.opts.Name, "err", err)
		if !m.sleep(ctx, wait) {
			return
		}
	}
	registered()
	lease, st := m.opts.Clock.NewTimer(m.tryRenew(ctx)), m.opts.Clock.NewTimer(jitter(StatusPeriod))
	defer func() { lease.Stop(); st.Stop() }()
	for {
		select {
		case <-ctx.Done():
			return
		case <-lease.C():
			lease.Reset(m.tryRenew(ctx))
		case <-st.C():
			m.tryReport(ctx)
			st.Reset(jitter(StatusPeriod))
		case <-m.opts.Wake:
			m.tryReport(ctx)
		}
	}
}

// tryRenew renews the lease and returns when to do so again.
func (m *Manager) tryRenew(ctx context.Context) time.Duration {
	if err := m.renew(ctx); err != nil && ctx.Err() == nil {
		m.opts.Logger.Warn("renew the node's lease", "node", m.opts.Name, "err", err)
		return time.Second
	}
	return jitter(RenewInterval)
}

func (m *Manager) tryReport(ctx context.Context) {
	if err := m.report(ctx); err != nil && ctx.Err() == nil {
		m.opts.Logger.Warn("report the node's status", "node", m.opts.Name, "err", err)
	}
}

// jitter spreads the calls of many nodes: 96 to 104 % of a period.
func jitter(d time.Duration) time.Duration {
	return d - d/25 + rand.N(2*d/25)
}

func (m *Manager) sleep(ctx context.Context, d time.Duration) bool {
	t := m.opts.Clock.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C():
		return true
	}
}

// labels returns the well-known labels and the wanted ones.
func (m *Manager) labels() map[string]string {
	out := map[string]string{
		v1.LabelHostname: m.opts.Name, v1.LabelOSStable: m.opts.Info.OperatingSystem, v1.LabelArchStable: m.opts.Info.Architecture,
		"beta.kubernetes.io/os": m.opts.Info.OperatingSystem, "beta.kubernetes.io/arch": m.opts.Info.Architecture,
	}
	for k, v := range m.opts.Labels {
		out[k] = v
	}
	return out
}

// register creates the Node or, where one of the name is there, brings its
// well-known labels and its status up to date: labels and taints that others
// gave it stay. A Node that others are to make has its status written alone.
func (m *Manager) register(ctx context.Context) error {
	nodes := m.opts.Client.CoreV1().Nodes()
	if m.opts.Unregistered {
		node, err := nodes.Get(ctx, m.opts.Name, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("the node is to be made by somebody else: %w", err)
		}
		m.took(node)
		return m.report(ctx)
	}
	want := &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: m.opts.Name, Labels: m.labels(), Annotations: m.opts.Annotations},
		Spec:       v1.NodeSpec{Taints: m.opts.Taints, Unschedulable: m.opts.Unschedulable},
	}
	m.status(ctx, want, m.opts.Clock.Now())
	node, err := nodes.Create(ctx, want, metav1.CreateOptions{})
	if err == nil {
		m.took(node)
		m.reported = m.opts.Clock.Now()
		return nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create node %s: %w", m.opts.Name, err)
	}
	if node, err = nodes.Get(ctx, m.opts.Name, metav1.GetOptions{}); err != nil {
		return fmt.Errorf("get node %s: %w", m.opts.Name, err)
	}
	changed := node.DeepCopy()
	if changed.Labels == nil {
		changed.Labels = map[string]string{}
	}
	for k, v := range want.Labels {
		changed.Labels[k] = v
	}
	if !apiequality.Semantic.DeepEqual(changed, node) {
		if node, err = nodes.Update(ctx, changed, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("update node %s: %w", m.opts.Name, err)
		}
	}
	m.took(node)
	return m.report(ctx)
}

func (m *Manager) took(node *v1.Node) {
	m.node = node
	m.shown.Store(node)
}

// Node is the Node as it was last read or written, and before that as it will be. It must not be changed.
func (m *Manager) Node() *v1.Node { return m.shown.Load() }

// Read returns the Node as it is now.
func (m *Manager) Read(ctx context.Context) (*v1.Node, error) {
	node, err := m.opts.Client.CoreV1().Nodes().Get(ctx, m.opts.Name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get node %s: %w", m.opts.Name, err)
	}
	m.shown.Store(node)
	return node, nil
}

// report writes the node's status when it changed or its time has come.
func (m *Manager) report(ctx context.Context) error {
	nodes := m.opts.Client.CoreV1().Nodes()
	now := m.opts.Clock.Now()
	var refused error
	for range 3 {
		want := m.node.DeepCopy()
		m.status(ctx, want, now)
		if apiequality.Semantic.DeepEqual(want.Status, m.node.Status) && now.Sub(m.reported) < ReportPeriod {
			return nil
		}
		for i := range want.Status.Conditions {
			want.Status.Conditions[i].LastHeartbeatTime = metav1.NewTime(now)
		}
		node, err := nodes.UpdateStatus(ctx, want, metav1.UpdateOptions{})
		if err == nil {
			m.took(node)
			m.reported = now
			return nil
		}
		refused = err
		// A node may not change taints: so a stale copy of one whose taints changed is refused.
		if !apierrors.IsConflict(err) && !apierrors.IsForbidden(err) {
			return fmt.Errorf("update the status of node %s: %w", m.opts.Name, err)
		}
		if node, err = nodes.Get(ctx, m.opts.Name, metav1.GetOptions{}); err != nil {
			return fmt.Errorf("get node %s: %w", m.opts.Name, err)
		}
		if node.UID != m.node.UID {
			return fmt.Errorf("node %s is another object than the one registered", m.opts.Name)
		}
		m.took(node)
	}
	return fmt.Errorf("update the status of node %s: %w", m.opts.Name, refused)
}

// capacity is what the node has, and the extended resources that others have given it.
func (m *Manager) capacity(before v1.ResourceList) v1.ResourceList {
	out := m.opts.Capacity.DeepCopy()
	for name, q := range before {
		if _, own := out[name]; !own && strings.Contains(string(name), "/") {
			if out == nil {
				out = v1.ResourceList{}
			}
			out[name] = q
		}
	}
	return out
}

// allocatable is what pods get of a capacity.
func (m *Manager) allocatable(capacity v1.ResourceList) v1.ResourceList {
	out := capacity.DeepCopy()
	for name, q := range m.opts.Reserved {
		have, ok := out[name]
		if !ok {
			continue
		}
		have.Sub(q)
		if have.Sign() < 0 {
			have = resource.Quantity{Format: have.Format}
		}
		out[name] = have
	}
	return out
}

// status fills in what the agent knows.
func (m *Manager) status(ctx context.Context, node *v1.Node, now time.Time) {
	st := &node.Status
	st.Capacity = m.capacity(st.Capacity)
	st.Allocatable = m.allocatable(st.Capacity)
	st.Addresses = m.opts.Addresses
	st.NodeInfo = m.opts.Info
	if m.opts.RuntimeVersion != nil {
		st.NodeInfo.ContainerRuntimeVersion = m.opts.RuntimeVersion()
	}
	st.DaemonEndpoints.KubeletEndpoint.Port = m.opts.Port
	if m.opts.Features != nil {
		st.Features, st.RuntimeHandlers = m.opts.Features()
	}
	ready := v1.NodeCondition{Type: v1.NodeReady, Status: v1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status"}
	if err := m.opts.Healthy(); err != nil {
		ready.Status, ready.Reason, ready.Message = v1.ConditionFalse, "KubeletNotReady", err.Error()
	} else if m.opts.Images != nil { // a runtime that hangs is not asked more: the lease would not be renewed meanwhile
		if images, err := m.opts.Images(ctx); err == nil {
			st.Images = images
		}
	}
	short := map[v1.NodeConditionType]bool{}
	if m.opts.Pressure != nil {
		short = m.opts.Pressure()
	}
	for _, c := range []struct {
		kind               v1.NodeConditionType
		reason, message    string
		shortly, complaint string
	}{
		{v1.NodeMemoryPressure, "KubeletHasSufficientMemory", "kubelet has sufficient memory available", "KubeletHasInsufficientMemory", "kubelet has insufficient memory available"},
		{v1.NodeDiskPressure, "KubeletHasNoDiskPressure", "kubelet has no disk pressure", "KubeletHasDiskPressure", "kubelet has disk pressure"},
		{v1.NodePIDPressure, "KubeletHasSufficientPID", "kubelet has sufficient PID available", "KubeletHasInsufficientPID", "kubelet has insufficient PID available"},
	} {
		condition := v1.NodeCondition{Type: c.kind, Status: v1.ConditionFalse, Reason: c.reason, Message: c.message}
		if short[c.kind] {
			condition.Status, condition.Reason, condition.Message = v1.ConditionTrue, c.shortly, c.complaint
		}
		setCondition(st, condition, metav1.NewTime(now))
	}
	setCondition(st, ready, metav1.NewTime(now))
	m.troubled(st, now)
}

// ConditionPodStarts is the condition of a node that fails to start pods: Unknown where some fail, True
// where nearly all do. A node that never had trouble has none.
const ConditionPodStarts v1.NodeConditionType = "PodStartsFail"

func (m *Manager) troubled(st *v1.NodeStatus, now time.Time) {
	if m.opts.Trouble == nil {
		return
	}
	level, message := m.opts.Trouble()
	c := v1.NodeCondition{Type: ConditionPodStarts, Status: v1.ConditionFalse, Reason: "PodsStart", Message: "pods start"}
	switch level {
	case trouble.Doubtful:
		c.Status, c.Reason, c.Message = v1.ConditionUnknown, "SomePodsDoNotStart", message
	case trouble.Breaking:
		c.Status, c.Reason, c.Message = v1.ConditionTrue, "PodsDoNotStart", message
	default:
		if !slices.ContainsFunc(st.Conditions, func(have v1.NodeCondition) bool { return have.Type == ConditionPodStarts }) {
			return
		}
	}
	setCondition(st, c, metav1.NewTime(now))
}

// setCondition keeps the times of a condition that did not change.
func setCondition(st *v1.NodeStatus, c v1.NodeCondition, now metav1.Time) {
	c.LastHeartbeatTime, c.LastTransitionTime = now, now
	for i := range st.Conditions {
		if old := &st.Conditions[i]; old.Type == c.Type {
			c.LastHeartbeatTime = old.LastHeartbeatTime
			if old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
			*old = c
			return
		}
	}
	st.Conditions = append(st.Conditions, c)
}

// renew writes the lease; without its Node there is none to be made.
func (m *Manager) renew(ctx context.Context) error {
	leases := m.opts.Client.CoordinationV1().Leases(v1.NamespaceNodeLease)
	now := metav1.NewMicroTime(m.opts.Clock.Now())
	for range 3 {
		if m.lease == nil {
			lease, err := leases.Get(ctx, m.opts.Name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return m.createLease(ctx, now)
			}
			if err != nil {
				return err
			}
			m.lease = lease
		}
		next := m.lease.DeepCopy()
		next.Spec.RenewTime, next.Spec.HolderIdentity, next.Spec.LeaseDurationSeconds = &now, &m.opts.Name, ptr.To(int32(LeaseDuration/time.Second))
		lease, err := leases.Update(ctx, next, metav1.UpdateOptions{})
		if err == nil {
			m.lease = lease
			return nil
		}
		m.lease = nil
		if !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return fmt.Errorf("the lease keeps changing")
}

func (m *Manager) createLease(ctx context.Context, now metav1.MicroTime) error {
	node, err := m.opts.Client.CoreV1().Nodes().Get(ctx, m.opts.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil // deleted by somebody: the lease went with it, and stays away as well
	}
	if err != nil {
		return err
	}
	lease, err := m.opts.Client.CoordinationV1().Leases(v1.NamespaceNodeLease).Create(ctx, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: m.opts.Name, Namespace: v1.NamespaceNodeLease, OwnerReferences: []metav1.OwnerReference{{
			APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID,
		}}},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &m.opts.Name, LeaseDurationSeconds: ptr.To(int32(LeaseDuration / time.Second)), RenewTime: &now},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create lease: %w", err)
	}
	m.lease = lease
	return nil
}

// SystemInfo describes the process's own machine as far as Go knows it.
func SystemInfo(version string) v1.NodeSystemInfo {
	return v1.NodeSystemInfo{
		KubeletVersion: version, OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH,
	}
}
