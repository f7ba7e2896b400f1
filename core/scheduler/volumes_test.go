package scheduler

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"
	volume "k8s.io/component-helpers/storage/volume"
)

var (
	claimResource  = schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumeclaims"}
	volumeResource = schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumes"}
	classResource  = schema.GroupVersionResource{Group: "storage.k8s.io", Version: "v1", Resource: "storageclasses"}
)

// versioned makes updates through the client give new revisions.
func (w *world) versioned() {
	w.react("update", "*", func(action clienttesting.Action) (bool, runtime.Object, error) {
		update := action.(clienttesting.UpdateAction)
		object := update.GetObject().DeepCopyObject()
		w.put(update.GetResource(), object.(metav1.Object))
		return true, object, nil
	})
}

func storageClass(name, provisioner string) *storagev1.StorageClass {
	wait := storagev1.VolumeBindingWaitForFirstConsumer
	return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: &wait}
}

func testClaim(name, class string) *v1.PersistentVolumeClaim {
	return &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)}, Spec: v1.PersistentVolumeClaimSpec{
		StorageClassName: &class, AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
		Resources: v1.VolumeResourceRequirements{Requests: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}}}}
}

func localVolume(name, node string) *v1.PersistentVolume {
	return &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1.PersistentVolumeSpec{
		StorageClassName: "local", AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
		Capacity:               v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")},
		PersistentVolumeSource: v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: "/mnt"}},
		NodeAffinity: &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{
			{MatchExpressions: []v1.NodeSelectorRequirement{{Key: v1.LabelHostname, Operator: v1.NodeSelectorOpIn, Values: []string{node}}}}}}},
	}, Status: v1.PersistentVolumeStatus{Phase: v1.VolumeAvailable}}
}

func withClaim(pod *v1.Pod, claim string) *v1.Pod {
	pod.Spec.Volumes = append(pod.Spec.Volumes, v1.Volume{Name: "v", VolumeSource: v1.VolumeSource{
		PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}})
	return pod
}

func (w *world) claim(name string) *v1.PersistentVolumeClaim {
	w.t.Helper()
	object, err := w.client.Tracker().Get(claimResource, "default", name)
	if err != nil {
		w.t.Fatal(err)
	}
	return object.(*v1.PersistentVolumeClaim).DeepCopy()
}

func (w *world) volume(name string) *v1.PersistentVolume {
	w.t.Helper()
	object, err := w.client.Tracker().Get(volumeResource, "", name)
	if err != nil {
		w.t.Fatal(err)
	}
	return object.(*v1.PersistentVolume).DeepCopy()
}

// bindClaim is what the controller of volumes does.
func (w *world) bindClaim(name, volume string) {
	c := w.claim(name)
	c.Spec.VolumeName = volume
	metav1.SetMetaDataAnnotation(&c.ObjectMeta, "pv.kubernetes.io/bind-completed", "yes")
	w.put(claimResource, c)
}

func hosts(w *world, names ...string) {
	for _, name := range names {
		w.put(nodeResource, testNode(name, "4", map[string]string{v1.LabelHostname: name}))
	}
}

// TestStaticVolumes binds two claims to the local volumes of two nodes, one each,
// and pods only once the claims are bound.
func TestStaticVolumes(t *testing.T) {
	w := newWorld(t, nil)
	w.versioned()
	hosts(w, "n1", "n2", "n3")
	w.put(classResource, storageClass("local", volume.NotSupportedProvisioner))
	w.put(volumeResource, localVolume("on-n2", "n2"))
	w.put(claimResource, testClaim("a", "local"))
	w.put(claimResource, testClaim("b", "local"))
	w.put(podResource, withClaim(testPod("a", "1"), "a"))
	eventually(t, "the volume is the claim's", func() bool { ref := w.volume("on-n2").Spec.ClaimRef; return ref != nil && ref.Name == "a" })
	w.put(podResource, withClaim(testPod("b", "1"), "b"))
	w.refused("b", "0/3 nodes are available: 3 node(s) didn't find available persistent volumes to bind. no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.")
	if node := w.pod("a").Spec.NodeName; node != "" {
		t.Fatalf("bound to %q before its claim", node)
	}
	w.bindClaim("a", "on-n2")
	w.bound("a", "n2")
	w.put(volumeResource, localVolume("on-n3", "n3"))
	eventually(t, "the second volume is the other claim's", func() bool { return w.volume("on-n3").Spec.ClaimRef != nil })
	w.bindClaim("b", "on-n3")
	w.bound("b", "n3")
}

