// Package scheduler binds pods to nodes. One goroutine owns the state of package
// cluster, the queue and the decisions, and takes everything else as messages;
// another commits binds in batches, a third writes events.
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	policylisters "k8s.io/client-go/listers/policy/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"

	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/decision"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
	"github.com/quaymaster/quaymaster/core/scheduler/suspect"
	"github.com/quaymaster/quaymaster/policies"
)

var (
	// ErrPodNotFound is returned by Explain for a pod that does not exist.
	ErrPodNotFound = errors.New("pod not found")
	// ErrNotServed is returned by Explain for a pod whose spec.schedulerName has
	// no profile here.
	ErrNotServed = errors.New("scheduler name is not served")
	// ErrNotKept is returned by ExplainTaken when the decision, or the cluster of
	// then, is no longer known.
	ErrNotKept = errors.New("decision is not kept")
	// ErrStopped is returned by Explain when Run has ended.
	ErrStopped = errors.New("scheduler has stopped")
)

// Write is one compare-and-set of a stored object.
type Write struct {
	Key    string // "/registry/pods/NAMESPACE/NAME"
	Value  []byte // as upstream stores it; nil deletes
	Expect int64  // the revision that the stored object must have
	// Finish makes what is to be stored of what is, and of Value; nil: Value itself.
	Finish func(stored, value []byte) []byte
}

// Result of one Write.
type Result struct {
	Revision int64 // of the object now, 0 when it is gone
	Conflict bool  // it had another revision, or is gone; nothing was written
	Err      error // anything else that kept it from being written
}

// Committer writes independent objects, one revision each, durably when it
// returns. Results are in the order of the writes.
type Committer interface {
	Commit(ctx context.Context, writes []Write) []Result
	// CommitAll writes all or, after a conflict or error of one, none. The revision
	// is that of the last.
	CommitAll(ctx context.Context, writes []Write) Result
}

// Options of a scheduler. Client, Informers and Committer are required.
type Options struct {
	// Client evicts pods, binds volumes and writes events.
	Client kubernetes.Interface
	// Informers of pods, nodes, and what says how pods relate (namespaces,
	// services, replication controllers, replica sets, stateful sets, disruption
	// budgets), and of what volumes depend on; started by the caller, after New.
	Informers informers.SharedInformerFactory
	// Profiles of SchedulerProfile objects; nil serves the default one only.
	Profiles cache.SharedIndexInformer
	// PodGroups of upstream's workload API (scheduling.k8s.io/v1alpha2), to which
	// spec.schedulingGroup leads; nil: pods with that field are as others.
	PodGroups cache.SharedIndexInformer
	// Policies that profiles may name; nil has none.
	Policies policies.Scheduling
	// Committer writes binds and conditions.
	Committer Committer
	// Unjudged says that no audit log, webhook or policy would hear of the status
	// update and the deletion that end a preempted pod: they are committed like binds
	// then. Otherwise, and when nil, the Client makes them.
	Unjudged func() bool
	// Seed takes part in every tie-break.
	Seed uint64
	// Clock defaults to the real one.
	Clock clock.Clock
	// Logger defaults to none.
	Logger *slog.Logger
	// LedgerSize is the number of pods whose last decision is kept. Default 10,000.
	LedgerSize int
	// AuditEvery rescans one in so many decisions and counts those that a full
	// scan decides otherwise; below 0 never. Default: one in 1,000, and for at
	// most about 1 % of the time.
	AuditEvery int
	// Metrics takes upstream's scheduler_… metrics and a few of our own; nil has none.
	Metrics prometheus.Registerer
	// EventsPerSecond bounds the events of each kind (bursts of ten times that
	// pass). More are dropped: they are a courtesy, pods are not. Default 50.
	EventsPerSecond int
}

// Scheduler is made by New and started by Run.
type Scheduler struct {
	options Options
	log     *slog.Logger
	clock   clock.Clock
	pods    corelisters.PodLister
	ledger  *decision.Ledger
	inbox   inbox
	commits commits
	reports reporter
	budgets policylisters.PodDisruptionBudgetLister
	jobs    jobs
	groups  groupConditions
	stopped chan struct{}
	running atomic.Bool

	// Owned by the goroutine of Run.
	reserved map[types.NamespacedName]*v1.Pod // that others are binding, as they will be
	state    *cluster.State
	profiles map[string]*cluster.Profile // by scheduler name
	pinned   map[string]policies.Pinned
	changed  <-chan struct{}
	queue    queue
	epoch    uint64 // of the state when the parked pods' classes were checked
	woken    uint64 // generation of the state at the last wake
	revision int64
	inFlight int
	binding  map[*commit]struct{} // pods whose volumes are being bound
	gangs    map[gangKey]*gang
	suspects suspect.Log
	// preempting are the gangs that wait for victims to end.
	preempting map[*gang]struct{}
	auditAt    time.Time // not before, by default
	again      []func()  // what could not be written, for flush

	stats  counters
	meters *meters
}

