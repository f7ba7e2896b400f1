package cluster

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/component-helpers/storage/ephemeral"
	volume "k8s.io/component-helpers/storage/volume"
	csitranslation "k8s.io/csi-translation-lib"
	csiplugins "k8s.io/csi-translation-lib/plugins"
	"k8s.io/klog/v2"
)

const (
	unboundImmediate = "pod has unbound immediate PersistentVolumeClaims"
	nodeConflict     = "node(s) didn't match PersistentVolume's node affinity"
	bindConflict     = "node(s) didn't find available persistent volumes to bind"
	notEnoughSpace   = "node(s) did not have enough free storage"
	volumeMissing    = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"
	zoneConflict     = "node(s) had no available volume zone"

	bindCompleted = "pv.kubernetes.io/bind-completed" // annotation of a claim
)

var csi = csitranslation.New()

// volumes are what a pod's volumes ask of nodes, resolved by what is known of
// claims and volumes.
type volumes struct {
	profile *Profile
	pod     *v1.Pod
	epoch   uint64 // of the storage then
	reads   []string

	// refuses the pod on all nodes, by this plugin.
	refuses, by string

	disks  bool            // volumes in the pod that exclude others on the node
	single map[string]bool // claims that one pod may use
	inUse  int             // of those

	bound   []boundVolume
	missing bool // a claim is bound to a volume that is not there
	unbound []*unboundClaim
	zones   []zoneLabel

	counted bool // for NodeVolumeLimits
}

// boundVolume is where a claim's volume may be used from.
type boundVolume struct {
	name     string
	affinity *nodeaffinity.LazyErrorNodeSelector // nil: anywhere
	plugin   string                              // in-tree, that a node may have moved to CSI
	migrated *nodeaffinity.LazyErrorNodeSelector // then
}

// unboundClaim waits for its first consumer.
type unboundClaim struct {
	*v1.PersistentVolumeClaim
	selected string // node that the provisioner was told of, or ""

	// Volumes that it may be bound to, by size: those that may be used on one
	// host by its name, the others, and one that is meant for it.
	byHost   map[string][]candidate
	anywhere []candidate
	prebound *candidate

	provisioner bool // its class has one
	topologies  []v1.TopologySelectorTerm
	pools       []labels.Selector // nodes with enough capacity; nil: not tracked
	tracked     bool
}

type candidate struct {
	*v1.PersistentVolume
	affinity *nodeaffinity.LazyErrorNodeSelector
	size     int64
}

// zoneLabel is a zone or region of a bound volume.
type zoneLabel struct {
	key    string
	values []string
}

// placedVolume says that the volume may limit which nodes a pod can go to.
func placedVolume(v *v1.Volume) bool {
	return v.PersistentVolumeClaim != nil || v.Ephemeral != nil || exclusive(v) || csi.IsInlineMigratable(v)
}

// exclusive volumes may exclude others on their node.
func exclusive(v *v1.Volume) bool {
	return v.GCEPersistentDisk != nil || v.AWSElasticBlockStore != nil || v.RBD != nil || v.ISCSI != nil
}

// appendVolumes appends what the filters on volumes read of the pod.
func appendVolumes(b []byte, pod *v1.Pod) []byte {
	some := false
	for i := range pod.Spec.Volumes {
		x := &pod.Spec.Volumes[i]
		if !placedVolume(x) {
			continue
		}
		if !some {
			some = true
			b = appendString(append(b, 'V'), pod.Namespace)
		}
		b = appendMarshalled(b, x)
		if x.Ephemeral != nil { // its claim is named after the pod, and belongs to it
			b = appendString(appendString(b, pod.Name), string(pod.UID))
		}
	}
	return b
}

// volumesOf is nil when the pod has no volumes that nodes differ in.
func volumesOf(profile *Profile, pod *v1.Pod) *volumes {
	if !slices.ContainsFunc(pod.Spec.Volumes, func(x v1.Volume) bool { return placedVolume(&x) }) {
		return nil
	}
	return &volumes{profile: profile, pod: pod}
}

// resolve brings a class's volumes up to date.
func (s *State) resolve(c *Class) {
	v := c.volumes
	if v == nil || v.epoch == s.storage.epoch+1 {
		return
	}
	if v.epoch > 0 && !slices.ContainsFunc(v.reads, func(what string) bool { return s.storage.changedAt[what] >= v.epoch }) {
		v.epoch = s.storage.epoch + 1
		return
	}
	c.volumes = s.resolved(v.profile, v.pod)
	c.built = false
	c.verdict = nil
}

