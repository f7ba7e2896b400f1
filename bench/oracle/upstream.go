// Package oracle runs upstream's scheduling framework and this project's
// scheduling core over the same clusters and compares what they say. It is a
// module of its own, so that the product does not depend on upstream's scheduler.
//
// Plugins whose fields the generated pods do not have are disabled on both
// sides, by profile: inter-pod affinity and topology spread unless asked for
// (upstream's default spread constraints would otherwise take part in its
// scores), and volumes.
package oracle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
	"k8s.io/dynamic-resource-allocation/resourceslice/tracker"
	"k8s.io/klog/v2"
	schedulerv1 "k8s.io/kube-scheduler/config/v1"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/features"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"
	internalcache "k8s.io/kubernetes/pkg/scheduler/backend/cache"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/defaultpreemption"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/dynamicresources"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/feature"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/names"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/nodevolumelimits"
	"k8s.io/kubernetes/pkg/scheduler/framework/preemption"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/kubernetes/pkg/scheduler/metrics"
	"k8s.io/kubernetes/pkg/scheduler/util/assumecache"
	"sigs.k8s.io/yaml"
)

// Options say what generated pods may ask for beside what always takes part.
type Options struct {
	InterPodAffinity, TopologySpread, PodLevelResources, Volumes bool
	// Profile is the YAML of a SchedulerProfile's spec whose args both sides get.
	Profile string
}

// disabled lists the plugins that do not take part.
func (o Options) disabled() []string {
	var list []string
	if !o.Volumes {
		list = append(list, names.VolumeBinding, names.VolumeRestrictions, names.VolumeZone, names.NodeVolumeLimits)
	}
	if !o.InterPodAffinity {
		list = append(list, names.InterPodAffinity)
	}
	if !o.TopologySpread {
		list = append(list, names.PodTopologySpread)
	}
	return list
}

// NodeResult is what one side says of one node.
type NodeResult struct {
	// Plugin that refused the node ("" if it is feasible, or if upstream does not say) and why.
	Plugin  string
	Reasons []string
	// Scores of a feasible node by plugin, normalised and weighted, and their sum.
	Scores map[string]int64
	Total  int64
}

// Result is what one side says of one pod.
type Result struct {
	Nodes map[string]NodeResult
	// Best are the names of the feasible nodes with the highest total, sorted.
	Best []string
	// Message of a pod that no node takes.
	Message string
	// Nominated is the node that preemption would free, and Victims what it
	// would evict there, as sorted names.
	Nominated string
	Victims   []string
	// Violations is the number of victims that no budget allows for.
	Violations int64
	// on asks the same of one node.
	on func(node string) (*Result, error)
}

// Upstream is upstream's framework with its default plugins. It loads one
// cluster after another; it is not safe for concurrent use.
type Upstream struct {
	framework framework.Framework
	lister    *lister
	pods      cache.Indexer
	victims   []string
	violated  int64 // budgets, by these
	// What affinity and spread read beside nodes and pods.
	namespaces, services, replicaSets, budgets cache.Indexer
	storage                                    map[reflect.Type]cache.Indexer

	cache internalcache.Cache
	stale bool               // the snapshot, since nodes changed
	end   context.CancelFunc // of the cache
}

// lister lets the framework outlive a snapshot.
type lister struct{ *internalcache.Snapshot }

// noNominations is a nominator of a cluster without nominated pods.
type noNominations struct{}

func (noNominations) AddNominatedPod(klog.Logger, fwk.PodInfo, *fwk.NominatingInfo) {}
func (noNominations) DeleteNominatedPodIfExists(*v1.Pod)                            {}
func (noNominations) UpdateNominatedPod(klog.Logger, *v1.Pod, fwk.PodInfo)          {}
func (noNominations) NominatedPodsForNode(string) []fwk.PodInfo                     { return nil }

