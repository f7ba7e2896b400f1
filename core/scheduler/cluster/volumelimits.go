package cluster

import (
	"regexp"
	"slices"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/storage/ephemeral"
	volume "k8s.io/component-helpers/storage/volume"
	"k8s.io/klog/v2"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
)

const (
	diskConflict   = "node(s) had no available disk"
	singleInUse    = "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod"
	tooManyVolumes = "node(s) exceed max volume count"
)

// volumesRefuse gives the first filter on volumes that refuses the node, why, and
// whether evicting pods of the node may help. The pods lifted off it do not count.
func (s *State) volumesRefuse(v *volumes, n *node) (plugin string, why []string, resolvable bool) {
	if v.refuses != "" {
		return v.by, []string{v.refuses}, false
	}
	if v.disks && slices.ContainsFunc(n.pods, func(e *podEntry) bool { return !e.lifted && sharesDisk(v.pod, e.pod) }) {
		return VolumeRestrictions, []string{diskConflict}, true
	}
	if len(v.single) > 0 && (v.disks || v.inUse > 0) && v.inUse+v.moved(n) > 0 {
		return VolumeRestrictions, []string{singleInUse}, true
	}
	if plugin := s.overLimit(v, n); plugin != "" {
		return plugin, []string{tooManyVolumes}, true
	}
	if len(v.bound)+len(v.unbound) > 0 {
		if _, _, why := s.find(v, n.object); why != nil {
			return VolumeBinding, why, false
		}
	}
	if !v.inZone(n.object) {
		return VolumeZone, []string{zoneConflict}, false
	}
	return "", nil, false
}

// moved is by how many the uses of the pod's ReadWriteOncePod claims change with
// the pods lifted off the node and those nominated to it. As upstream does, it
// goes by the claims' names only.
func (v *volumes) moved(n *node) (by int) {
	for _, e := range n.pods {
		if !e.nominee && (!e.lifted || e.unused) {
			continue
		}
		for i := range e.pod.Spec.Volumes {
			if source := e.pod.Spec.Volumes[i].PersistentVolumeClaim; source != nil && v.single[source.ClaimName] {
				if e.nominee {
					by++
				} else {
					by--
				}
			}
		}
	}
	return by
}

// sharesDisk says that the pods name one disk, and not both to read only where
// that would do.
func sharesDisk(pod, other *v1.Pod) bool {
	for i := range pod.Spec.Volumes {
		a := &pod.Spec.Volumes[i]
		if !exclusive(a) {
			continue
		}
		for j := range other.Spec.Volumes {
			b := &other.Spec.Volumes[j]
			if a.GCEPersistentDisk != nil && b.GCEPersistentDisk != nil && a.GCEPersistentDisk.PDName == b.GCEPersistentDisk.PDName &&
				!(a.GCEPersistentDisk.ReadOnly && b.GCEPersistentDisk.ReadOnly) ||
				a.AWSElasticBlockStore != nil && b.AWSElasticBlockStore != nil && a.AWSElasticBlockStore.VolumeID == b.AWSElasticBlockStore.VolumeID ||
				a.ISCSI != nil && b.ISCSI != nil && a.ISCSI.IQN == b.ISCSI.IQN && !(a.ISCSI.ReadOnly && b.ISCSI.ReadOnly) ||
				a.RBD != nil && b.RBD != nil && sharesImage(a.RBD, b.RBD) && !(a.RBD.ReadOnly && b.RBD.ReadOnly) {
				return true
			}
		}
	}
	return false
}

func sharesImage(a, b *v1.RBDVolumeSource) bool {
	return a.RBDPool == b.RBDPool && a.RBDImage == b.RBDImage &&
		slices.ContainsFunc(a.CephMonitors, func(m string) bool { return slices.Contains(b.CephMonitors, m) })
}