// resolved works out what the pod's volumes ask for now.
func (s *State) resolved(profile *Profile, pod *v1.Pod) *volumes {
	v := &volumes{profile: profile, pod: pod, epoch: s.storage.epoch + 1, reads: []string{readsCapacity}, single: map[string]bool{}}
	refuse := func(plugin, why string) {
		if why != "" && v.refuses == "" {
			v.refuses, v.by = why, plugin
		}
	}
	if profile.filters[VolumeRestrictions] {
		refuse(VolumeRestrictions, s.resolveRestrictions(v))
	}
	v.counted = profile.filters[NodeVolumeLimits]
	if profile.filters[VolumeBinding] {
		refuse(VolumeBinding, s.resolveBinding(v))
	}
	if profile.filters[VolumeZone] {
		refuse(VolumeZone, s.resolveZones(v))
	}
	return v
}

// claimOf finds the claim of a volume; name is "" when it has none.
func (s *State) claimOf(v *volumes, x *v1.Volume) (name string, c *v1.PersistentVolumeClaim) {
	switch {
	case x.PersistentVolumeClaim != nil:
		name = x.PersistentVolumeClaim.ClaimName
	case x.Ephemeral != nil:
		name = ephemeral.VolumeClaimName(v.pod, x)
	default:
		return "", nil
	}
	key := types.NamespacedName{Namespace: v.pod.Namespace, Name: name}
	v.reads = append(v.reads, readsClaim(key))
	if known := s.storage.claims[key]; known != nil {
		c = known.now
	}
	if c != nil {
		v.reads = append(v.reads, readsClass(volume.GetPersistentVolumeClaimClass(c)), readsVolume(c.Spec.VolumeName))
	}
	return name, c
}

func notFound(kind, name string) string { return fmt.Sprintf("%s %q not found", kind, name) }

func (s *State) resolveRestrictions(v *volumes) string {
	for i := range v.pod.Spec.Volumes {
		x := &v.pod.Spec.Volumes[i]
		v.disks = v.disks || exclusive(x)
		if x.PersistentVolumeClaim == nil {
			continue
		}
		name, c := s.claimOf(v, x)
		if c == nil {
			return notFound("persistentvolumeclaim", name)
		}
		if slices.Contains(c.Spec.AccessModes, v1.ReadWriteOncePod) && !v.single[name] {
			v.single[name] = true
			if len(s.storage.claims[types.NamespacedName{Namespace: v.pod.Namespace, Name: name}].users) > 0 {
				v.inUse++
			}
		}
	}
	return ""
}

// resolveBinding sorts the claims. It returns why no node will do.
func (s *State) resolveBinding(v *volumes) string {
	var claims []*v1.PersistentVolumeClaim
	for i := range v.pod.Spec.Volumes {
		x := &v.pod.Spec.Volumes[i]
		name, c := s.claimOf(v, x)
		switch {
		case name == "":
			continue
		case c == nil && x.Ephemeral != nil:
			return fmt.Sprintf("waiting for ephemeral volume controller to create the persistentvolumeclaim %q", name)
		case c == nil:
			return notFound("persistentvolumeclaim", name)
		case c.Status.Phase == v1.ClaimLost:
			return fmt.Sprintf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", name, c.Spec.VolumeName)
		case c.DeletionTimestamp != nil:
			return fmt.Sprintf("persistentvolumeclaim %q is being deleted", name)
		}
		if x.Ephemeral != nil {
			if err := ephemeral.VolumeIsForPod(v.pod, c); err != nil {
				return err.Error()
			}
		}
		claims = append(claims, c)
	}
	immediate := false
	for _, c := range claims {
		class := s.storage.classes[volume.GetPersistentVolumeClaimClass(c)]
		switch {
		case c.Spec.VolumeName != "" && metav1.HasAnnotation(c.ObjectMeta, bindCompleted):
			s.resolveBound(v, c.Spec.VolumeName)
		case class != nil && class.VolumeBindingMode == nil:
			return fmt.Sprintf("VolumeBindingMode not set for StorageClass %q", class.Name)
		case class == nil || *class.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer || c.Spec.VolumeName != "":
			immediate = true
		default:
			v.unbound = append(v.unbound, s.resolveUnbound(v, c, class))
		}
	}
	if immediate {
		return unboundImmediate
	}
	// The smallest first, so that it does not take what a larger one needs.
	slices.SortStableFunc(v.unbound, func(a, b *unboundClaim) int { return cmp.Compare(requested(a), requested(b)) })
	return ""
}

