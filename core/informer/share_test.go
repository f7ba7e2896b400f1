package informer

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	legacy "math/rand" // which the fuzzer takes
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unsafe"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/equality"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"

	"github.com/quaymaster/quaymaster/core/api"
)

func encoded(t testing.TB, object runtime.Object) []byte {
	t.Helper()
	var value strings.Builder
	if err := protobuf.NewSerializer(api.Scheme, api.Scheme).Encode(object, &value); err != nil {
		t.Fatal(err)
	}
	return []byte(value.String())
}

func randomPod(seed int64) *corev1.Pod {
	pod := &corev1.Pod{}
	fuzzer.FuzzerFor(metafuzzer.Funcs, legacy.NewSource(seed), api.Codecs).NilChance(0.2).NumElements(1, 3).Fill(pod)
	pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	return pod
}

// A pod is the same whether it shares parts with others or not, whatever came
// before it: random pods, whose parts are mixed, so that equal ones meet.
func TestShareChangesNothing(t *testing.T) {
	f := newFeed(nil, Resource{}, &corev1.Pod{})
	random := rand.New(rand.NewPCG(1, 0))
	var pods []*corev1.Pod
	for seed := range int64(20) {
		pods = append(pods, randomPod(seed))
	}
	one := func() *corev1.Pod { return pods[random.IntN(len(pods))].DeepCopy() }
	s := newSharer(rememberedWatching)
	shared := 0
	for i := range 2000 {
		pod, other := one(), one()
		switch random.IntN(6) {
		case 0:
			pod.ObjectMeta = other.ObjectMeta
		case 1:
			pod.Labels, pod.Spec.Tolerations = other.Labels, other.Spec.Tolerations
		case 2:
			pod.Spec.Containers = other.Spec.Containers
		case 3:
			pod.Spec.Volumes, pod.Spec.Affinity = other.Spec.Volumes, other.Spec.Affinity
		case 4:
			pod.Status = other.Status
		}
		pod.Name = fmt.Sprint("pod-", i)
		data := encoded(t, pod)
		want, err := f.decode(t.Context(), []byte("/k"), data, 7)
		if err != nil {
			t.Fatal(err)
		}
		want.(*corev1.Pod).ManagedFields = nil
		if i%8 == 0 { // as another encoding, which is decoded before it is shared
			if data, err = json.Marshal(pod); err != nil {
				t.Fatal(err)
			}
		}
		if i%3 == 0 && i%8 != 0 { // as the API server marks a value
			data = append(data, "\xc2\x3e\x04mark"...)
			if _, ok := s.pod(data); !ok {
				t.Fatal("a marked pod is not decoded by fields")
			}
		}
		got, err := f.shared(t.Context(), s, []byte("/k"), data, 7)
		if err != nil {
			t.Fatal(err)
		}
		if _, fast := s.pod(data); fast != (i%8 > 0) {
			t.Fatalf("pod %d: decoded by fields: %v", i, fast)
		}
		same := reflect.DeepEqual
		if i%8 == 0 {
			same = equality.Semantic.DeepEqual
		}
		if !same(got, want) {
			t.Fatalf("pod %d shared:\n%+v\nnot shared:\n%+v", i, got, want)
		}
		before := len(s.parts.young) + len(s.parts.old)
		if _, err := f.shared(t.Context(), s, []byte("/k"), data, 7); err != nil {
			t.Fatal(err)
		}
		if len(s.parts.young)+len(s.parts.old) == before {
			shared++
		}
		if n := len(s.parts.young) + len(s.parts.old); n > 2*rememberedWatching {
			t.Fatalf("%d parts are remembered", n)
		}
	}
	if shared < 1500 {
		t.Errorf("only %d of 2000 found all their parts again", shared)
	}
}

// What pods of a template have in common is there once.
func TestShareShares(t *testing.T) {
	f := newFeed(nil, Resource{}, &corev1.Pod{})
	s := newSharer(rememberedListing)
	template := randomPod(3)
	yes := true
	template.Labels = map[string]string{"app": "web", "hash": "1"}
	template.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-1", UID: "u", Controller: &yes}}
	template.Spec.NodeName = "node-1"
	template.Spec.Tolerations = []corev1.Toleration{{Key: "a", Operator: corev1.TolerationOpExists}}
	template.Spec.Volumes = []corev1.Volume{{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}}}}}}
	template.Spec.Containers = []corev1.Container{{Name: "c", Image: "registry.example/image:1", Env: []corev1.EnvVar{{Name: "A", Value: "b"}},
		VolumeMounts: []corev1.VolumeMount{{Name: "token", MountPath: "/token"}}, ReadinessProbe: &corev1.Probe{PeriodSeconds: 3}}}
	template.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, Reason: "Because"}}
	now := metav1.Unix(1_700_000_000, 0)
	template.Status.StartTime = &now
	template.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}}}
	var two []*corev1.Pod
	for i := range 2 {
		pod := template.DeepCopy()
		pod.Name = fmt.Sprint("web-1-", i)
		pod.Spec.Volumes[0].Name = fmt.Sprint("token-", i)
		pod.Spec.Containers[0].VolumeMounts[0].Name = pod.Spec.Volumes[0].Name
		pod.Status.ContainerStatuses[0].ContainerID = fmt.Sprint("sim://", i)
		object, err := f.shared(t.Context(), s, []byte("/k"), encoded(t, pod), 7)
		if err != nil {
			t.Fatal(err)
		}
		two = append(two, object.(*corev1.Pod))
	}
	a, b := two[0], two[1]
	if a.Spec.Volumes[0].Name == b.Spec.Volumes[0].Name || a.Name == b.Name || a.Status.ContainerStatuses[0].ContainerID == b.Status.ContainerStatuses[0].ContainerID {
		t.Error("what differs became one")
	}
	if unsafe.StringData(a.Spec.Volumes[0].Name) != unsafe.StringData(a.Spec.Containers[0].VolumeMounts[0].Name) {
		t.Error("a volume's name is there twice")
	}
	for what, same := range map[string]bool{
		"labels":           reflect.ValueOf(a.Labels).Pointer() == reflect.ValueOf(b.Labels).Pointer(),
		"owner references": &a.OwnerReferences[0] == &b.OwnerReferences[0],
		"tolerations":      &a.Spec.Tolerations[0] == &b.Spec.Tolerations[0],
		"projected volume": a.Spec.Volumes[0].Projected == b.Spec.Volumes[0].Projected,
		"environment":      &a.Spec.Containers[0].Env[0] == &b.Spec.Containers[0].Env[0],
		"probe":            a.Spec.Containers[0].ReadinessProbe == b.Spec.Containers[0].ReadinessProbe,
		"image":            unsafe.StringData(a.Spec.Containers[0].Image) == unsafe.StringData(b.Spec.Containers[0].Image),
		"node":             unsafe.StringData(a.Spec.NodeName) == unsafe.StringData(b.Spec.NodeName),
		"conditions":       &a.Status.Conditions[0] == &b.Status.Conditions[0],
		"start":            a.Status.StartTime == b.Status.StartTime,
		"container state":  a.Status.ContainerStatuses[0].State.Running == b.Status.ContainerStatuses[0].State.Running,
	} {
		if !same {
			t.Errorf("%s: each has its own", what)
		}
	}
}

