package nodeaccess

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

// sharingPods has a handler told of one pod for all that it cannot tell apart.
type sharingPods struct{ coreinformers.PodInformer }

func (p sharingPods) Informer() cache.SharedIndexInformer {
	return sharingInformer{p.PodInformer.Informer()}
}

type sharingInformer struct{ cache.SharedIndexInformer }

func (i sharingInformer) AddEventHandler(handler cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return i.SharedIndexInformer.AddEventHandler(newSharing(handler))
}

// needs are what the graph knows of a pod: where it is and which objects its node
// may read for it.
type needs struct {
	namespace, node, serviceAccount string
	secrets, configMaps             string // names, each ended by a slash, which no name has
	mirror                          bool
}

// stand is the pod that stands for all of the same needs.
type stand struct {
	pod  *corev1.Pod
	pods int
}

// sharing tells a handler of bound pods: of those with claims one by one, of the
// others of one for each needs.
type sharing struct {
	to     cache.ResourceEventHandler
	stands map[needs]*stand
	made   int
}

func newSharing(to cache.ResourceEventHandler) cache.ResourceEventHandler {
	s := &sharing{to: to, stands: map[needs]*stand{}}
	return cache.ResourceEventHandlerFuncs{AddFunc: s.add, UpdateFunc: s.update, DeleteFunc: s.remove}
}

func (s *sharing) add(object any) {
	pod := object.(*corev1.Pod)
	if pod.Spec.NodeName == "" {
		return
	}
	if claims(pod) {
		s.to.OnAdd(pod, false)
		return
	}
	n := needsOf(pod)
	of, ok := s.stands[n]
	if !ok {
		s.made++
		of = &stand{pod: n.pod(s.made)}
		s.stands[n] = of
		s.to.OnAdd(of.pod, false)
	}
	of.pods++
}

// update does nothing for most: references change only with the node, another pod
// of the name, ephemeral containers, or claims made.
func (s *sharing) update(before, object any) {
	old, pod := before.(*corev1.Pod), object.(*corev1.Pod)
	if old.Spec.NodeName == pod.Spec.NodeName && old.UID == pod.UID && len(old.Spec.EphemeralContainers) >= len(pod.Spec.EphemeralContainers) &&
		resourceclaim.PodStatusEqual(old.Status.ResourceClaimStatuses, pod.Status.ResourceClaimStatuses) &&
		resourceclaim.PodExtendedStatusEqual(old.Status.ExtendedResourceClaimStatus, pod.Status.ExtendedResourceClaimStatus) {
		return
	}
	s.remove(old)
	s.add(pod)
}

func (s *sharing) remove(object any) {
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	pod := object.(*corev1.Pod)
	if pod.Spec.NodeName == "" {
		return
	}
	if claims(pod) {
		s.to.OnDelete(pod)
		return
	}
	n := needsOf(pod)
	of, ok := s.stands[n]
	if !ok {
		return
	}
	if of.pods--; of.pods == 0 {
		delete(s.stands, n)
		s.to.OnDelete(of.pod)
	}
}

// claims tells whether a pod has volumes or devices of its own.
func claims(pod *corev1.Pod) bool {
	if len(pod.Spec.ResourceClaims) > 0 || pod.Status.ExtendedResourceClaimStatus != nil {
		return true
	}
	for i := range pod.Spec.Volumes {
		if v := &pod.Spec.Volumes[i]; v.PersistentVolumeClaim != nil || v.Ephemeral != nil {
			return true
		}
	}
	return false
}

func needsOf(pod *corev1.Pod) needs {
	n := needs{namespace: pod.Namespace, node: pod.Spec.NodeName}
	if _, n.mirror = pod.Annotations[corev1.MirrorPodAnnotationKey]; n.mirror {
		return n // a mirror pod gives its node nothing
	}
	n.serviceAccount = pod.Spec.ServiceAccountName
	n.secrets = names(podutil.VisitPodSecretNames, pod)
	n.configMaps = names(podutil.VisitPodConfigmapNames, pod)
	return n
}

// names of what a pod references, each once.
func names(visit func(*corev1.Pod, podutil.Visitor) bool, pod *corev1.Pod) string {
	var all []byte
	visit(pod, func(name string) bool {
		if entry := name + "/"; !strings.HasPrefix(string(all), entry) && !strings.Contains(string(all), "/"+entry) {
			all = append(all, entry...)
		}
		return true
	})
	return string(all)
}

// pod is one of these needs. No request can name it, nor any pod have its name.
func (n needs) pod(number int) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: n.namespace, Name: fmt.Sprintf("/%d", number)},
		Spec:       corev1.PodSpec{NodeName: n.node, ServiceAccountName: n.serviceAccount},
	}
	if n.mirror {
		pod.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: ""}
	}
	for secret := range strings.SplitSeq(n.secrets, "/") {
		pod.Spec.ImagePullSecrets = append(pod.Spec.ImagePullSecrets, corev1.LocalObjectReference{Name: secret})
	}
	for name := range strings.SplitSeq(n.configMaps, "/") {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{VolumeSource: corev1.VolumeSource{
			ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}},
		}})
	}
	return pod
}
