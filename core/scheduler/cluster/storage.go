package cluster

import (
	"slices"
	"strconv"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	volume "k8s.io/component-helpers/storage/volume"
)

// storage is what the filters on volumes read beside nodes and pods.
type storage struct {
	claims      map[types.NamespacedName]*claim
	volumes     map[string]*persistentVolume
	byClass     map[string]map[string]*v1.PersistentVolume // by storage class and name, as assumed
	claimsOf    map[string]map[types.NamespacedName]bool   // by spec.volumeName
	classes     map[string]*storagev1.StorageClass
	csiNodes    map[string]*storagev1.CSINode
	drivers     map[string]*storagev1.CSIDriver
	capacities  map[types.NamespacedName]*storagev1.CSIStorageCapacity
	attachments map[string]*storagev1.VolumeAttachment
	attachedTo  map[string]map[string]*storagev1.VolumeAttachment // by node and name

	// epoch rises with each change, changedAt tells what changed when. Classes
	// remember what they read.
	epoch     uint64
	changedAt map[string]uint64
	freed     []string // since TakeFreedStorage
}

// claim as it is to be decided by, and as the API has it where that differs.
type claim struct {
	now, stored *v1.PersistentVolumeClaim
	users       map[*podEntry]struct{} // on nodes that are there
}

type persistentVolume struct{ now, stored *v1.PersistentVolume }

func newStorage() storage {
	return storage{
		claims: map[types.NamespacedName]*claim{}, volumes: map[string]*persistentVolume{}, byClass: map[string]map[string]*v1.PersistentVolume{},
		claimsOf: map[string]map[types.NamespacedName]bool{}, classes: map[string]*storagev1.StorageClass{}, csiNodes: map[string]*storagev1.CSINode{},
		drivers: map[string]*storagev1.CSIDriver{}, capacities: map[types.NamespacedName]*storagev1.CSIStorageCapacity{},
		attachments: map[string]*storagev1.VolumeAttachment{}, attachedTo: map[string]map[string]*storagev1.VolumeAttachment{},
		changedAt: map[string]uint64{},
	}
}

// objects are all that SetStorage was told, and what was assumed of it.
func (st *storage) objects() (list []metav1.Object) {
	for _, x := range st.classes {
		list = append(list, x)
	}
	for _, x := range st.csiNodes {
		list = append(list, x)
	}
	for _, x := range st.drivers {
		list = append(list, x)
	}
	for _, x := range st.capacities {
		list = append(list, x)
	}
	for _, x := range st.attachments {
		list = append(list, x)
	}
	for _, x := range st.volumes {
		if x.now != nil {
			list = append(list, x.now)
		}
	}
	for _, x := range st.claims { // one that is not known may have users
		if x.now != nil {
			list = append(list, x.now)
		}
	}
	return list
}

// What classes read, for changedAt.
func readsClaim(key types.NamespacedName) string { return "claim " + key.String() }
func readsVolume(name string) string             { return "volume " + name }
func readsVolumesOf(class string) string         { return "volumes of " + class }
func readsClass(name string) string              { return "class " + name }

const readsCapacity = "capacity"

func (s *State) storageChanged(what string) {
	s.storage.epoch++
	s.storage.changedAt[what] = s.storage.epoch
	s.storage.freed = append(s.storage.freed, what)
}

