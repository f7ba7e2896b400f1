package nodeaccess

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/informers"
	coreinformers "k8s.io/client-go/informers/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/auth/nodeidentifier"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/node"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
)

var changes = flag.Int("changes", 2000, "changes of random pods in the comparison with upstream's graph")

// heard is an informer that keeps its handlers, for a test to tell of changes.
type heard struct {
	cache.SharedIndexInformer
	handlers []cache.ResourceEventHandler
}

func (h *heard) AddEventHandler(handler cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	h.handlers = append(h.handlers, handler)
	return told{}, nil
}

type told struct {
	cache.ResourceEventHandlerRegistration
}

func (told) HasSynced() bool { return true }

type heardPods struct {
	coreinformers.PodInformer
	informer *heard
}

func (h heardPods) Informer() cache.SharedIndexInformer { return h.informer }

type heardVolumes struct {
	coreinformers.PersistentVolumeInformer
	informer *heard
}

func (h heardVolumes) Informer() cache.SharedIndexInformer { return h.informer }

// both are upstream's authorizer and ours over the same pods.
type both struct {
	pods, volumes  *heard
	cache          cache.Indexer
	upstream, ours authorizer.Authorizer
}

func newBoth(t *testing.T) *both {
	b := &both{pods: &heard{}, volumes: &heard{}, cache: cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})}
	factory := informers.NewSharedInformerFactory(nil, 0)
	attachments := factory.Storage().V1().VolumeAttachments()
	caller := nodeidentifier.NewDefaultNodeIdentifier()
	pods, volumes := heardPods{factory.Core().V1().Pods(), b.pods}, heardVolumes{factory.Core().V1().PersistentVolumes(), b.volumes}

	graph := node.NewGraph()
	node.AddGraphEventHandlers(graph, nil, pods, volumes, endingAttachments{attachments, t.Context().Done()}, nil, nil)
	b.upstream = node.NewAuthorizer(graph, caller, bootstrappolicy.NodeRules())

	graph = node.NewGraph()
	node.AddGraphEventHandlers(graph, nil, sharingPods{pods}, volumes, endingAttachments{attachments, t.Context().Done()}, nil, nil)
	b.ours = &Authorizer{node.NewAuthorizer(graph, caller, bootstrappolicy.NodeRules()), corelisters.NewPodLister(b.cache), caller}
	return b
}

// compare asks both, and returns the decision.
func (b *both) compare(t *testing.T, request authorizer.AttributesRecord) authorizer.Decision {
	t.Helper()
	want, wantReason, err := b.upstream.Authorize(context.Background(), request)
	if err != nil {
		t.Fatal(err)
	}
	got, reason, err := b.ours.Authorize(context.Background(), request)
	if err != nil || got != want || reason != wantReason {
		t.Fatalf("%s %s %s/%s %s of %s: %v %q %v, upstream %v %q", request.Verb, request.Resource, request.Namespace, request.Name, request.Subresource, request.User.GetName(), got, reason, err, want, wantReason)
	}
	return got
}

func nodeUser(name string) user.Info {
	return &user.DefaultInfo{Name: "system:node:" + name, Groups: []string{user.NodesGroup}}
}

// set makes a pod the newest of its name, and tells both graphs.
func (b *both) set(pod *corev1.Pod) {
	old, was, _ := b.cache.Get(pod)
	b.cache.Add(pod)
	for _, h := range b.pods.handlers {
		if was {
			h.OnUpdate(old, pod)
		} else {
			h.OnAdd(pod, false)
		}
	}
}

func (b *both) remove(pod *corev1.Pod, unseen bool) {
	b.cache.Delete(pod)
	for _, h := range b.pods.handlers {
		if unseen {
			h.OnDelete(cache.DeletedFinalStateUnknown{Key: pod.Namespace + "/" + pod.Name, Obj: pod})
		} else {
			h.OnDelete(pod)
		}
	}
}

func randomPod(r *rand.Rand, uid int) *corev1.Pod {
	pick := func(of string, n int) string { return of + strconv.Itoa(r.IntN(n)) }
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pick("ns", 2), Name: pick("pod", 12), UID: types.UID(strconv.Itoa(uid))}}
	if r.IntN(6) > 0 {
		pod.Spec.NodeName = pick("node", 3)
	}
	if r.IntN(8) == 0 {
		pod.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
	}
	if r.IntN(4) > 0 {
		pod.Spec.ServiceAccountName = pick("account", 2)
	}
	if r.IntN(3) == 0 {
		pod.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: pick("secret", 3)}, {Name: pick("secret", 3)}}
	}
	for i := range r.IntN(3) {
		v := corev1.Volume{Name: fmt.Sprint("v", i)}
		switch r.IntN(7) {
		case 0:
			v.PersistentVolumeClaim = &corev1.PersistentVolumeClaimVolumeSource{ClaimName: pick("claim", 3)}
		case 1:
			v.Ephemeral = &corev1.EphemeralVolumeSource{}
		case 2:
			v.Secret = &corev1.SecretVolumeSource{SecretName: pick("secret", 3)}
		default:
			v.ConfigMap = &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: pick("map", 3)}}
		}
		pod.Spec.Volumes = append(pod.Spec.Volumes, v)
	}
	if r.IntN(6) == 0 {
		pod.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "c", ResourceClaimTemplateName: new(string)}}
	}
	return pod
}