// NewUpstream makes the framework. It lives until the context ends.
func NewUpstream(ctx context.Context, options Options) (*Upstream, error) {
	metrics.Register()
	profile, err := upstreamProfile(options)
	if err != nil {
		return nil, err
	}
	client := fake.NewClientset()
	factory := informers.NewSharedInformerFactory(client, 0)
	slices, err := tracker.StartTracker(ctx, tracker.Options{SliceInformer: factory.Resource().V1().ResourceSlices(), KubeClient: client})
	if err != nil {
		return nil, fmt.Errorf("start the tracker of resource slices: %w", err)
	}
	claims := assumecache.NewAssumeCache(klog.FromContext(ctx), factory.Resource().V1().ResourceClaims().Informer(), "ResourceClaim", "", nil)
	u := &Upstream{
		lister:      &lister{internalcache.NewEmptySnapshot()},
		pods:        factory.Core().V1().Pods().Informer().GetIndexer(),
		namespaces:  factory.Core().V1().Namespaces().Informer().GetIndexer(),
		services:    factory.Core().V1().Services().Informer().GetIndexer(),
		replicaSets: factory.Apps().V1().ReplicaSets().Informer().GetIndexer(),
		budgets:     factory.Policy().V1().PodDisruptionBudgets().Informer().GetIndexer(),
		end:         func() {},
	}
	storage := factory.Storage().V1()
	u.storage = map[reflect.Type]cache.Indexer{
		reflect.TypeFor[*v1.PersistentVolumeClaim]():     factory.Core().V1().PersistentVolumeClaims().Informer().GetIndexer(),
		reflect.TypeFor[*v1.PersistentVolume]():          factory.Core().V1().PersistentVolumes().Informer().GetIndexer(),
		reflect.TypeFor[*storagev1.StorageClass]():       storage.StorageClasses().Informer().GetIndexer(),
		reflect.TypeFor[*storagev1.CSINode]():            storage.CSINodes().Informer().GetIndexer(),
		reflect.TypeFor[*storagev1.CSIDriver]():          storage.CSIDrivers().Informer().GetIndexer(),
		reflect.TypeFor[*storagev1.CSIStorageCapacity](): storage.CSIStorageCapacities().Informer().GetIndexer(),
		reflect.TypeFor[*storagev1.VolumeAttachment]():   storage.VolumeAttachments().Informer().GetIndexer(),
	}
	registry := plugins.NewInTreeRegistry()
	registry[names.DefaultPreemption] = u.newPreemption
	u.framework, err = frameworkruntime.NewFramework(ctx, registry, profile,
		frameworkruntime.WithClientSet(client),
		frameworkruntime.WithInformerFactory(factory),
		frameworkruntime.WithSharedDRAManager(dynamicresources.NewDRAManager(ctx, claims, slices, factory)),
		frameworkruntime.WithSharedCSIManager(nodevolumelimits.NewCSIManager(factory.Storage().V1().CSINodes().Lister())),
		frameworkruntime.WithSnapshotSharedLister(u.lister),
		frameworkruntime.WithPodNominator(noNominations{}),
		frameworkruntime.WithParallelism(1),
	)
	if err != nil {
		return nil, fmt.Errorf("make upstream's framework: %w", err)
	}
	factory.Start(ctx.Done())
	for kind, synced := range factory.WaitForCacheSync(ctx.Done()) {
		if !synced {
			return nil, fmt.Errorf("informer of %v did not sync", kind)
		}
	}
	return u, nil
}

// upstreamProfile is upstream's default profile without the plugins that do not
// take part, and with the arguments of the options' profile.
func upstreamProfile(options Options) (*config.KubeSchedulerProfile, error) {
	name, set := v1.DefaultSchedulerName, &schedulerv1.Plugins{}
	for _, plugin := range options.disabled() {
		set.MultiPoint.Disabled = append(set.MultiPoint.Disabled, schedulerv1.Plugin{Name: plugin})
	}
	profile := schedulerv1.KubeSchedulerProfile{SchedulerName: &name, Plugins: set}
	var spec struct {
		Args map[string]json.RawMessage `json:"args"`
	}
	if err := yaml.Unmarshal([]byte(options.Profile), &spec); err != nil {
		return nil, fmt.Errorf("read the profile: %w", err)
	}
	for plugin, args := range spec.Args {
		profile.PluginConfig = append(profile.PluginConfig, schedulerv1.PluginConfig{
			Name: strings.ToUpper(plugin[:1]) + plugin[1:], Args: runtime.RawExtension{Raw: args}})
	}
	text, err := json.Marshal(schedulerv1.KubeSchedulerConfiguration{
		TypeMeta: metav1.TypeMeta{APIVersion: schedulerv1.SchemeGroupVersion.String(), Kind: "KubeSchedulerConfiguration"},
		Profiles: []schedulerv1.KubeSchedulerProfile{profile},
	})
	if err != nil {
		return nil, fmt.Errorf("encode upstream's configuration: %w", err)
	}
	object, _, err := scheme.Codecs.UniversalDecoder().Decode(text, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("decode upstream's configuration: %w", err)
	}
	return &object.(*config.KubeSchedulerConfiguration).Profiles[0], nil
}

