package cluster

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	volume "k8s.io/component-helpers/storage/volume"
)

// Bindings are what must be written before a pod may be bound, so that its claims
// get the volumes that were chosen with its node.
type Bindings struct {
	// Volumes with their claims in spec.claimRef, and Claims with their node in the
	// annotation volume.kubernetes.io/selected-node: what is to be written, and
	// after it what was.
	Volumes []*v1.PersistentVolume
	Claims  []*v1.PersistentVolumeClaim

	node  string
	waits []types.NamespacedName // all claims that were not bound
}

// AssumeVolumes decides for a pod of the class with which volumes it goes to the
// node, so that later decisions count them as taken. It is nil when all its
// claims are bound.
func (s *State) AssumeVolumes(c *Class, node string) (*Bindings, error) {
	v, n := c.volumes, s.nodes[node]
	if v == nil || len(v.unbound) == 0 || n == nil || n.row < 0 {
		return nil, nil
	}
	static, dynamic, why := s.find(v, n.object)
	if why != nil {
		return nil, fmt.Errorf("the volumes of node %q: %s", node, why[0])
	}
	b := &Bindings{node: node}
	for _, u := range v.unbound {
		b.waits = append(b.waits, types.NamespacedName{Namespace: u.Namespace, Name: u.Name})
		if p := static[u]; p != nil {
			bound, _, err := volume.GetBindVolumeToClaim(p, u.PersistentVolumeClaim)
			if err != nil {
				return nil, fmt.Errorf("bind volume %q to claim %s/%s: %w", p.Name, u.Namespace, u.Name, err)
			}
			b.Volumes = append(b.Volumes, bound)
		}
	}
	for _, u := range dynamic {
		selected := u.PersistentVolumeClaim.DeepCopy()
		metav1.SetMetaDataAnnotation(&selected.ObjectMeta, volume.AnnSelectedNode, node)
		b.Claims = append(b.Claims, selected)
	}
	for _, p := range b.Volumes {
		s.putVolume(p, s.storage.volumes[p.Name].stored)
	}
	for _, x := range b.Claims {
		key := types.NamespacedName{Namespace: x.Namespace, Name: x.Name}
		s.putClaim(key, x, s.storage.claims[key].stored)
	}
	return b, nil
}

// RevertVolumes undoes AssumeVolumes, where nothing newer has come meanwhile.
func (s *State) RevertVolumes(b *Bindings) {
	for _, p := range b.Volumes {
		if known := s.storage.volumes[p.Name]; known != nil && known.now != known.stored {
			s.putVolume(known.stored, known.stored)
		}
	}
	for _, x := range b.Claims {
		key := types.NamespacedName{Namespace: x.Namespace, Name: x.Name}
		if known := s.storage.claims[key]; known != nil && known.stored != nil && known.now != known.stored {
			s.putClaim(key, known.stored, known.stored)
		}
	}
}

// Waits says that the pod's claims are not all bound yet. The error says why they
// will not be, and that the pod must be decided anew. Volumes and Claims must
// have been replaced by what the API made of them.
func (s *State) Waits(b *Bindings) (bool, error) {
	n := s.nodes[b.node]
	if n == nil || n.row < 0 {
		return false, fmt.Errorf("failed to get node %q: %s", b.node, notFound("node", b.node))
	}
	for _, p := range b.Volumes {
		now := s.Volume(p.Name)
		switch {
		case now == nil:
			return false, fmt.Errorf("failed to check binding: %s", notFound("persistentvolume", p.Name))
		case newer(p, now):
			return true, nil // what was written has not come back yet
		case !reaches(affinityOf(now), n.object):
			return false, fmt.Errorf("pv %q node affinity doesn't match node %q: no matching NodeSelectorTerms", p.Name, b.node)
		case now.Spec.ClaimRef == nil || now.Spec.ClaimRef.UID == "":
			return false, fmt.Errorf("ClaimRef got reset for pv %q", p.Name)
		}
	}
	for _, x := range b.Claims {
		now := s.Claim(types.NamespacedName{Namespace: x.Namespace, Name: x.Name})
		switch {
		case now == nil:
			return false, fmt.Errorf("failed to check provisioning pvc: %s", notFound("persistentvolumeclaim", x.Name))
		case newer(x, now):
			return true, nil
		case now.Annotations[volume.AnnSelectedNode] != b.node: // how a provisioner says that it cannot
			return false, fmt.Errorf("provisioning failed for PVC %q", x.Name)
		}
		if now.Spec.VolumeName == "" {
			continue
		}
		if p := s.Volume(now.Spec.VolumeName); p != nil && !reaches(affinityOf(p), n.object) {
			return false, fmt.Errorf("pv %q node affinity doesn't match node %q: no matching NodeSelectorTerms", p.Name, b.node)
		}
	}
	for _, key := range b.waits {
		now := s.Claim(key)
		if now == nil {
			return false, fmt.Errorf("failed to check binding: %s", notFound("persistentvolumeclaim", key.Name))
		}
		if now.Spec.VolumeName == "" || !metav1.HasAnnotation(now.ObjectMeta, bindCompleted) {
			return true, nil
		}
	}
	return false, nil
}