// SetStorage makes a claim, volume, storage class, CSI node, driver, capacity or
// volume attachment known, or its new version. An older one than is known is
// ignored, so that what was assumed stays.
func (s *State) SetStorage(object metav1.Object) {
	st := &s.storage
	switch o := object.(type) {
	case *v1.PersistentVolumeClaim:
		key := types.NamespacedName{Namespace: o.Namespace, Name: o.Name}
		if c := st.claims[key]; c == nil || c.stored == nil || newer(o, c.stored) {
			s.putClaim(key, o, o)
		}
	case *v1.PersistentVolume:
		if p := st.volumes[o.Name]; p == nil || newer(o, p.stored) {
			s.putVolume(o, o)
		}
	case *storagev1.StorageClass:
		_, known := st.classes[o.Name]
		st.classes[o.Name] = o
		if s.storageChanged(readsClass(o.Name)); !known {
			s.touchLimited()
		}
	case *storagev1.CSINode:
		st.csiNodes[o.Name] = o
		s.touchNode(o.Name)
	case *storagev1.CSIDriver:
		st.drivers[o.Name] = o
		s.storageChanged(readsCapacity)
	case *storagev1.CSIStorageCapacity:
		st.capacities[types.NamespacedName{Namespace: o.Namespace, Name: o.Name}] = o
		s.storageChanged(readsCapacity)
	case *storagev1.VolumeAttachment:
		s.detach(o.Name)
		st.attachments[o.Name] = o
		if st.attachedTo[o.Spec.NodeName] == nil {
			st.attachedTo[o.Spec.NodeName] = map[string]*storagev1.VolumeAttachment{}
		}
		st.attachedTo[o.Spec.NodeName][o.Name] = o
		s.touchNode(o.Spec.NodeName)
	}
}

// RemoveStorage forgets what SetStorage made known.
func (s *State) RemoveStorage(object metav1.Object) {
	st := &s.storage
	switch o := object.(type) {
	case *v1.PersistentVolumeClaim:
		key := types.NamespacedName{Namespace: o.Namespace, Name: o.Name}
		if c := st.claims[key]; c != nil && c.stored != nil {
			s.putClaim(key, nil, nil)
		}
	case *v1.PersistentVolume:
		if st.volumes[o.Name] != nil {
			s.putVolume(&v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: o.Name}}, nil)
		}
	case *storagev1.StorageClass:
		delete(st.classes, o.Name)
		s.storageChanged(readsClass(o.Name))
		s.touchLimited()
	case *storagev1.CSINode:
		delete(st.csiNodes, o.Name)
		s.touchNode(o.Name)
	case *storagev1.CSIDriver:
		delete(st.drivers, o.Name)
		s.storageChanged(readsCapacity)
	case *storagev1.CSIStorageCapacity:
		delete(st.capacities, types.NamespacedName{Namespace: o.Namespace, Name: o.Name})
		s.storageChanged(readsCapacity)
	case *storagev1.VolumeAttachment:
		s.detach(o.Name)
	}
}

// newer says that a version of an object is not older than the other; versions
// that are no numbers are taken as they come.
func newer(a, b metav1.Object) bool {
	if a.GetUID() != b.GetUID() {
		return true
	}
	x, err := strconv.ParseUint(a.GetResourceVersion(), 10, 64)
	y, err2 := strconv.ParseUint(b.GetResourceVersion(), 10, 64)
	return err != nil || err2 != nil || x > y
}

func (s *State) detach(name string) {
	if old := s.storage.attachments[name]; old != nil {
		delete(s.storage.attachments, name)
		delete(s.storage.attachedTo[old.Spec.NodeName], name)
		s.touchNode(old.Spec.NodeName)
	}
}

// putClaim puts the claim in place; nil takes it away.
func (s *State) putClaim(key types.NamespacedName, now, stored *v1.PersistentVolumeClaim) {
	st := &s.storage
	c := st.claims[key]
	if c == nil {
		c = &claim{users: map[*podEntry]struct{}{}}
		st.claims[key] = c
	}
	if c.now != nil && c.now.Spec.VolumeName != "" {
		delete(st.claimsOf[c.now.Spec.VolumeName], key)
	}
	c.now, c.stored = now, stored
	if now != nil && now.Spec.VolumeName != "" {
		of := st.claimsOf[now.Spec.VolumeName]
		if of == nil {
			of = map[types.NamespacedName]bool{}
			st.claimsOf[now.Spec.VolumeName] = of
		}
		of[key] = true
	}
	s.storageChanged(readsClaim(key))
	s.touchUsers(c)
	if now == nil && len(c.users) == 0 {
		delete(st.claims, key)
	}
}