// newPreemption makes upstream's preemption so that it names its victims and
// evicts none.
func (u *Upstream) newPreemption(ctx context.Context, args runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
	gates := feature.NewSchedulerFeaturesFromGates(utilfeature.DefaultFeatureGate)
	gates.EnableAsyncPreemption = false
	p, err := defaultpreemption.New(ctx, args, handle, gates)
	if err != nil {
		return nil, err
	}
	p.Executor.PreemptPod = func(_ context.Context, c preemption.Candidate, _ preemption.ExecutorPreemptor, victim *v1.Pod, _ string) error {
		u.victims, u.violated = append(u.victims, victim.Name), c.Victims().NumPDBViolations
		return nil
	}
	return p, nil
}

// Load puts the case's cluster, without nodes and pods, in the place of the last.
func (u *Upstream) Load(ctx context.Context, in Case) error {
	u.end()
	ctx, u.end = context.WithCancel(ctx)
	u.cache = internalcache.New(ctx, nil, utilfeature.DefaultFeatureGate.Enabled(features.GenericWorkload))
	u.stale = true
	for _, indexer := range u.storage {
		if err := indexer.Replace(nil, ""); err != nil {
			return fmt.Errorf("clear upstream's storage: %w", err)
		}
	}
	var err error
	in.Storage.each(func(object metav1.Object) { err = errors.Join(err, u.SetStorage(object, false)) })
	return errors.Join(err, replace(u.budgets, in.Budgets), replace(u.namespaces, in.Namespaces), replace(u.services, in.Services), replace(u.replicaSets, in.ReplicaSets))
}

func replace[T any](in cache.Indexer, objects []T) error {
	list := make([]any, len(objects))
	for i := range objects {
		list[i] = objects[i]
	}
	if err := in.Replace(list, ""); err != nil {
		return fmt.Errorf("show objects to upstream: %w", err)
	}
	return nil
}

// SetStorage adds what volumes depend on, or its new version; gone takes it away.
func (u *Upstream) SetStorage(object metav1.Object, gone bool) (err error) {
	indexer := u.storage[reflect.TypeOf(object)]
	if gone {
		err = indexer.Delete(object)
	} else {
		err = indexer.Update(object)
	}
	if err != nil {
		return fmt.Errorf("show %s to upstream: %w", object.GetName(), err)
	}
	return nil
}

// SetNode adds a node, or puts a new version in the place of the old.
func (u *Upstream) SetNode(ctx context.Context, old, node *v1.Node) {
	u.stale = true
	if old == nil {
		u.cache.AddNode(klog.FromContext(ctx), node)
	} else {
		u.cache.UpdateNode(klog.FromContext(ctx), old, node)
	}
}

// RemoveNode forgets a node.
func (u *Upstream) RemoveNode(ctx context.Context, node *v1.Node) error {
	u.stale = true
	if err := u.cache.RemoveNode(klog.FromContext(ctx), node); err != nil {
		return fmt.Errorf("remove node %s from upstream's cache: %w", node.Name, err)
	}
	return nil
}

// Bind counts a pod with spec.nodeName on that node.
func (u *Upstream) Bind(ctx context.Context, pod *v1.Pod) error {
	if err := u.cache.AddPod(klog.FromContext(ctx), pod); err != nil {
		return fmt.Errorf("add pod %s to upstream's cache: %w", pod.Name, err)
	}
	return nil
}

// Unbind frees what the pod occupies.
func (u *Upstream) Unbind(ctx context.Context, pod *v1.Pod) error {
	if err := u.cache.RemovePod(klog.FromContext(ctx), pod); err != nil {
		return fmt.Errorf("remove pod %s from upstream's cache: %w", pod.Name, err)
	}
	return nil
}

