package scheduler

import (
	"bytes"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
)

var mark = []byte("\xc2\x3e\x04mark") // field 1000

func storedPod(t testing.TB, pod *v1.Pod) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := protobuf.NewSerializer(clientscheme.Scheme, clientscheme.Scheme).Encode(pod, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func managedPod(node string, managers ...string) *v1.Pod {
	pod := &v1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "b", Labels: map[string]string{"c": "d"}},
		Spec: v1.PodSpec{NodeName: node, Containers: []v1.Container{{Name: "c"}}}, Status: v1.PodStatus{Phase: v1.PodPending}}
	for _, manager := range managers {
		pod.ManagedFields = append(pod.ManagedFields, metav1.ManagedFieldsEntry{Manager: manager, FieldsV1: metav1.NewFieldsV1(`{"f:spec":{}}`)})
	}
	return pod
}

func TestKeepUnread(t *testing.T) {
	value := storedPod(t, managedPod("n"))
	for name, c := range map[string]struct {
		stored, want []byte
	}{
		"nothing to keep":          {storedPod(t, managedPod("")), value},
		"managed":                  {storedPod(t, managedPod("", "x", "y")), storedPod(t, managedPod("n", "x", "y"))},
		"marked":                   {append(storedPod(t, managedPod("")), mark...), append(storedPod(t, managedPod("n")), mark...)},
		"managed and marked":       {append(storedPod(t, managedPod("", "x")), mark...), append(storedPod(t, managedPod("n", "x")), mark...)},
		"JSON":                     {[]byte(`{"kind":"Pod"}`), value},
		"cut short":                {storedPod(t, managedPod("", "x"))[:40], value},
		"an object after the mark": {append(append(storedPod(t, managedPod("", "x")), mark...), 2<<3|2, 0), value},
	} {
		if got := keepUnread(c.stored, value); !bytes.Equal(got, c.want) {
			t.Errorf("%s: %q, not %q", name, got, c.want)
		}
	}
}

// Whatever is stored, upstream's decoder finds the pod that was written, and no other.
func FuzzKeepUnread(f *testing.F) {
	f.Add(append(storedPod(f, managedPod("", "x")), mark...))
	f.Add(storedPod(f, managedPod("n", "x", "y")))
	f.Add([]byte("k8s\x00"))
	written := managedPod("n")
	value := storedPod(f, written)
	f.Fuzz(func(t *testing.T, stored []byte) {
		out := keepUnread(stored, value)
		object, _, err := clientscheme.Codecs.UniversalDeserializer().Decode(out, nil, nil)
		if err != nil {
			if _, _, broken := clientscheme.Codecs.UniversalDeserializer().Decode(stored, nil, nil); broken == nil {
				t.Fatalf("what was whole is broken: %v", err)
			}
			return
		}
		got := object.(*v1.Pod)
		got.ManagedFields, got.TypeMeta = nil, written.TypeMeta
		if !equality.Semantic.DeepEqual(got, written) {
			t.Fatalf("%+v", got)
		}
	})
}