func requested(c *unboundClaim) int64 { return c.Spec.Resources.Requests.Storage().Value() }

func (s *State) resolveBound(v *volumes, name string) {
	p := s.storage.volumes[name]
	if p == nil {
		// Claims before it are looked at first, those after it not at all.
		v.bound, v.missing = append(v.bound, boundVolume{plugin: missingVolume}), true
		return
	}
	b := boundVolume{name: p.now.Name, affinity: affinityOf(p.now)}
	if csi.IsPVMigratable(p.now) {
		if plugin, err := csi.GetInTreePluginNameFromSpec(p.now, nil); err == nil && csiMigrated(plugin) {
			if moved, err := csi.TranslateInTreePVToCSI(klog.Background(), p.now); err == nil {
				b.plugin, b.migrated = plugin, affinityOf(moved)
			}
		}
	}
	v.bound = append(v.bound, b)
}

// missingVolume stands for the plugin of a volume that is not there.
const missingVolume = "-"

func affinityOf(p *v1.PersistentVolume) *nodeaffinity.LazyErrorNodeSelector {
	if p.Spec.NodeAffinity == nil || p.Spec.NodeAffinity.Required == nil {
		return nil
	}
	return nodeaffinity.NewLazyErrorNodeSelector(p.Spec.NodeAffinity.Required)
}

// reaches says that the node's labels satisfy a volume's node affinity.
func reaches(affinity *nodeaffinity.LazyErrorNodeSelector, object *v1.Node) bool {
	if affinity == nil {
		return true
	}
	match, err := affinity.Match(&v1.Node{ObjectMeta: metav1.ObjectMeta{Labels: object.Labels}}) // by labels only, not by name
	return match && err == nil
}

// csiMigrated says that volumes of the in-tree plugin may be a CSI driver's.
func csiMigrated(plugin string) bool {
	switch plugin {
	case csiplugins.AWSEBSInTreePluginName, csiplugins.GCEPDInTreePluginName, csiplugins.AzureDiskInTreePluginName,
		csiplugins.CinderInTreePluginName, csiplugins.PortworxVolumePluginName:
		return true
	}
	return false
}

// migratedOn says that the node has moved the plugin to CSI.
func migratedOn(node *storagev1.CSINode, plugin string) bool {
	return node != nil && slices.Contains(strings.Split(node.Annotations[v1.MigratedPluginsAnnotationKey], ","), plugin)
}

func (s *State) resolveUnbound(v *volumes, c *v1.PersistentVolumeClaim, class *storagev1.StorageClass) *unboundClaim {
	name := volume.GetPersistentVolumeClaimClass(c)
	v.reads = append(v.reads, readsVolumesOf(name))
	u := &unboundClaim{PersistentVolumeClaim: c, selected: c.Annotations[volume.AnnSelectedNode], topologies: class.AllowedTopologies,
		provisioner: class.Provisioner != "" && class.Provisioner != volume.NotSupportedProvisioner}
	if u.selected == "" {
		s.resolveCandidates(u, name)
	}
	quantity, asked := c.Spec.Resources.Requests[v1.ResourceStorage]
	if driver := s.storage.drivers[class.Provisioner]; asked && driver != nil && driver.Spec.StorageCapacity != nil && *driver.Spec.StorageCapacity {
		u.tracked = true
		for _, x := range s.storage.capacities {
			limit := x.MaximumVolumeSize
			if limit == nil {
				limit = x.Capacity
			}
			if x.StorageClassName == class.Name && limit != nil && limit.Value() >= quantity.Value() && x.NodeTopology != nil {
				u.pools = append(u.pools, parse(x.NodeTopology))
			}
		}
	}
	return u
}

