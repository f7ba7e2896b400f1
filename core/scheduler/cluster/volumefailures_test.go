package cluster

import (
	"fmt"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestExplainVolumes: each filter on volumes says what the pod wants and what it finds.
func TestExplainVolumes(t *testing.T) {
	class, wait := "local", storagev1.VolumeBindingWaitForFirstConsumer
	object := metav1.ObjectMeta{Namespace: "default", Name: "c"}
	claim := func(volume string, mode v1.PersistentVolumeAccessMode) *v1.PersistentVolumeClaim {
		c := &v1.PersistentVolumeClaim{ObjectMeta: object, Spec: v1.PersistentVolumeClaimSpec{StorageClassName: &class, VolumeName: volume, AccessModes: []v1.PersistentVolumeAccessMode{mode},
			Resources: v1.VolumeResourceRequirements{Requests: v1.ResourceList{v1.ResourceStorage: resource.MustParse("2Gi")}}}}
		if volume != "" {
			c.Annotations = map[string]string{bindCompleted: "yes"}
		}
		return c
	}
	volume := func(change func(*v1.PersistentVolume)) *v1.PersistentVolume {
		p := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v"}, Spec: v1.PersistentVolumeSpec{ClaimRef: &v1.ObjectReference{Namespace: "default", Name: "c"}}}
		change(p)
		return p
	}
	disk := v1.Volume{Name: "d", VolumeSource: v1.VolumeSource{AWSElasticBlockStore: &v1.AWSElasticBlockStoreVolumeSource{VolumeID: "x"}}}
	useClaim := v1.Volume{Name: "d", VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}
	for _, tt := range []struct {
		name    string
		uses    v1.Volume
		storage []metav1.Object
		want    string
	}{
		{"a disk in use", disk, nil, diskConflict + ": wants its disks for itself, finds pod default/on has one of them"},
		{"a claim for one pod", useClaim, []metav1.Object{claim("v", v1.ReadWriteOncePod), volume(func(*v1.PersistentVolume) {})},
			singleInUse + ": wants claims for itself: c, finds pod default/on uses c"},
		{"a volume elsewhere", useClaim, []metav1.Object{claim("v", v1.ReadWriteMany), volume(func(p *v1.PersistentVolume) {
			p.Spec.NodeAffinity = &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{
				{MatchExpressions: []v1.NodeSelectorRequirement{{Key: "rack", Operator: v1.NodeSelectorOpIn, Values: []string{"7", "8"}}}}}}}
		})}, nodeConflict + ": wants a node in reach of volume v: rack In (7,8), finds rack=1"},
		{"another zone", useClaim, []metav1.Object{claim("v", v1.ReadWriteMany), volume(func(p *v1.PersistentVolume) { p.Labels = map[string]string{v1.LabelTopologyZone: "a__b"} })},
			zoneConflict + ": wants topology.kubernetes.io/zone in (a,b), finds topology.kubernetes.io/zone=z"},
		{"no volume to bind", useClaim, []metav1.Object{claim("", v1.ReadWriteOnce)}, bindConflict + ": wants 2Gi for claim c, finds no volume that may be used here"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := New(1)
			s.SetStorage(&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: class}, Provisioner: "kubernetes.io/no-provisioner", VolumeBindingMode: &wait})
			n := gpuNode("n", "0")
			n.Labels = map[string]string{"rack": "1", v1.LabelTopologyZone: "z"}
			s.SetNode(n)
			for _, o := range tt.storage {
				s.SetStorage(o)
			}
			on, pod := benchPod(1), benchPod(1)
			on.Namespace, on.Name, on.Spec.NodeName = "default", "on", "n"
			pod.Namespace, pod.Name = "default", "p"
			on.Spec.Volumes, pod.Spec.Volumes = []v1.Volume{tt.uses}, []v1.Volume{tt.uses}
			if tt.uses.PersistentVolumeClaim == nil || strings.HasPrefix(tt.want, singleInUse) {
				s.SetPod(on)
			}
			e, err := s.Explain(t.Context(), DefaultProfile(), pod, Policies{}, ExplainOptions{All: true})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range e.Details[0].Failures {
				got = append(got, fmt.Sprintf("%s: wants %s, finds %s", f.Reason, f.Wanted, f.Found))
			}
			if len(got) != 1 || got[0] != tt.want {
				t.Errorf("failures %q, want %q", got, tt.want)
			}
		})
	}
}
