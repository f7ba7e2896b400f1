package manifest_test

import (
	"bytes"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/quaymaster/quaymaster/core/apiserver/manifest"
)

func TestRead(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     []string // kind and name of each, or the error after "!"
	}{
		{"documents", "# a comment\n---\napiVersion: v1\nkind: Node\nmetadata: {name: a}\n---\n---\napiVersion: v1\nkind: Node\nmetadata: {name: b}\n", []string{"Node a", "Node b"}},
		{"a list", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Node, metadata: {name: a}}\n- {apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: b}}\n", []string{"Node a", "ReplicaSet b"}},
		{"a typed list", `{"apiVersion":"v1","kind":"PodList","metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"a"},"spec":{}}]}`, []string{"Pod a"}},
		{"JSON values", "{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"a\"}}\n{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"b\"}}", []string{"Node a", "Node b"}},
		{"YAML that begins with a brace", "{apiVersion: v1, kind: Node, metadata: {name: a}}", []string{"Node a"}},
		{"ours", "apiVersion: scheduling.quaymaster.dev/v1alpha1\nkind: SchedulerProfile\nmetadata: {name: p}\nspec: {}\n", []string{"SchedulerProfile p"}},
		{"nothing", "", nil},
		{"an unknown kind", "apiVersion: v1\nkind: Nod\nmetadata: {name: a}\n", []string{`!f: document 1: Nod a: no kind "Nod" is known in version "v1"`}},
		{"no kind", "apiVersion: v1\nmetadata: {name: a}\n", []string{"!f: document 1: apiVersion and kind are needed"}},
		{"no name", "apiVersion: v1\nkind: Node\n", []string{"!f: document 1: Node: metadata.name: is needed"}},
		{"an unknown field", "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nspec: {taint: []}\n", []string{`!f: document 1: Node a: unknown field "spec.taint"`}},
		{"a duplicate field", "apiVersion: v1\nkind: Node\nmetadata: {name: a, name: b}\n", []string{"!f: document 1: ", `key "name" already set`}},
		{"a duplicate field of JSON", `{"apiVersion":"v1","kind":"Node","metadata":{"name":"a","name":"b"}}`, []string{`!f: document 1: Node b: duplicate field "metadata.name"`}},
		{"a wrong quantity", "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nstatus: {allocatable: {cpu: much}}\n", []string{`!f: document 1: Node a: status.allocatable[cpu]: "much" is not a quantity`}},
		{"a wrong type", "apiVersion: v1\nkind: Node\nmetadata: {name: a, labels: [b]}\n", []string{"!f: document 1: Node a: ", "labels"}},
		{"a wrong item", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Node, metadata: {name: a}}\n- 7\n", []string{"!f: document 1: items[1]: not an object"}},
		{"no YAML", "a: b: c\n", []string{"!f: document 1: "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			objects, err := manifest.Read("f", strings.NewReader(tt.in))
			if len(tt.want) > 0 && strings.HasPrefix(tt.want[0], "!") {
				for _, want := range tt.want {
					if err == nil || !strings.Contains(err.Error(), strings.TrimPrefix(want, "!")) {
						t.Errorf("error %v, want %q", err, want)
					}
				}
				return
			}
			var got []string
			for _, o := range objects {
				accessor, failed := meta.Accessor(o.Object)
				if failed != nil {
					t.Fatal(failed)
				}
				got = append(got, o.GetObjectKind().GroupVersionKind().Kind+" "+accessor.GetName())
			}
			if err != nil || strings.Join(got, ",") != strings.Join(tt.want, ",") {
				t.Errorf("read %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

// TestDefaults: a limit is a request, too, and the scheduler has its name.
func TestDefaults(t *testing.T) {
	objects, err := manifest.Read("f", strings.NewReader("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: x, resources: {limits: {cpu: 1}}}]}\n"))
	if err != nil || len(objects) != 1 {
		t.Fatal(objects, err)
	}
	pod := objects[0].Object.(*v1.Pod)
	if cpu := pod.Spec.Containers[0].Resources.Requests.Cpu(); cpu.Value() != 1 || pod.Spec.SchedulerName != v1.DefaultSchedulerName {
		t.Errorf("request %v, scheduler %q", cpu, pod.Spec.SchedulerName)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Node, metadata: {name: a}, status: {allocatable: {cpu: 1x}}}\n"))
	f.Add([]byte(`{"apiVersion":"v1","kind":"PodList","items":[{"metadata":{"name":"a"},"spec":{"containers":[{}]}}]}{`))
	f.Fuzz(func(t *testing.T, data []byte) {
		objects, err := manifest.Read("f", bytes.NewReader(data))
		for _, o := range objects {
			if err == nil && (o.Object == nil || !strings.HasPrefix(o.Where, "f: document ")) {
				t.Errorf("object %v at %q", o.Object, o.Where)
			}
		}
	})
}