// Decide runs filters, scores over all feasible nodes, and preemption, in the
// order of upstream's scheduling cycle. It changes nothing.
func (u *Upstream) Decide(ctx context.Context, pod *v1.Pod) (*Result, error) {
	if u.stale {
		// An updated snapshot would show, for a node that did not change itself,
		// how many nodes had its images when it last did.
		u.lister.Snapshot, u.stale = internalcache.NewEmptySnapshot(), false
	}
	if err := u.cache.UpdateSnapshot(klog.FromContext(ctx), u.lister.Snapshot); err != nil {
		return nil, fmt.Errorf("update upstream's snapshot: %w", err)
	}
	nodes, err := u.lister.NodeInfos().List()
	if err != nil {
		return nil, fmt.Errorf("list upstream's nodes: %w", err)
	}
	result := &Result{Nodes: map[string]NodeResult{}}
	if len(nodes) == 0 {
		result.Message = "no nodes available to schedule pods" // scheduler.ErrNoNodesAvailable
		return result, nil
	}
	state := framework.NewCycleState()
	feasible, diagnosis, err := u.filter(ctx, state, pod, nodes)
	if err != nil {
		return nil, err
	}
	for _, node := range nodes {
		name := node.Node().Name
		if status := diagnosis.NodeToStatus.Get(name); !slices.Contains(feasible, node) {
			result.Nodes[name] = NodeResult{Plugin: status.Plugin(), Reasons: status.Reasons()}
		}
	}
	if len(feasible) == 0 {
		return result, u.preempt(ctx, state, pod, len(nodes), diagnosis, result)
	}
	if status := u.framework.RunPreScorePlugins(ctx, state, pod, feasible); !status.IsSuccess() {
		return nil, fmt.Errorf("prepare upstream's scores: %w", status.AsError())
	}
	scores, status := u.framework.RunScorePlugins(ctx, state, pod, feasible)
	if !status.IsSuccess() {
		return nil, fmt.Errorf("run upstream's scores: %w", status.AsError())
	}
	for _, node := range scores {
		by := map[string]int64{}
		for _, score := range node.Scores {
			by[score.Name] = score.Score
		}
		result.Nodes[node.Name] = NodeResult{Scores: by, Total: node.TotalScore}
	}
	result.Best = best(result.Nodes)
	return result, nil
}

func (u *Upstream) filter(ctx context.Context, state fwk.CycleState, pod *v1.Pod, nodes []fwk.NodeInfo) (feasible []fwk.NodeInfo, d framework.Diagnosis, err error) {
	d.NodeToStatus = framework.NewDefaultNodeToStatus()
	narrowed, status, rejecting := u.framework.RunPreFilterPlugins(ctx, state, pod)
	d.UnschedulablePlugins = rejecting
	if !status.IsSuccess() {
		if !status.IsRejected() {
			return nil, d, fmt.Errorf("prepare upstream's filters: %w", status.AsError())
		}
		d.NodeToStatus.SetAbsentNodesStatus(status)
		d.PreFilterMsg = status.Message()
		return nil, d, nil
	}
	if !narrowed.AllNodes() {
		d.NodeToStatus.SetAbsentNodesStatus(fwk.NewStatus(fwk.UnschedulableAndUnresolvable, fmt.Sprintf("node(s) didn't satisfy plugin(s) %v", sets.List(rejecting))))
	}
	for _, node := range nodes {
		if !narrowed.AllNodes() && !narrowed.NodeNames.Has(node.Node().Name) {
			continue
		}
		switch status := u.framework.RunFilterPluginsWithNominatedPods(ctx, state, pod, node); {
		case status.IsSuccess():
			feasible = append(feasible, node)
		case status.Code() == fwk.Error:
			return nil, d, fmt.Errorf("run upstream's filters: %w", status.AsError())
		default:
			d.NodeToStatus.Set(node.Node().Name, status)
			d.AddPluginStatus(status)
		}
	}
	return feasible, d, nil
}

// preempt fills in what becomes of a pod that no node takes.
func (u *Upstream) preempt(ctx context.Context, state fwk.CycleState, pod *v1.Pod, nodes int, d framework.Diagnosis, result *Result) error {
	if err := u.pods.Add(pod); err != nil {
		return fmt.Errorf("show pod %s to upstream's preemption: %w", pod.Name, err)
	}
	u.victims = nil
	nominated, status := u.framework.RunPostFilterPlugins(ctx, state, pod, d.NodeToStatus)
	if err := u.pods.Delete(pod); err != nil {
		return fmt.Errorf("hide pod %s from upstream's preemption: %w", pod.Name, err)
	}
	result.on = func(node string) (*Result, error) {
		one := *result
		only := framework.NewDefaultNodeToStatus()
		only.SetAbsentNodesStatus(fwk.NewStatus(fwk.UnschedulableAndUnresolvable))
		only.Set(node, d.NodeToStatus.Get(node))
		there := d
		there.NodeToStatus = only
		return &one, u.preempt(ctx, state, pod, nodes, there, &one)
	}
	d.PostFilterMsg = status.Message() // upstream shows an error here too
	fit := framework.FitError{Pod: pod, NumAllNodes: nodes, Diagnosis: d}
	result.Message = fit.Error()
	if status.IsSuccess() && nominated != nil && nominated.NominatingInfo != nil {
		result.Nominated = nominated.NominatedNodeName
	}
	result.Victims, result.Violations = slices.SortedFunc(slices.Values(u.victims), strings.Compare), u.violated
	return nil
}

func best(nodes map[string]NodeResult) []string {
	var names []string
	top := int64(-1)
	for name, node := range nodes {
		if len(node.Reasons) > 0 || node.Total < top {
			continue
		}
		if node.Total > top {
			top, names = node.Total, nil
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