// TestDynamicVolumes tells a provisioner the node, and decides anew when it says
// that it cannot.
func TestDynamicVolumes(t *testing.T) {
	w := newWorld(t, nil)
	w.versioned()
	hosts(w, "n1")
	w.put(podResource, withClaim(testPod("p", "1"), "c"))
	w.refused("p", `0/1 nodes are available: persistentvolumeclaim "c" not found. not found`)
	w.put(classResource, storageClass("made", "example.com/disks"))
	w.put(claimResource, testClaim("c", "made"))
	selected := func() bool { return w.claim("c").Annotations[volume.AnnSelectedNode] == "n1" }
	eventually(t, "the provisioner is told the node", selected)
	c := w.claim("c")
	delete(c.Annotations, volume.AnnSelectedNode)
	w.put(claimResource, c)
	eventually(t, "the pod says that this failed", func() bool {
		c := podCondition(w.pod("p"))
		return c != nil && c.Reason == v1.PodReasonSchedulerError && c.Message == `running PreBind plugin "VolumeBinding": binding volumes: provisioning failed for PVC "c"`
	})
	eventually(t, "the provisioner is told the node again", selected)
	w.bindClaim("c", "made")
	w.bound("p", "n1")
}

// TestNodeVanishesWhileVolumesBind: the pod whose claim was to be bound for a node
// that goes is decided anew, and its volume is given back.
func TestNodeVanishesWhileVolumesBind(t *testing.T) {
	w := newWorld(t, nil)
	w.versioned()
	hosts(w, "n1")
	w.put(classResource, storageClass("made", "example.com/disks"))
	w.put(claimResource, testClaim("c", "made"))
	w.put(podResource, withClaim(testPod("p", "1"), "c"))
	selected := func(node string) func() bool {
		return func() bool { return w.claim("c").Annotations[volume.AnnSelectedNode] == node }
	}
	eventually(t, "the provisioner is told the node", selected("n1"))
	w.remove(nodeResource, "", "n1")
	eventually(t, "the pod says that its node is gone", func() bool {
		c := podCondition(w.pod("p"))
		return c != nil && c.Reason == v1.PodReasonSchedulerError && strings.Contains(c.Message, "n1")
	})
	hosts(w, "n2")
	c := w.claim("c") // the provisioner gives up, as it does when the node is not there
	delete(c.Annotations, volume.AnnSelectedNode)
	w.put(claimResource, c)
	eventually(t, "the provisioner is told another node", selected("n2"))
	w.bindClaim("c", "made")
	w.bound("p", "n2")
}

// TestVolumesTakeTooLong gives the volume back when the profile's time is over,
// and when the pod ends first.
func TestVolumesTakeTooLong(t *testing.T) {
	w := newWorld(t, nil)
	w.versioned()
	w.apply(`{args: {volumeBinding: {bindTimeoutSeconds: 1}}}`)
	hosts(w, "n1")
	w.put(classResource, storageClass("local", volume.NotSupportedProvisioner))
	w.put(volumeResource, localVolume("v", "n1"))
	w.put(claimResource, testClaim("c", "local"))
	w.put(podResource, withClaim(testPod("p", "1"), "c"))
	eventually(t, "the pod says that it took too long", func() bool {
		c := podCondition(w.pod("p"))
		return c != nil && strings.HasSuffix(c.Message, "binding volumes: context deadline exceeded")
	})
	w.remove(podResource, "default", "p")
	w.put(claimResource, testClaim("d", "local"))
	w.put(volumeResource, localVolume("w", "n1"))
	w.put(podResource, withClaim(testPod("q", "1"), "d"))
	eventually(t, "the other volume is the other claim's", func() bool { ref := w.volume("w").Spec.ClaimRef; return ref != nil && ref.Name == "d" })
	w.remove(podResource, "default", "q")
	eventually(t, "nothing waits for volumes", func() bool {
		left := make(chan int, 1)
		w.sched.inbox.put(message{call: func() { left <- len(w.sched.binding) }})
		return <-left == 0
	})
}
