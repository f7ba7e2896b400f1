package oracle

import (
	"fmt"
	"slices"
	"strconv"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	volume "k8s.io/component-helpers/storage/volume"
)

// Storage is what volumes of pods depend on.
type Storage struct {
	Classes     []*storagev1.StorageClass       `json:"classes,omitempty"`
	Volumes     []*v1.PersistentVolume          `json:"volumes,omitempty"`
	Claims      []*v1.PersistentVolumeClaim     `json:"claims,omitempty"`
	CSINodes    []*storagev1.CSINode            `json:"csiNodes,omitempty"`
	Drivers     []*storagev1.CSIDriver          `json:"drivers,omitempty"`
	Capacities  []*storagev1.CSIStorageCapacity `json:"capacities,omitempty"`
	Attachments []*storagev1.VolumeAttachment   `json:"attachments,omitempty"`
}

// each yields the objects.
func (s *Storage) each(yield func(metav1.Object)) {
	if s == nil {
		return
	}
	for _, x := range s.Classes {
		yield(x)
	}
	for _, x := range s.Volumes {
		yield(x)
	}
	for _, x := range s.Claims {
		yield(x)
	}
	for _, x := range s.CSINodes {
		yield(x)
	}
	for _, x := range s.Drivers {
		yield(x)
	}
	for _, x := range s.Capacities {
		yield(x)
	}
	for _, x := range s.Attachments {
		yield(x)
	}
}

// put adds the object, or puts it in the place of its older version; gone takes it away.
func (s *Storage) put(object metav1.Object, gone bool) {
	switch x := object.(type) {
	case *storagev1.StorageClass:
		s.Classes = replaced(s.Classes, x, gone)
	case *v1.PersistentVolume:
		s.Volumes = replaced(s.Volumes, x, gone)
	case *v1.PersistentVolumeClaim:
		s.Claims = replaced(s.Claims, x, gone)
	case *storagev1.CSINode:
		s.CSINodes = replaced(s.CSINodes, x, gone)
	case *storagev1.CSIDriver:
		s.Drivers = replaced(s.Drivers, x, gone)
	case *storagev1.CSIStorageCapacity:
		s.Capacities = replaced(s.Capacities, x, gone)
	case *storagev1.VolumeAttachment:
		s.Attachments = replaced(s.Attachments, x, gone)
	}
}

func replaced[T metav1.Object](list []T, x T, gone bool) []T {
	list = slices.DeleteFunc(slices.Clone(list), func(o T) bool { return o.GetName() == x.GetName() && o.GetNamespace() == x.GetNamespace() })
	if gone {
		return list
	}
	return append(list, x)
}

const (
	csiDriver = "csi.example.com"
	ebsDriver = "ebs.csi.aws.com"
	claims    = 7
)

// bind gives the claim a volume, as the controller of volumes would.
func bind(c *v1.PersistentVolumeClaim, p *v1.PersistentVolume) {
	c.Spec.VolumeName = p.Name
	metav1.SetMetaDataAnnotation(&c.ObjectMeta, "pv.kubernetes.io/bind-completed", "yes")
	c.Status.Phase = v1.ClaimBound
	p.Spec.ClaimRef = &v1.ObjectReference{Namespace: c.Namespace, Name: c.Name, UID: c.UID}
	p.Status.Phase = v1.VolumeBound
}

// made is the volume that a provisioner makes for the claim on the node.
func made(c *v1.PersistentVolumeClaim, node *v1.Node, driver string) *v1.PersistentVolume {
	p := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "made-" + c.Namespace + "-" + c.Name},
		Spec: v1.PersistentVolumeSpec{Capacity: c.Spec.Resources.Requests, AccessModes: c.Spec.AccessModes, StorageClassName: volume.GetPersistentVolumeClaimClass(c),
			PersistentVolumeSource: v1.PersistentVolumeSource{CSI: &v1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: "made-" + c.Name}}}}
	if zone, ok := node.Labels[v1.LabelTopologyZone]; ok {
		p.Spec.NodeAffinity = affinityTo(v1.LabelTopologyZone, zone)
	}
	return p
}

func affinityTo(key string, values ...string) *v1.VolumeNodeAffinity {
	return &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{
		{MatchExpressions: []v1.NodeSelectorRequirement{{Key: key, Operator: v1.NodeSelectorOpIn, Values: values}}}}}}
}