// Pods of a template whose volumes are named alike have one specification.
func TestShareSharesSpecifications(t *testing.T) {
	f, s := newFeed(nil, Resource{}, &corev1.Pod{}), newSharer(rememberedListing)
	var two []*corev1.Pod
	for i := range 2 {
		pod := randomPod(3)
		pod.Name, pod.Spec.NodeName = fmt.Sprint("web-", i), fmt.Sprint("node-", i)
		object, err := f.shared(t.Context(), s, []byte("/k"), encoded(t, pod), 7)
		if err != nil {
			t.Fatal(err)
		}
		two = append(two, object.(*corev1.Pod))
	}
	if &two[0].Spec.Containers[0] != &two[1].Spec.Containers[0] || &two[0].Spec.Volumes[0] != &two[1].Spec.Volumes[0] {
		t.Error("each has its own containers or volumes")
	}
	if two[0].Spec.NodeName != "node-0" || two[1].Spec.NodeName != "node-1" {
		t.Error("the nodes became one")
	}
}

// FuzzPod has bytes decoded by fields and by upstream's decoder: what the first takes is what
// the second makes of it, also after another pod of which it may share parts.
func FuzzPod(f *testing.F) {
	now, yes := metav1.Unix(1_700_000_000, 0), true
	small := func(node string) *corev1.Pod { // of large ones the fuzzer makes little
		return &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
			ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "b", UID: "u", Labels: map[string]string{"c": "d"}, Annotations: map[string]string{"e": "f"}, CreationTimestamp: now,
				ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m", Time: &now}}, OwnerReferences: []metav1.OwnerReference{{Kind: "o", Controller: &yes}}},
			Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}, Tolerations: []corev1.Toleration{{Key: "t"}}},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "1", PodIPs: []corev1.PodIP{{IP: "1"}}, StartTime: &now, Conditions: []corev1.PodCondition{{Type: "r", LastTransitionTime: now}},
				ContainerStatuses: []corev1.ContainerStatus{{Name: "c", ContainerID: "x", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}}}}}
	}
	f.Add(encoded(f, small("n")), encoded(f, small("m")))
	f.Add([]byte("k8s\x00"), []byte("k8s\x00\x0a\x09\x0a\x02v1\x12\x03Pod\x12\x04\x12\x02\x52\x00"))
	feed := newFeed(nil, Resource{}, &corev1.Pod{})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		s := newSharer(rememberedListing)
		for _, data := range [][]byte{first, second} {
			got, ok := s.pod(data)
			if !ok {
				continue
			}
			object, err := feed.object(nil, data)
			if err != nil { // managed fields are not looked at: only they may be broken
				object, err = feed.object(nil, withoutManaged(t, data))
			}
			if err != nil {
				t.Fatalf("upstream: %v; by fields: %+v", err, got)
			}
			want := object.(*corev1.Pod)
			want.ManagedFields = nil
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("by fields:\n%+v\nupstream:\n%+v", got, want)
			}
		}
	})
}

// withoutManaged is a stored pod without what is left of its managed fields.
func withoutManaged(t *testing.T, data []byte) []byte {
	var s fragments
	edit := func(message []byte, number uint64, change func([]byte) []byte) (out []byte) {
		for len(message) > 0 {
			f, ok := next(&message)
			if !ok {
				t.Fatalf("decoded by fields, and broken: %q", message)
			}
			if f.number == number {
				payload := change(f.payload)
				f.whole = append(binary.AppendUvarint(binary.AppendUvarint(nil, number<<3|wireBytes), uint64(len(payload))), payload...)
			}
			out = append(out, f.whole...)
		}
		return out
	}
	return append(slices.Clone(data[:4]), edit(data[4:], 2, func(pod []byte) []byte {
		return edit(pod, 1, func(metadata []byte) []byte {
			s.sort(metadata, func(number uint64) int {
				if number == 17 {
					return dropped
				}
				return own
			})
			return s[own]
		})
	})...)
}
