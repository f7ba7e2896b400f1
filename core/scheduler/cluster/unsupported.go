package cluster

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
)

// Unsupported names the first field of the pod that asks for a plugin of
// upstream's default profile that is not implemented, and that the profile has
// not disabled; "" when there is none. Such a pod must stay pending: it would
// otherwise be placed against its wishes.
func (p *Profile) Unsupported(pod *v1.Pod) string {
	spec := &pod.Spec
	if p.filters[VolumeBinding] {
		for i := range spec.Volumes {
			if source := placedVolume(&spec.Volumes[i]); source != "" {
				return fmt.Sprintf("spec.volumes[%d].%s", i, source)
			}
		}
	}
	if p.filters[dynamicResources] && len(spec.ResourceClaims) > 0 {
		return "spec.resourceClaims"
	}
	if p.filters[gangScheduling] && spec.SchedulingGroup != nil {
		return "spec.schedulingGroup"
	}
	return ""
}

// placedVolume names the source of a volume that limits which nodes a pod may
// go to, or "".
func placedVolume(v *v1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return "persistentVolumeClaim"
	case v.Ephemeral != nil:
		return "ephemeral"
	case v.GCEPersistentDisk != nil:
		return "gcePersistentDisk"
	case v.AWSElasticBlockStore != nil:
		return "awsElasticBlockStore"
	case v.AzureDisk != nil:
		return "azureDisk"
	case v.Cinder != nil:
		return "cinder"
	case v.ISCSI != nil:
		return "iscsi"
	case v.RBD != nil:
		return "rbd"
	}
	return ""
}

// UnsupportedMessage is what a pod with such a field shows.
func UnsupportedMessage(field string) string {
	return field + " is not implemented by this scheduler yet; the pod stays pending. Remove the field, or disable its plugin in a SchedulerProfile"
}
