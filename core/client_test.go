package core_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
)

// What the engine's client creates past requests is what a request would have
// created, and is refused in the same words.
func TestClientCreatesAsRequestsDo(t *testing.T) {
	e := start(t, core.Options{})
	requests, err := kubernetes.NewForConfig(e.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	pod := func(change func(*corev1.Pod)) *corev1.Pod {
		p := asking("NAME", "", "100m")
		p.Labels = map[string]string{"app": "web"}
		p.Spec.NodeSelector = map[string]string{"nowhere": "yes"} // nobody writes it after the create
		p.Spec.SchedulerName = "nobody"
		if change != nil {
			change(p)
		}
		return p
	}
	coretest.Eventually(t, "the service account", func(ctx context.Context) (bool, error) {
		_, err := e.Client().CoreV1().Pods("default").Create(ctx, pod(func(p *corev1.Pod) { p.Name = "first" }), metav1.CreateOptions{})
		return err == nil || apierrors.IsAlreadyExists(err), nil
	})
	kept, err := requests.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	owner := metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: "c", UID: kept.UID} // which is there: the pods are no garbage
	for _, tt := range []struct {
		name      string
		namespace string
		change    func(*corev1.Pod)
		options   metav1.CreateOptions
		fails     string
	}{
		{name: "ordinary"},
		{name: "generated name", change: func(p *corev1.Pod) { p.Name, p.GenerateName = "", "NAME-" }},
		{name: "field manager", options: metav1.CreateOptions{FieldManager: "tests"}},
		{name: "strict", options: metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}},
		{name: "dry run", options: metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}},
		{name: "system fields", change: func(p *corev1.Pod) { p.UID, p.Generation, p.SelfLink = "given", 7, "/x" }},
		{name: "owners twice", change: func(p *corev1.Pod) { p.OwnerReferences = []metav1.OwnerReference{owner, owner} }},
		{name: "resource version", change: func(p *corev1.Pod) { p.ResourceVersion = "5" }, fails: "resourceVersion should not be set"},
		{name: "invalid", change: func(p *corev1.Pod) { p.Spec.Containers[0].Image = "" }, fails: "spec.containers[0].image: Required value"},
		{name: "no name", change: func(p *corev1.Pod) { p.Name = "" }, fails: "name or generateName is required"},
		{name: "another namespace", change: func(p *corev1.Pod) { p.Namespace = "other" }, fails: "does not match the namespace"},
		{name: "no such namespace", namespace: "other", fails: `namespaces "other" not found`},
		{name: "no such class", change: func(p *corev1.Pod) { p.Spec.PriorityClassName = "none" }, fails: "no PriorityClass with name none"},
		{name: "options", options: metav1.CreateOptions{FieldManager: strings.Repeat("x", 200)}, fails: "fieldManager"},
		{name: "taken", change: func(p *corev1.Pod) { p.Name = "first" }, fails: `pods "first" already exists`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			namespace := "default"
			if tt.namespace != "" {
				namespace = tt.namespace
			}
			create := func(client kubernetes.Interface, name string) (string, error) {
				given := pod(tt.change)
				given.Name, given.GenerateName = strings.Replace(given.Name, "NAME", name, 1), strings.Replace(given.GenerateName, "NAME", name, 1)
				before := given.DeepCopy()
				created, err := client.CoreV1().Pods(namespace).Create(t.Context(), given, tt.options)
				if now := given; now.String() != before.String() {
					t.Errorf("the given pod was changed: %v", now)
				}
				if err != nil {
					return "", err
				}
				stored := created
				if len(tt.options.DryRun) == 0 {
					if stored, err = client.CoreV1().Pods(namespace).Get(t.Context(), created.Name, metav1.GetOptions{}); err != nil {
						return "", err
					}
					if err := client.CoreV1().Pods(namespace).Delete(t.Context(), created.Name, metav1.DeleteOptions{}); err != nil {
						return "", err
					}
				}
				return plain(t, created, name) + "\n" + plain(t, stored, name), nil
			}
			direct, err1 := create(e.Client(), "direct")
			requested, err2 := create(requests, "requested")
			if tt.fails != "" {
				if err1 == nil || err2 == nil || strings.ReplaceAll(err1.Error(), "direct", "") != strings.ReplaceAll(err2.Error(), "requested", "") ||
					!strings.Contains(err1.Error(), tt.fails) || apierrors.ReasonForError(err1) != apierrors.ReasonForError(err2) {
					t.Errorf("refused with\n%v, by request with\n%v, want %q", err1, err2, tt.fails)
				}
				return
			}
			if err1 != nil || err2 != nil {
				t.Fatalf("%v, by request %v", err1, err2)
			}
			if direct != requested {
				t.Errorf("created\n%s\nby request\n%s", direct, requested)
			}
		})
	}
}

// plain is a pod as JSON without what differs from one to the next.
func plain(t *testing.T, pod *corev1.Pod, name string) string {
	p := pod.DeepCopy()
	if p.UID == "" || p.CreationTimestamp.IsZero() || p.UID == "given" {
		t.Errorf("the pod has the UID %q and was created at %v", p.UID, p.CreationTimestamp)
	}
	p.UID, p.ResourceVersion, p.CreationTimestamp = "", "", metav1.Time{}
	for i := range p.ManagedFields {
		p.ManagedFields[i].Time = nil
	}
	if len(p.GenerateName) > 0 {
		p.Name = ""
	}
	for i := range p.Spec.Volumes {
		p.Spec.Volumes[i].Name = "token"
	}
	for i := range p.Spec.Containers {
		for j := range p.Spec.Containers[i].VolumeMounts {
			p.Spec.Containers[i].VolumeMounts[j].Name = "token"
		}
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(text), name, "NAME")
}
