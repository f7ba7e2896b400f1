package apiserver

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	core "k8s.io/kubernetes/pkg/apis/core"
	registrypod "k8s.io/kubernetes/pkg/registry/core/pod"
)

// counted counts what upstream is asked.
type counted struct {
	rest.RESTCreateStrategy
	asked int
}

func (c *counted) Validate(ctx context.Context, object runtime.Object) field.ErrorList {
	c.asked++
	return c.RESTCreateStrategy.Validate(ctx, object)
}

// controlled is a valid pod of a controller, with the change.
func controlled(t *testing.T, change func(*corev1.Pod)) *core.Pod {
	t.Helper()
	yes := true
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "web-1", GenerateName: "web-", Namespace: "default", UID: "1", CreationTimestamp: metav1.Now(), Labels: map[string]string{"app": "web", "tier": "front"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web", UID: "2", Controller: &yes}},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "web:1"}}, Volumes: []corev1.Volume{{Name: "data"}}},
	}
	if change != nil {
		change(pod)
	}
	legacyscheme.Scheme.Default(pod)
	internal := &core.Pod{}
	if err := legacyscheme.Scheme.Convert(pod, internal, nil); err != nil {
		t.Fatal(err)
	}
	return internal
}

// TestPodCreation has pods validated after a valid one: only those are not shown to
// upstream that differ from it in their names alone, and whatever is wrong is found.
func TestPodCreation(t *testing.T) {
	ephemeral := func(pod *corev1.Pod) {
		pod.Spec.Volumes[0].Ephemeral = &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		}}}
	}
	for _, c := range []struct {
		name          string
		first, second func(*corev1.Pod)
		asked         bool // for the second
		invalid       bool // the second
	}{
		{name: "the same"},
		{name: "another name", second: func(p *corev1.Pod) { p.Name, p.UID = "web-2", "3" }},
		{name: "made later", second: func(p *corev1.Pod) { p.CreationTimestamp = metav1.Unix(1, 0) }},
		{name: "a name that is none", second: func(p *corev1.Pod) { p.Name = "Web_2" }, asked: true, invalid: true},
		{name: "no name", second: func(p *corev1.Pod) { p.Name = "" }, asked: true, invalid: true},
		{name: "another image", second: func(p *corev1.Pod) { p.Spec.Containers[0].Image = "web:2" }, asked: true},
		{name: "no image", second: func(p *corev1.Pod) { p.Spec.Containers[0].Image = "" }, asked: true, invalid: true},
		{name: "a label that is none", second: func(p *corev1.Pod) { p.Labels["app"] = "-" }, asked: true, invalid: true},
		{name: "another controller", second: func(p *corev1.Pod) { p.OwnerReferences[0].UID = "4" }, asked: true},
		{name: "in the host's network", second: func(p *corev1.Pod) { p.Spec.HostNetwork = true }, asked: true},
		{name: "no controller", first: func(p *corev1.Pod) { p.OwnerReferences = nil }, second: func(p *corev1.Pod) { p.OwnerReferences = nil }, asked: true},
		{name: "an invalid one is not remembered", first: func(p *corev1.Pod) { p.Spec.Containers[0].Image = "" }, second: func(p *corev1.Pod) { p.Spec.Containers[0].Image = "" }, asked: true, invalid: true},
		{name: "a claim of its own", first: ephemeral, second: ephemeral, asked: true},
		{name: "the name of whose claim is none", first: ephemeral, second: func(p *corev1.Pod) { ephemeral(p); p.Name = "web..2" }, asked: true, invalid: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			upstream := &counted{RESTCreateStrategy: registrypod.Strategy}
			creation := newPodCreation(upstream)
			creation.Validate(t.Context(), controlled(t, c.first))
			upstream.asked = 0
			errs := creation.Validate(t.Context(), controlled(t, c.second))
			if (upstream.asked > 0) != c.asked || (len(errs) > 0) != c.invalid {
				t.Errorf("upstream was asked %d times: %v", upstream.asked, errs)
			}
		})
	}
}

// TestPodCreationForgets holds the bound on what is remembered.
func TestPodCreationForgets(t *testing.T) {
	creation := newPodCreation(registrypod.Strategy)
	for i := range 2*validPodsMax + 1 {
		if errs := creation.Validate(t.Context(), controlled(t, func(p *corev1.Pod) { p.GenerateName = "web-" + string(rune('a'+i%26)) + string(rune('a'+i/26)) + "-" })); len(errs) > 0 {
			t.Fatal(errs)
		}
	}
	if n := len(creation.valid); n == 0 || n > validPodsMax {
		t.Errorf("%d are remembered", n)
	}
}