// changed is a later state of a pod, or another of its name.
func changed(r *rand.Rand, old *corev1.Pod, uid int) *corev1.Pod {
	pod := old.DeepCopy()
	switch r.IntN(5) {
	case 0:
		pod.Status.Phase = corev1.PodRunning
	case 1:
		if pod.Spec.NodeName == "" {
			pod.Spec.NodeName = "node" + strconv.Itoa(r.IntN(3))
		}
	case 2:
		pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
			EnvFrom: []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "secret" + strconv.Itoa(r.IntN(3))}}}},
		}})
	case 3:
		if len(pod.Spec.ResourceClaims) > 0 {
			claim := "made" + strconv.Itoa(r.IntN(2))
			pod.Status.ResourceClaimStatuses = []corev1.PodResourceClaimStatus{{Name: "c", ResourceClaimName: &claim}}
		}
	default:
		other := randomPod(r, uid)
		other.Namespace, other.Name = pod.Namespace, pod.Name
		if other.Spec.NodeName == "" { // upstream's graph keeps what the pod before it was allowed
			other.Spec.NodeName = pod.Spec.NodeName
		}
		return other
	}
	return pod
}

func TestDecidesAsUpstream(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	b := newBoth(t)
	for i := range 3 {
		volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("volume", i)}, Spec: corev1.PersistentVolumeSpec{ClaimRef: &corev1.ObjectReference{Namespace: "ns0", Name: fmt.Sprint("claim", i)}}}
		for _, h := range b.volumes.handlers {
			h.OnAdd(volume, false)
		}
	}
	decisions := map[authorizer.Decision]int{}
	for i := range *changes {
		if pods := b.cache.List(); len(pods) > 0 && r.IntN(3) > 0 {
			pod := pods[r.IntN(len(pods))].(*corev1.Pod)
			if r.IntN(3) == 0 {
				b.remove(pod, r.IntN(4) == 0)
			} else {
				b.set(changed(r, pod, i))
			}
		} else if pod := randomPod(r, i); true {
			if _, there, _ := b.cache.Get(pod); !there {
				b.set(pod)
			}
		}
		for range 30 {
			request := authorizer.AttributesRecord{
				User: nodeUser("node" + strconv.Itoa(r.IntN(4))), ResourceRequest: true, APIVersion: "v1", Namespace: "ns" + strconv.Itoa(r.IntN(2)),
				Verb: []string{"get", "get", "get", "list", "watch", "create", "update", "delete"}[r.IntN(8)],
			}
			n := r.IntN(12)
			switch r.IntN(8) {
			case 0:
				request.Resource, request.Name = "secrets", fmt.Sprint("secret", n%3)
			case 1:
				request.Resource, request.Name = "configmaps", fmt.Sprint("map", n%3)
			case 2:
				request.Resource, request.Name = "persistentvolumeclaims", []string{fmt.Sprint("claim", n%3), fmt.Sprintf("pod%d-v0", n)}[n%2]
			case 3:
				request.Resource, request.Name, request.Namespace = "persistentvolumes", fmt.Sprint("volume", n%3), ""
			case 4:
				request.Resource, request.Name, request.APIGroup = "resourceclaims", fmt.Sprint("made", n%2), "resource.k8s.io"
			case 5:
				request.Resource, request.Name, request.Verb, request.Subresource = "serviceaccounts", fmt.Sprint("account", n%2), "create", "token"
			default:
				request.Resource, request.Name, request.Subresource = "pods", fmt.Sprint("pod", n), []string{"", "", "", "status", "log"}[n%5]
			}
			decisions[b.compare(t, request)]++
		}
	}
	if decisions[authorizer.DecisionAllow] < *changes || decisions[authorizer.DecisionNoOpinion] < *changes {
		t.Errorf("the comparison is of little worth: %v", decisions)
	}
}

// TestPodsThatNeedTheSameAreOne counts what the graph is told.
func TestPodsThatNeedTheSameAreOne(t *testing.T) {
	var added, deleted int
	s := newSharing(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { added++ }, DeleteFunc: func(any) { deleted++ }})
	pods := make([]*corev1.Pod, 100)
	for i := range pods {
		pods[i] = &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("pod", i)},
			Spec:       corev1.PodSpec{NodeName: fmt.Sprint("node", i%2), ServiceAccountName: "default", ImagePullSecrets: []corev1.LocalObjectReference{{Name: "registry"}}},
		}
		s.OnAdd(pods[i], true)
	}
	if added != 2 || deleted != 0 {
		t.Errorf("100 equal pods on 2 nodes: %d added, %d deleted, want 2 and 0", added, deleted)
	}
	for i, pod := range pods {
		s.OnDelete(pod)
		if want := max(0, i-97); deleted != want {
			t.Fatalf("%d of 100 are gone: %d deleted, want %d", i+1, deleted, want)
		}
	}
}