// storage makes classes, and claims and volumes of them.
func (g generator) storage(nodes []*v1.Node) *Storage {
	wait, now := storagev1.VolumeBindingWaitForFirstConsumer, storagev1.VolumeBindingImmediate
	class := func(name, provisioner string, mode *storagev1.VolumeBindingMode) *storagev1.StorageClass {
		return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: mode}
	}
	zonal := class("zonal", csiDriver, &wait)
	zonal.AllowedTopologies = []v1.TopologySelectorTerm{{MatchLabelExpressions: []v1.TopologySelectorLabelRequirement{{Key: v1.LabelTopologyZone, Values: []string{"a", "b"}}}}}
	s := &Storage{Classes: []*storagev1.StorageClass{class("wait", csiDriver, &wait), class("local", volume.NotSupportedProvisioner, &wait), zonal,
		class("now", csiDriver, &now), class("ebs", "kubernetes.io/aws-ebs", &wait)}}
	for i := range g.IntN(14) {
		s.Volumes = append(s.Volumes, g.volume(i, len(nodes)))
	}
	for i := range claims {
		for _, namespace := range []string{"default", "other"} {
			if g.chance(90) {
				s.Claims = append(s.Claims, g.claim(namespace, "claim-"+strconv.Itoa(i), s))
			}
		}
	}
	for _, n := range nodes {
		if g.chance(50) {
			s.CSINodes = append(s.CSINodes, g.csiNode(n.Name))
		}
	}
	tracked := g.chance(50)
	if g.chance(60) {
		s.Drivers = append(s.Drivers, &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: csiDriver}, Spec: storagev1.CSIDriverSpec{StorageCapacity: &tracked}})
		for i := range g.IntN(4) {
			s.Capacities = append(s.Capacities, g.capacity(i))
		}
	}
	for i := range g.IntN(4) {
		if len(s.Volumes) > 0 && len(nodes) > 0 {
			name := s.Volumes[g.IntN(len(s.Volumes))].Name
			s.Attachments = append(s.Attachments, &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: "attached-" + strconv.Itoa(i)},
				Spec: storagev1.VolumeAttachmentSpec{Attacher: pick(g, csiDriver, csiDriver, ebsDriver), NodeName: nodes[g.IntN(len(nodes))].Name,
					Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &name}}})
		}
	}
	version := 0
	s.each(func(x metav1.Object) { version++; x.SetResourceVersion(strconv.Itoa(version)) })
	return s
}

func (g generator) volume(i, nodes int) *v1.PersistentVolume {
	p := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + strconv.Itoa(i), UID: types.UID("pv-" + strconv.Itoa(i)), Labels: map[string]string{}}}
	// No two of one size: upstream takes whichever of them it sees first.
	size := resource.NewQuantity(int64(1+g.IntN(8))<<30+int64(i), resource.BinarySI)
	p.Spec = v1.PersistentVolumeSpec{Capacity: v1.ResourceList{v1.ResourceStorage: *size}, StorageClassName: pick(g, "wait", "local", "local", "zonal", "ebs", ""),
		AccessModes: [][]v1.PersistentVolumeAccessMode{{v1.ReadWriteOnce}, {v1.ReadWriteOnce, v1.ReadWriteMany}, {v1.ReadWriteOncePod}, {v1.ReadWriteOnce, v1.ReadWriteOncePod}}[g.IntN(4)]}
	p.Status.Phase = pick(g, v1.VolumeAvailable, v1.VolumeAvailable, v1.VolumeAvailable, v1.VolumeReleased)
	switch g.IntN(4) {
	case 0:
		p.Spec.PersistentVolumeSource.Local = &v1.LocalVolumeSource{Path: "/mnt"}
		p.Spec.NodeAffinity = affinityTo(v1.LabelHostname, fmt.Sprintf("n%d", g.IntN(nodes+1)))
	case 1:
		p.Spec.PersistentVolumeSource.CSI = &v1.CSIPersistentVolumeSource{Driver: pick(g, csiDriver, ebsDriver), VolumeHandle: "h" + strconv.Itoa(i)}
	case 2:
		p.Spec.PersistentVolumeSource.AWSElasticBlockStore = &v1.AWSElasticBlockStoreVolumeSource{VolumeID: "aws://a/vol-" + strconv.Itoa(i)}
	default:
		p.Spec.PersistentVolumeSource.NFS = &v1.NFSVolumeSource{Server: "nfs", Path: "/"}
	}
	if g.chance(40) && p.Spec.NodeAffinity == nil {
		p.Spec.NodeAffinity = affinityTo(pick(g, v1.LabelTopologyZone, "disk"), pick(g, "a", "b", "ssd"), "c")
	}
	if g.chance(25) {
		p.Labels[pick(g, v1.LabelTopologyZone, v1.LabelTopologyRegion, v1.LabelFailureDomainBetaZone)] = pick(g, "a", "b", "a__b", "a__")
	}
	if g.chance(20) {
		p.Labels["tier"] = "gold"
	}
	if g.chance(10) {
		p.Spec.ClaimRef = &v1.ObjectReference{Namespace: "default", Name: "claim-" + strconv.Itoa(g.IntN(claims))}
	}
	if g.chance(5) {
		block := v1.PersistentVolumeBlock
		p.Spec.VolumeMode = &block
	}
	return p
}