// Stats count since New.
type Stats struct {
	Decisions     int64 // with a node
	Unschedulable int64 // without
	Bound         int64
	Conflicts     int64 // binds that met a newer pod
	Failures      int64 // binds and policies that failed otherwise
	Audited       int64 // decisions scanned again
	Mismatches    int64 // … with another result: always 0
	EventsDropped int64
	Preemptions   int64 // pods that got others evicted
	Victims       int64 // evicted
}

type counters struct {
	decisions, unschedulable, bound, conflicts, failures, audited, mismatches, eventsDropped, preemptions, victims atomic.Int64
}

// New checks the options and asks the factory for the informers that Run reads.
func New(options Options) (*Scheduler, error) {
	if options.Client == nil || options.Informers == nil || options.Committer == nil {
		return nil, errors.New("scheduler needs a client, informers and a committer")
	}
	if options.Clock == nil {
		options.Clock = clock.RealClock{}
	}
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	if options.LedgerSize == 0 {
		options.LedgerSize = 10_000
	}
	if options.EventsPerSecond <= 0 {
		options.EventsPerSecond = 50
	}
	core := options.Informers.Core().V1()
	watched(options.Informers) // asks for them
	s := &Scheduler{
		options:  options,
		log:      options.Logger,
		clock:    options.Clock,
		pods:     core.Pods().Lister(),
		budgets:  options.Informers.Policy().V1().PodDisruptionBudgets().Lister(),
		ledger:   decision.NewLedger(options.LedgerSize),
		stopped:  make(chan struct{}),
		reserved: map[types.NamespacedName]*v1.Pod{},
		state:    cluster.New(options.Seed),
		profiles: map[string]*cluster.Profile{cluster.DefaultSchedulerName: cluster.DefaultProfile()},
		pinned:   map[string]policies.Pinned{},
		binding:  map[*commit]struct{}{},
		gangs:    map[gangKey]*gang{},

		preempting: map[*gang]struct{}{},
	}
	s.state.KeepPast(options.LedgerSize)
	var err error
	if s.meters, err = newMeters(options.Metrics, &s.stats); err != nil {
		return nil, fmt.Errorf("register the scheduler's metrics: %w", err)
	}
	s.queue = newQueue(s.state, s.meters.queued)
	s.inbox.signal = make(chan struct{}, 1)
	s.commits.signal = make(chan struct{}, 1)
	s.jobs.signal = make(chan struct{}, 1)
	s.reports.init(options, &s.stats)
	return s, nil
}

// Stats returns the counters. It may be called at any time.
func (s *Scheduler) Stats() Stats {
	c := &s.stats
	return Stats{c.decisions.Load(), c.unschedulable.Load(), c.bound.Load(), c.conflicts.Load(), c.failures.Load(),
		c.audited.Load(), c.mismatches.Load(), c.eventsDropped.Load(), c.preemptions.Load(), c.victims.Load()}
}

// Run schedules until the context ends, once. It returns when everything that
// it started has ended.
func (s *Scheduler) Run(ctx context.Context) error {
	if !s.running.CompareAndSwap(false, true) {
		return errors.New("scheduler has been run already")
	}
	defer close(s.stopped)
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()

	informers := watched(s.options.Informers)
	if s.options.PodGroups != nil { // before pods are known
		informers = slices.Insert(informers, 0, s.options.PodGroups)
	}
	if s.options.Profiles != nil {
		informers = append(informers, s.options.Profiles)
	}
	for _, informer := range informers {
		registration, err := informer.AddEventHandler(s.inbox.handler())
		if err != nil {
			return fmt.Errorf("watch for the scheduler: %w", err)
		}
		defer func() {
			if err := informer.RemoveEventHandler(registration); err != nil {
				s.log.Warn("stop watching for the scheduler", "error", err)
			}
		}()
		select { // one after the other, so that what decisions depend on is known before pods are
		case <-registration.HasSyncedChecker().Done():
		case <-ctx.Done():
			return nil
		}
	}
	group.Go(func() { s.commit(ctx) })
	group.Go(func() { s.reports.run(ctx) })
	group.Go(func() { s.jobs.run(ctx) })
	s.loop(ctx)
	return nil
}

// watched are the informers that Run reads, those first that decisions about
// pods depend on.
func watched(factory informers.SharedInformerFactory) []cache.SharedIndexInformer {
	core, apps, storage := factory.Core().V1(), factory.Apps().V1(), factory.Storage().V1()
	return []cache.SharedIndexInformer{
		core.Namespaces().Informer(), core.Services().Informer(), core.ReplicationControllers().Informer(),
		apps.ReplicaSets().Informer(), apps.StatefulSets().Informer(), factory.Policy().V1().PodDisruptionBudgets().Informer(),
		storage.StorageClasses().Informer(), storage.CSINodes().Informer(), storage.CSIDrivers().Informer(), storage.CSIStorageCapacities().Informer(),
		storage.VolumeAttachments().Informer(), core.PersistentVolumes().Informer(), core.PersistentVolumeClaims().Informer(),
		core.Nodes().Informer(), core.Pods().Informer(),
	}
}

