package informer

import (
	"fmt"
	legacy "math/rand" // which the fuzzer takes
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
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
	s := &sharer{}
	shared := 0
	for i := range 4000 {
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
		got, err := f.shared(t.Context(), s, []byte("/k"), data, 7)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("pod %d shared:\n%+v\nnot shared:\n%+v", i, got, want)
		}
		before := len(s.parts.young) + len(s.parts.old)
		if _, err := f.shared(t.Context(), s, []byte("/k"), data, 7); err != nil {
			t.Fatal(err)
		}
		if len(s.parts.young)+len(s.parts.old) == before {
			shared++
		}
		if n := len(s.parts.young) + len(s.parts.old); n > 2*remembered {
			t.Fatalf("%d parts are remembered", n)
		}
	}
	if shared < 3000 {
		t.Errorf("only %d of 4000 found all their parts again", shared)
	}
}

// What pods of a template have in common is there once.
func TestShareShares(t *testing.T) {
	f := newFeed(nil, Resource{}, &corev1.Pod{})
	s := &sharer{}
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
	var two []*corev1.Pod
	for i := range 2 {
		pod := template.DeepCopy()
		pod.Name = fmt.Sprint("web-1-", i)
		pod.Spec.Volumes[0].Name = fmt.Sprint("token-", i)
		pod.Spec.Containers[0].VolumeMounts[0].Name = pod.Spec.Volumes[0].Name
		object, err := f.shared(t.Context(), s, []byte("/k"), encoded(t, pod), 7)
		if err != nil {
			t.Fatal(err)
		}
		two = append(two, object.(*corev1.Pod))
	}
	a, b := two[0], two[1]
	if a.Spec.Volumes[0].Name == b.Spec.Volumes[0].Name || a.Name == b.Name {
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
		"reason":           unsafe.StringData(a.Status.Conditions[0].Reason) == unsafe.StringData(b.Status.Conditions[0].Reason),
	} {
		if !same {
			t.Errorf("%s: each has its own", what)
		}
	}
}