// claim may be bound to a volume of the storage, which then is its own.
func (g generator) claim(namespace, name string, s *Storage) *v1.PersistentVolumeClaim {
	class := pick(g, "wait", "wait", "local", "local", "zonal", "ebs", "now", "none")
	c := &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(namespace + name)},
		Spec: v1.PersistentVolumeClaimSpec{StorageClassName: &class,
			AccessModes: []v1.PersistentVolumeAccessMode{pick(g, v1.ReadWriteOnce, v1.ReadWriteOnce, v1.ReadWriteMany, v1.ReadWriteOncePod)},
			Resources:   v1.VolumeResourceRequirements{Requests: v1.ResourceList{v1.ResourceStorage: resource.MustParse(pick(g, "1Gi", "2Gi", "5Gi"))}}}}
	switch roll := g.IntN(100); {
	case roll < 35:
		free := slices.DeleteFunc(slices.Clone(s.Volumes), func(p *v1.PersistentVolume) bool { return p.Spec.ClaimRef != nil })
		if len(free) > 0 {
			bind(c, free[g.IntN(len(free))])
		}
	case roll < 38:
		c.Spec.VolumeName = "missing"
		metav1.SetMetaDataAnnotation(&c.ObjectMeta, "pv.kubernetes.io/bind-completed", "yes")
	case roll < 40:
		c.Spec.VolumeName = "pv-0" // asked for, and not bound yet
	case roll < 42:
		c.Status.Phase = v1.ClaimLost
	case roll < 44:
		c.DeletionTimestamp = &metav1.Time{}
	case roll < 50:
		c.Annotations = map[string]string{volume.AnnSelectedNode: fmt.Sprintf("n%d", g.IntN(6))}
	case roll < 55:
		c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "gold"}}
	}
	return c
}

func (g generator) csiNode(name string) *storagev1.CSINode {
	n := &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, driver := range []string{csiDriver, ebsDriver} {
		d := storagev1.CSINodeDriver{Name: driver, NodeID: name}
		if g.chance(70) {
			count := int32(g.IntN(4))
			d.Allocatable = &storagev1.VolumeNodeResources{Count: &count}
		}
		n.Spec.Drivers = append(n.Spec.Drivers, d)
	}
	if g.chance(50) {
		n.Annotations = map[string]string{v1.MigratedPluginsAnnotationKey: "kubernetes.io/aws-ebs,kubernetes.io/gce-pd"}
	}
	return n
}

func (g generator) capacity(i int) *storagev1.CSIStorageCapacity {
	size := resource.MustParse(pick(g, "1Gi", "3Gi", "10Gi"))
	c := &storagev1.CSIStorageCapacity{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "capacity-" + strconv.Itoa(i)},
		StorageClassName: pick(g, "wait", "zonal"), Capacity: &size,
		NodeTopology: &metav1.LabelSelector{MatchLabels: map[string]string{v1.LabelTopologyZone: pick(g, "a", "b", "c")}}}
	if g.chance(20) {
		largest := resource.MustParse("2Gi")
		c.MaximumVolumeSize = &largest
	}
	return c
}

// volumes gives the pod some.
func (g generator) volumes(p *v1.Pod) {
	add := func(source v1.VolumeSource) {
		p.Spec.Volumes = append(p.Spec.Volumes, v1.Volume{Name: "v" + strconv.Itoa(len(p.Spec.Volumes)), VolumeSource: source})
	}
	for range pick(g, 0, 1, 1, 2) {
		add(v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "claim-" + strconv.Itoa(g.IntN(claims))}})
	}
	if g.chance(8) {
		add(v1.VolumeSource{GCEPersistentDisk: &v1.GCEPersistentDiskVolumeSource{PDName: pick(g, "a", "b"), ReadOnly: g.chance(50)}})
	}
	if g.chance(8) {
		add(v1.VolumeSource{AWSElasticBlockStore: &v1.AWSElasticBlockStoreVolumeSource{VolumeID: pick(g, "vol-1", "vol-2")}})
	}
	if g.chance(5) {
		add(v1.VolumeSource{ISCSI: &v1.ISCSIVolumeSource{IQN: pick(g, "a", "b"), ReadOnly: g.chance(50)}})
	}
	if g.chance(5) {
		add(v1.VolumeSource{RBD: &v1.RBDVolumeSource{CephMonitors: []string{pick(g, "m1", "m2"), "m3"}, RBDPool: "p", RBDImage: pick(g, "a", "b"), ReadOnly: g.chance(50)}})
	}
}

// ephemeral gives the pod a volume of its own, and most often the claim for it.
func (g generator) ephemeral(p *v1.Pod, s *Storage) *v1.PersistentVolumeClaim {
	p.Spec.Volumes = append(p.Spec.Volumes, v1.Volume{Name: "own", VolumeSource: v1.VolumeSource{Ephemeral: &v1.EphemeralVolumeSource{}}})
	if g.chance(20) {
		return nil
	}
	c, controller := g.claim(p.Namespace, p.Name+"-own", s), true
	if g.chance(90) {
		c.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID, Controller: &controller}}
	}
	return c
}
