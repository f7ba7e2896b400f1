package shape_test

import (
	"bytes"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/quaymaster/quaymaster/core/apiserver/shape"
)

func pod(change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Labels: map[string]string{"a": "b"}},
		Spec:       corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c", Env: []corev1.EnvVar{{Name: "e", Value: "v"}}, SecurityContext: &corev1.SecurityContext{}}}},
	}
	change(p)
	return p
}

// TestShape says which changes of an object are changes of its shape.
func TestShape(t *testing.T) {
	of := func(object any) []byte {
		t.Helper()
		s, ok := shape.Append(nil, object)
		if !ok {
			t.Fatalf("%+v has no shape", object)
		}
		return s
	}
	given := of(pod(func(*corev1.Pod) {}))
	for _, test := range []struct {
		name   string
		change func(*corev1.Pod)
		same   bool
	}{
		{"another name", func(p *corev1.Pod) { p.Name = "q" }, true},
		{"another label's value", func(p *corev1.Pod) { p.Labels["a"] = "c" }, true},
		{"another node", func(p *corev1.Pod) { p.Spec.NodeName = "m" }, true},
		{"no node", func(p *corev1.Pod) { p.Spec.NodeName = "" }, false},
		{"another label", func(p *corev1.Pod) { p.Labels["c"] = "d" }, false},
		{"no labels", func(p *corev1.Pod) { p.Labels = nil }, false},
		{"empty labels", func(p *corev1.Pod) { p.Labels = map[string]string{} }, false},
		{"another key of a list", func(p *corev1.Pod) { p.Spec.Containers[0].Name = "d" }, false},
		{"another key of a list below", func(p *corev1.Pod) { p.Spec.Containers[0].Env[0].Name = "f" }, false},
		{"another element of a set", func(p *corev1.Pod) { p.Finalizers = []string{"a/b"} }, false},
		{"a pointer", func(p *corev1.Pod) { p.Spec.Containers[0].SecurityContext = nil }, false},
		{"a value behind a pointer", func(p *corev1.Pod) { p.Spec.Containers[0].SecurityContext.RunAsUser = new(int64) }, false},
		{"a time", func(p *corev1.Pod) { now := metav1.Now(); p.Status.StartTime = &now }, false},
	} {
		if same := bytes.Equal(given, of(pod(test.change))); same != test.same {
			t.Errorf("%s: same shape %t, want %t", test.name, same, test.same)
		}
	}
	empty, filled, none := &corev1.Secret{Data: map[string][]byte{"a": {}}}, &corev1.Secret{Data: map[string][]byte{"a": {1}}}, &corev1.Secret{Data: map[string][]byte{"a": nil}}
	if bytes.Equal(of(empty), of(filled)) || bytes.Equal(of(empty), of(none)) {
		t.Error("no bytes are some bytes")
	}
	for _, without := range []any{metav1.WatchEvent{}, (*corev1.Pod)(nil), &metav1.WatchEvent{Object: runtime.RawExtension{Raw: []byte("{}")}}} {
		if _, ok := shape.Append(nil, without); ok {
			t.Errorf("%#v has a shape", without)
		}
	}
}