// overLimit names the filter whose limit of volumes the node would pass.
func (s *State) overLimit(v *volumes, n *node) string {
	for i := range inTreeLimits {
		if l := &inTreeLimits[i]; v.profile.filters[l.plugin] && s.overInTreeLimit(l, v.pod, n) {
			return l.plugin
		}
	}
	node := s.storage.csiNodes[n.name]
	if !v.counted || node == nil || !slices.ContainsFunc(node.Spec.Drivers, limited) {
		return ""
	}
	wanted := map[string]string{}
	s.attachable(v.pod, node, wanted)
	if len(wanted) == 0 {
		return ""
	}
	attached := map[string]string{}
	for _, e := range n.pods {
		if !e.lifted {
			s.attachable(e.pod, node, attached)
		}
	}
	for _, a := range s.storage.attachedTo[n.name] {
		if name := a.Spec.Source.PersistentVolumeName; name != nil && a.Spec.Attacher != "" {
			if p := s.storage.volumes[*name]; p != nil && p.now.Spec.CSI != nil {
				if handle := a.Spec.Attacher + "/" + p.now.Spec.CSI.VolumeHandle; attached[handle] == "" {
					attached["attachment\x00"+handle] = a.Spec.Attacher // not one of the pods': a wanted one still counts
				}
			}
		}
	}
	counts, more := map[string]int{}, map[string]int{}
	for _, driver := range attached {
		counts[driver]++
	}
	for handle, driver := range wanted {
		if attached[handle] == "" {
			more[driver]++
		}
	}
	for _, d := range node.Spec.Drivers {
		if limited(d) && more[d.Name] > 0 && counts[d.Name]+more[d.Name] > int(*d.Allocatable.Count) {
			return NodeVolumeLimits
		}
	}
	return ""
}

func limited(d storagev1.CSINodeDriver) bool {
	return d.Allocatable != nil && d.Allocatable.Count != nil
}

// attachable collects the driver of each CSI volume of the pod by its handle.
func (s *State) attachable(pod *v1.Pod, node *storagev1.CSINode, into map[string]string) {
	for i := range pod.Spec.Volumes {
		x := &pod.Spec.Volumes[i]
		name := ""
		switch {
		case x.PersistentVolumeClaim != nil:
			name = x.PersistentVolumeClaim.ClaimName
		case x.Ephemeral != nil:
			name = ephemeral.VolumeClaimName(pod, x)
		default:
			if driver, handle := inlineHandle(x, pod.Namespace); driver != "" {
				into[driver+"/"+handle] = driver
			}
			continue
		}
		c := s.storage.claims[types.NamespacedName{Namespace: pod.Namespace, Name: name}]
		if c == nil || c.now == nil || x.Ephemeral != nil && ephemeral.VolumeIsForPod(pod, c.now) != nil {
			continue
		}
		if driver, handle := s.handleOf(c.now); driver != "" && handle != "" {
			into[driver+"/"+handle] = driver
		}
	}
}

// inlineHandle is the driver and handle of an in-tree volume that is now a CSI
// driver's; "" when it is not.
func inlineHandle(x *v1.Volume, namespace string) (driver, handle string) {
	if !csi.IsInlineMigratable(x) {
		return "", ""
	}
	plugin, err := csi.GetInTreePluginNameFromSpec(nil, x)
	if err != nil || !csiMigrated(plugin) {
		return "", ""
	}
	p, err := csi.TranslateInTreeInlineVolumeToCSI(klog.Background(), x, namespace)
	if err != nil || p == nil || p.Spec.CSI == nil {
		return "", ""
	}
	if driver, err = csi.GetCSINameFromInTreeName(plugin); err != nil {
		return "", ""
	}
	return driver, p.Spec.CSI.VolumeHandle
}

// handleOf is the driver and handle of the claim's volume, or one that stands for
// the volume that it will have.
func (s *State) handleOf(c *v1.PersistentVolumeClaim) (driver, handle string) {
	p := s.storage.volumes[c.Spec.VolumeName]
	if c.Spec.VolumeName == "" || p == nil {
		class := s.storage.classes[volume.GetPersistentVolumeClaimClass(c)]
		if class == nil {
			return "", ""
		}
		handle, driver = "claim\x00"+c.Namespace+"/"+c.Name, class.Provisioner
		if csi.IsMigratableIntreePluginByName(driver) {
			if !csiMigrated(driver) {
				return "", ""
			}
			driver, _ = csi.GetCSINameFromInTreeName(driver)
		}
		return driver, handle
	}
	source := p.now.Spec.CSI
	if source == nil {
		if !csi.IsPVMigratable(p.now) {
			return "", ""
		}
		plugin, err := csi.GetInTreePluginNameFromSpec(p.now, nil)
		if err != nil || !csiMigrated(plugin) {
			return "", ""
		}
		moved, err := csi.TranslateInTreePVToCSI(klog.Background(), p.now)
		if err != nil || moved.Spec.CSI == nil {
			return "", ""
		}
		source = moved.Spec.CSI
	}
	return source.Driver, source.VolumeHandle
}

