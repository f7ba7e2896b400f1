package upstream

import (
	"context"
	"errors"
	"time"

	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/scale"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/disruption"
	"k8s.io/kubernetes/pkg/controller/scheduling/podgroupprotection"
	"k8s.io/kubernetes/pkg/controller/ttlafterfinished"
	"k8s.io/kubernetes/pkg/controller/volume/persistentvolume"
	"k8s.io/kubernetes/pkg/controller/volume/vacprotection"
	"k8s.io/kubernetes/pkg/features"
)

// workloads are the controllers of what workloads use.
func (o Options) workloads() ([]func(context.Context), error) {
	core, apps, storage := o.Informers.Core().V1(), o.Informers.Apps().V1(), o.Informers.Storage().V1()
	// Asked for now: those that are made late find them started.
	for _, informer := range []cache.SharedIndexInformer{
		core.Pods().Informer(), core.Nodes().Informer(), core.ReplicationControllers().Informer(), storage.StorageClasses().Informer(),
		apps.ReplicaSets().Informer(), apps.Deployments().Informer(), apps.StatefulSets().Informer(),
	} {
		_ = informer.HasSynced()
	}
	volumes := []cache.SharedIndexInformer{core.PersistentVolumeClaims().Informer(), core.PersistentVolumes().Informer()}
	binder, err1 := o.late("volume binder", newBinder, volumes...)
	attributes, err2 := o.late("volume attributes in use", newAttributesProtection, storage.VolumeAttributesClasses().Informer())
	ttl, err3 := o.late("end of finished jobs", newTTL, o.Informers.Batch().V1().Jobs().Informer())
	run := []func(context.Context){binder, attributes, ttl}
	if utilfeature.DefaultFeatureGate.Enabled(features.GenericWorkload) {
		groups, err := o.late("pod groups in use", newGroupProtection, o.Informers.Scheduling().V1alpha2().PodGroups().Informer())
		if err != nil {
			return nil, err
		}
		run = append(run, groups)
	}
	if o.Config == nil {
		return run, errors.Join(err1, err2, err3)
	}
	budgets, err4 := o.late("disruption budgets", newBudgets, o.Informers.Policy().V1().PodDisruptionBudgets().Informer())
	return append(run, budgets), errors.Join(err1, err2, err3, err4)
}

// newBudgets makes the controller that counts which pods may be disrupted, of
// whatever has a scale, custom kinds included.
func newBudgets(ctx context.Context, o Options) (func(context.Context), error) {
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(o.Client.Discovery()))
	scales, err := scale.NewForConfig(o.Config, mapper, dynamic.LegacyAPIPathResolverFunc, scale.NewDiscoveryScaleKindResolver(o.Client.Discovery()))
	if err != nil {
		return nil, err
	}
	core, apps := o.Informers.Core().V1(), o.Informers.Apps().V1()
	pods := heldPods{core.Pods(), hold(core.Pods().Informer())}
	c := disruption.NewDisruptionController(ctx, pods, o.Informers.Policy().V1().PodDisruptionBudgets(), core.ReplicationControllers(),
		apps.ReplicaSets(), apps.Deployments(), apps.StatefulSets(), o.Client, mapper, scales, o.Client.Discovery())
	return c.Run, pods.release()
}

// newTTL makes the controller that deletes finished Jobs by their
// ttlSecondsAfterFinished.
func newTTL(ctx context.Context, o Options) (func(context.Context), error) {
	return with(ttlafterfinished.New(ctx, o.Informers.Batch().V1().Jobs(), o.Client).Run), nil
}

// newBinder makes the controller that binds claims to volumes. It has no volume
// plugins: volumes are made by hand or by provisioners of their own.
func newBinder(ctx context.Context, o Options) (func(context.Context), error) {
	core := o.Informers.Core().V1()
	c, err := persistentvolume.NewController(ctx, persistentvolume.ControllerParameters{
		KubeClient: o.Client, SyncPeriod: 5 * time.Second, // it leaves conflicts to its next round
		VolumeInformer: core.PersistentVolumes(), ClaimInformer: core.PersistentVolumeClaims(), ClassInformer: o.Informers.Storage().V1().StorageClasses(),
		PodInformer: core.Pods(), NodeInformer: core.Nodes(), EnableDynamicProvisioning: true,
	})
	if err != nil {
		return nil, err
	}
	return c.Run, nil
}

// newAttributesProtection makes the controller that lets a VolumeAttributesClass
// go when no claim uses it.
func newAttributesProtection(_ context.Context, o Options) (func(context.Context), error) {
	core := o.Informers.Core().V1()
	c, err := vacprotection.NewVACProtectionController(klog.Background(), o.Client, core.PersistentVolumeClaims(), core.PersistentVolumes(), o.Informers.Storage().V1().VolumeAttributesClasses())
	if err != nil {
		return nil, err
	}
	return with(c.Run), nil
}

// newGroupProtection makes the controller that lets a PodGroup go when no pod is of it.
func newGroupProtection(_ context.Context, o Options) (func(context.Context), error) {
	c, err := podgroupprotection.NewPodGroupProtectionController(klog.Background(), o.Informers.Scheduling().V1alpha2().PodGroups(), o.Informers.Core().V1().Pods(), o.Client)
	if err != nil {
		return nil, err
	}
	return with(c.Run), nil
}