// resolveCandidates finds the volumes that the claim may be bound to, nodes aside.
func (s *State) resolveCandidates(u *unboundClaim, class string) {
	u.byHost = map[string][]candidate{}
	for _, name := range slices.Sorted(maps.Keys(s.storage.byClass[class])) {
		p := s.storage.byClass[class][name]
		// Without a node, and as if binding at once, all is checked but access modes and affinity.
		match, err := volume.FindMatchingVolume(u.PersistentVolumeClaim, []*v1.PersistentVolume{p}, nil, nil, false, true)
		if match == nil || err != nil {
			continue
		}
		x := candidate{p, affinityOf(p), p.Spec.Capacity.Storage().Value()}
		if volume.IsVolumeBoundToClaim(p, u.PersistentVolumeClaim) {
			if u.prebound == nil {
				u.prebound = &x
			}
		} else if !volume.CheckAccessModes(u.PersistentVolumeClaim, p) {
			continue
		} else if hosts := hostsOf(p); hosts != nil {
			for _, host := range hosts {
				u.byHost[host] = append(u.byHost[host], x)
			}
		} else {
			u.anywhere = append(u.anywhere, x)
		}
	}
	bySize := func(a, b candidate) int { return cmp.Compare(a.size, b.size) }
	slices.SortStableFunc(u.anywhere, bySize)
	for _, list := range u.byHost {
		slices.SortStableFunc(list, bySize)
	}
}

// hostsOf lists the values of the host name label that the volume's affinity
// asks for, or nil when it asks for something else. It is how local volumes are
// made: there may be thousands, a few on each host.
func hostsOf(p *v1.PersistentVolume) []string {
	if p.Spec.NodeAffinity == nil || p.Spec.NodeAffinity.Required == nil || len(p.Spec.NodeAffinity.Required.NodeSelectorTerms) != 1 {
		return nil
	}
	term := &p.Spec.NodeAffinity.Required.NodeSelectorTerms[0]
	if len(term.MatchFields) > 0 {
		return nil
	}
	for _, r := range term.MatchExpressions {
		if r.Key == v1.LabelHostname && r.Operator == v1.NodeSelectorOpIn {
			return slices.Compact(slices.Sorted(slices.Values(r.Values)))
		}
	}
	return nil
}

func (s *State) resolveZones(v *volumes) string {
	for i := range v.pod.Spec.Volumes {
		x := &v.pod.Spec.Volumes[i]
		if x.PersistentVolumeClaim == nil {
			continue
		}
		name, c := s.claimOf(v, x)
		switch {
		case name == "":
			return "PersistentVolumeClaim had no name"
		case c == nil:
			return notFound("persistentvolumeclaim", name)
		case c.Spec.VolumeName == "":
			if why := s.unboundZone(c); why != "" {
				return why
			}
			continue
		}
		p := s.storage.volumes[c.Spec.VolumeName]
		if p == nil {
			return notFound("persistentvolume", c.Spec.VolumeName)
		}
		for _, key := range zoneLabels {
			if text, ok := p.now.Labels[key]; ok {
				if values := zonesOf(text); values != nil {
					v.zones = append(v.zones, zoneLabel{key, values})
				}
			}
		}
	}
	return ""
}

func (s *State) unboundZone(c *v1.PersistentVolumeClaim) string {
	name := volume.GetPersistentVolumeClaimClass(c)
	class := s.storage.classes[name]
	switch {
	case name == "":
		return "PersistentVolumeClaim had no pv name and storageClass name"
	case class == nil:
		return notFound("storageclass.storage.k8s.io", name)
	case class.VolumeBindingMode == nil:
		return fmt.Sprintf("VolumeBindingMode not set for StorageClass %q", name)
	case *class.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer:
		return "PersistentVolume had no name"
	}
	return ""
}

var zoneLabels = []string{v1.LabelFailureDomainBetaZone, v1.LabelFailureDomainBetaRegion, v1.LabelTopologyZone, v1.LabelTopologyRegion}

// zonesOf splits the zones of a label; nil when one is empty.
func zonesOf(text string) []string {
	values := strings.Split(text, "__")
	for i := range values {
		if values[i] = strings.TrimSpace(values[i]); values[i] == "" {
			return nil
		}
	}
	return values
}

// inZone says that the node is in the zones of the pod's volumes, or in none at all.
func (v *volumes) inZone(object *v1.Node) bool {
	if len(v.zones) == 0 || !slices.ContainsFunc(zoneLabels, func(key string) bool { _, ok := object.Labels[key]; return ok }) {
		return true
	}
	for _, z := range v.zones {
		value, ok := object.Labels[z.key]
		if !ok {
			switch z.key {
			case v1.LabelFailureDomainBetaZone:
				value, ok = object.Labels[v1.LabelTopologyZone]
			case v1.LabelFailureDomainBetaRegion:
				value, ok = object.Labels[v1.LabelTopologyRegion]
			}
		}
		if !ok || !slices.Contains(z.values, value) {
			return false
		}
	}
	return true
}