// inTreeLimit is a filter on the number of volumes of one in-tree plugin, as
// upstream last had it: nodes that have moved the plugin to CSI are left alone.
type inTreeLimit struct {
	plugin      string // the filter
	provisioner string
	limit       v1.ResourceName // of the node's allocatable
	most        int64           // without that
}

var inTreeLimits = [...]inTreeLimit{
	{schedulingv1alpha1.EBSLimits, "kubernetes.io/aws-ebs", "attachable-volumes-aws-ebs", 39},
	{schedulingv1alpha1.GCEPDLimits, "kubernetes.io/gce-pd", "attachable-volumes-gce-pd", 16},
	{schedulingv1alpha1.AzureDiskLimits, "kubernetes.io/azure-disk", "attachable-volumes-azure-disk", 16},
	{schedulingv1alpha1.CinderLimits, "kubernetes.io/cinder", "attachable-volumes-cinder", 256},
}

// nitro are the instance types of AWS with fewer slots, nitroVolumes as many.
var nitro = regexp.MustCompile("^[cmr]5.*|t3|z1d")

const nitroVolumes = 25

func (l *inTreeLimit) of(object *v1.Node) int64 {
	if quantity, ok := object.Status.Allocatable[l.limit]; ok {
		return quantity.Value()
	}
	if l.plugin == schedulingv1alpha1.EBSLimits && nitro.MatchString(object.Labels[v1.LabelInstanceTypeStable]) {
		return nitroVolumes
	}
	return l.most
}

func (s *State) overInTreeLimit(l *inTreeLimit, pod *v1.Pod, n *node) bool {
	wanted, there := map[string]bool{}, map[string]bool{}
	if s.inTree(l, pod, wanted); len(wanted) == 0 || migratedOn(s.storage.csiNodes[n.name], l.provisioner) {
		return false
	}
	for _, e := range n.pods {
		if !e.lifted {
			s.inTree(l, e.pod, there)
		}
	}
	for id := range wanted {
		there[id] = true
	}
	return int64(len(there)) > l.of(n.object)
}

// inTree collects the plugin's volumes of the pod.
func (s *State) inTree(l *inTreeLimit, pod *v1.Pod, into map[string]bool) {
	for i := range pod.Spec.Volumes {
		x := &pod.Spec.Volumes[i]
		if id := l.inline(&x.VolumeSource); id != "" {
			into[id] = true
			continue
		}
		if x.PersistentVolumeClaim == nil {
			continue
		}
		key := types.NamespacedName{Namespace: pod.Namespace, Name: x.PersistentVolumeClaim.ClaimName}
		c := s.storage.claims[key]
		if c == nil || c.now == nil {
			continue
		}
		if p := s.storage.volumes[c.now.Spec.VolumeName]; p != nil {
			if id := l.persistent(&p.now.Spec.PersistentVolumeSource); id != "" {
				into[id] = true
			}
		} else if class := s.storage.classes[volume.GetPersistentVolumeClaimClass(c.now)]; class != nil && class.Provisioner == l.provisioner {
			into["claim\x00"+key.String()] = true // stands for the volume that it will have
		}
	}
}

func (l *inTreeLimit) inline(x *v1.VolumeSource) string {
	switch {
	case l.plugin == schedulingv1alpha1.EBSLimits && x.AWSElasticBlockStore != nil:
		return x.AWSElasticBlockStore.VolumeID
	case l.plugin == schedulingv1alpha1.GCEPDLimits && x.GCEPersistentDisk != nil:
		return x.GCEPersistentDisk.PDName
	case l.plugin == schedulingv1alpha1.AzureDiskLimits && x.AzureDisk != nil:
		return x.AzureDisk.DiskName
	case l.plugin == schedulingv1alpha1.CinderLimits && x.Cinder != nil:
		return x.Cinder.VolumeID
	}
	return ""
}

func (l *inTreeLimit) persistent(x *v1.PersistentVolumeSource) string {
	switch {
	case l.plugin == schedulingv1alpha1.EBSLimits && x.AWSElasticBlockStore != nil:
		return x.AWSElasticBlockStore.VolumeID
	case l.plugin == schedulingv1alpha1.GCEPDLimits && x.GCEPersistentDisk != nil:
		return x.GCEPersistentDisk.PDName
	case l.plugin == schedulingv1alpha1.AzureDiskLimits && x.AzureDisk != nil:
		return x.AzureDisk.DiskName
	case l.plugin == schedulingv1alpha1.CinderLimits && x.Cinder != nil:
		return x.Cinder.VolumeID
	}
	return ""
}