// putVolume puts the volume in place; without a stored form it takes it away.
func (s *State) putVolume(now, stored *v1.PersistentVolume) {
	st, name := &s.storage, now.Name
	if old := st.volumes[name]; old != nil {
		class := volume.GetPersistentVolumeClass(old.now)
		delete(st.byClass[class], name)
		s.storageChanged(readsVolumesOf(class))
	}
	delete(st.volumes, name)
	if stored != nil {
		st.volumes[name] = &persistentVolume{now, stored}
		class := volume.GetPersistentVolumeClass(now)
		if st.byClass[class] == nil {
			st.byClass[class] = map[string]*v1.PersistentVolume{}
		}
		st.byClass[class][name] = now
		s.storageChanged(readsVolumesOf(class))
	}
	s.storageChanged(readsVolume(name))
	for key := range st.claimsOf[name] {
		if c := st.claims[key]; c != nil {
			s.touchUsers(c)
		}
	}
	for node, attached := range st.attachedTo {
		for _, a := range attached {
			if a.Spec.Source.PersistentVolumeName != nil && *a.Spec.Source.PersistentVolumeName == name {
				s.touchNode(node)
			}
		}
	}
}

// touchNode looks at a node's volume limits anew.
func (s *State) touchNode(name string) {
	if n := s.nodes[name]; n != nil && n.row >= 0 {
		s.changed(n.row)
		s.rowFreed(n.row)
	}
}

// touchUsers does so for the nodes of the claim's users: the count of their
// volumes may be another.
func (s *State) touchUsers(c *claim) {
	for e := range c.users {
		s.changed(e.node.row)
		s.rowFreed(e.node.row)
	}
}

// touchLimited does so for all nodes with limits.
func (s *State) touchLimited() {
	for name := range s.storage.csiNodes {
		s.touchNode(name)
	}
}

// use counts a pod among the users of its claims, or takes it off.
func (s *State) use(e *podEntry, by int64) {
	for _, key := range e.claims {
		c := s.storage.claims[key]
		if c == nil {
			c = &claim{users: map[*podEntry]struct{}{}}
			s.storage.claims[key] = c
		}
		before := len(c.users)
		if by > 0 {
			c.users[e] = struct{}{}
		} else {
			delete(c.users, e)
		}
		// Only for such a claim does it matter on other nodes whether it is in use.
		if (before == 0) != (len(c.users) == 0) && c.now != nil && slices.Contains(c.now.Spec.AccessModes, v1.ReadWriteOncePod) {
			s.storageChanged(readsClaim(key))
		}
		if len(c.users) == 0 && c.now == nil {
			delete(s.storage.claims, key)
		}
	}
}

// claimsOf lists the claims that the pod names.
func claimsOf(pod *v1.Pod) (keys []types.NamespacedName) {
	for i := range pod.Spec.Volumes {
		if source := pod.Spec.Volumes[i].PersistentVolumeClaim; source != nil {
			keys = append(keys, types.NamespacedName{Namespace: pod.Namespace, Name: source.ClaimName})
		}
	}
	return keys
}

// TakeFreedStorage says whether claims, volumes or what else volumes depend on
// has changed since the last call, and what: see [State.ReadsStorage].
func (s *State) TakeFreedStorage() []string {
	freed := s.storage.freed
	s.storage.freed = nil
	return freed
}

// ReadsStorage says that the class's volumes depend on any of what changed.
func (s *State) ReadsStorage(c *Class, changed []string) bool {
	if c.volumes == nil {
		return false
	}
	s.resolve(c)
	return slices.ContainsFunc(changed, func(what string) bool { return slices.Contains(c.volumes.reads, what) })
}

// Claim returns the claim as the API has it, or nil; Volume the same.
func (s *State) Claim(key types.NamespacedName) *v1.PersistentVolumeClaim {
	if c := s.storage.claims[key]; c != nil {
		return c.stored
	}
	return nil
}

// Volume returns the volume of that name as the API has it, or nil.
func (s *State) Volume(name string) *v1.PersistentVolume {
	if p := s.storage.volumes[name]; p != nil {
		return p.stored
	}
	return nil
}