// record notes a decision in the ledger.
func (s *Scheduler) record(p *pending, out cluster.Outcome, text string) {
	taken := decisionv1alpha1.TakenDecision{
		Revision:  s.revision,
		Message:   text,
		Feasible:  int32(out.Feasible),
		Evaluated: int32(out.Evaluated),
		Score:     out.Score,
		Policies:  s.versions(p.profile),
	}
	taken.Time.Time = s.clock.Now()
	if out.Node != nil {
		taken.Node = out.Node.Name
	}
	s.ledger.Record(p.key, p.pod.UID, taken, decision.Basis{Position: p.position, Profile: p.profile})
}

// policiesOf pins the policies of the profile that are not pinned yet.
func (s *Scheduler) policiesOf(profile *cluster.Profile) cluster.Policies {
	if !profile.HasPolicies() || s.options.Policies == nil {
		return cluster.Policies{}
	}
	pin := func(name string) {
		if _, ok := s.pinned[name]; ok {
			return
		}
		if pinned, err := s.options.Policies.Pin(name); err == nil {
			s.pinned[name] = pinned
		} else if !errors.Is(err, policies.ErrNotLoaded) {
			s.log.Warn("pin policy", "policy", name, "error", err)
		}
	}
	for _, f := range profile.Filters {
		pin(f.Policy)
	}
	for _, f := range profile.Scores {
		pin(f.Policy)
	}
	return cluster.Policies{
		Cycle:  policies.Cycle{Time: s.clock.Now(), Seed: s.options.Seed, Revision: s.revision},
		Pinned: s.pinned,
	}
}

func (s *Scheduler) unpin() {
	for name, pinned := range s.pinned {
		pinned.Release()
		delete(s.pinned, name)
	}
}

// versions lists the policies of the profile that are pinned.
func (s *Scheduler) versions(profile *cluster.Profile) (list []decisionv1alpha1.PolicyVersion) {
	seen := map[string]bool{}
	add := func(name string) {
		if pinned := s.pinned[name]; pinned != nil && !seen[name] {
			seen[name] = true
			p := pinned.Provenance()
			list = append(list, decisionv1alpha1.PolicyVersion{Name: p.Policy, Generation: p.Generation, Digest: p.Digest})
		}
	}
	if !profile.HasPolicies() {
		return nil
	}
	for _, f := range profile.Filters {
		add(f.Policy)
	}
	for _, f := range profile.Scores {
		add(f.Policy)
	}
	return list
}

// applyProfiles compiles the profile objects anew. Of those that are wrong, the
// version before stays in force, if there was one.
func (s *Scheduler) applyProfiles() {
	next := map[string]*cluster.Profile{}
	for _, object := range s.options.Profiles.GetStore().List() {
		object := object.(*schedulingv1alpha1.SchedulerProfile)
		profile, err := cluster.NewProfile(object.Name, object.Spec)
		if err != nil {
			s.log.Warn("scheduler profile refused", "profile", object.Name, "error", err)
			name := object.Spec.SchedulerName
			if name == "" {
				name = object.Name
			}
			if profile = s.profiles[name]; profile == nil {
				continue
			}
		}
		if next[profile.Name] != nil {
			s.log.Warn("two scheduler profiles serve one name", "profile", object.Name, "schedulerName", profile.Name)
		}
		next[profile.Name] = profile
	}
	if next[cluster.DefaultSchedulerName] == nil {
		next[cluster.DefaultSchedulerName] = cluster.DefaultProfile()
	}
	s.profiles = next
	s.trackShares()
	s.queue.each(s.drop)
	pods, err := s.pods.List(everything)
	if err != nil {
		s.log.Warn("list pods for a changed scheduler profile", "error", err)
		return
	}
	for _, pod := range pods {
		if pod.Spec.NodeName == "" {
			s.applyPod(pod)
		}
	}
}

// trackShares counts what the profiles that share fairly ask for.
func (s *Scheduler) trackShares() {
	labels := map[string]bool{}
	for _, profile := range s.profiles {
		if profile.FairShare {
			labels[profile.QueueLabel] = true
		}
	}
	s.state.TrackShares(slices.Collect(maps.Keys(labels))...)
}

func (s *Scheduler) sawRevision(text string) {
	if r, err := strconv.ParseInt(text, 10, 64); err == nil && r > s.revision {
		s.revision = r
	}
}

func podCondition(pod *v1.Pod) *v1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == v1.PodScheduled {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

// backOff before the next attempt: 1 s, doubled by each, at most 10 s.
func backOff(attempts int) time.Duration {
	return min(time.Second<<min(max(attempts-1, 0), 4), 10*time.Second)
}
