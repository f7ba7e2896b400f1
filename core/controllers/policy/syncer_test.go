package policy

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
)

func rawJSON(s string) *runtime.RawExtension { return &runtime.RawExtension{Raw: []byte(s)} }

func podRequest(name string) *admissionv1.AdmissionRequest {
	r := &admissionv1.AdmissionRequest{Name: name, Operation: admissionv1.Create, Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"}}
	r.Object.Raw = []byte(`{"metadata":{"name":"` + name + `"}}`)
	return r
}

// policyYAML is a policy with time enough for a call on a busy machine.
func policyYAML(name, file string) string {
	return fmt.Sprintf(`apiVersion: policy.quaymaster.dev/v1alpha1
kind: Policy
metadata: {name: %s}
spec:
  engine: Rego
  limits: {deadline: 1m}
  source: {file: %s}
`, name, file)
}

const profileYAML = `apiVersion: scheduling.quaymaster.dev/v1alpha1
kind: SchedulerProfile
metadata: {name: fast}
spec:
  plugins:
    score:
      enabled: [{policy: a, weight: 5}]
`

func (c *cluster) profile(name string) *schedulingv1alpha1.SchedulerProfile {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, _ := c.objects[schedulingv1alpha1.Resource+"/"+name].(*schedulingv1alpha1.SchedulerProfile)
	return p
}

func TestDirectory(t *testing.T) {
	c := start(t, true)
	c.write("a.rego", regoSource("a"))
	c.write("all.yaml", "# what this directory holds\n---\n"+policyYAML("a", "a.rego")+"---\n"+profileYAML+"---\n# nothing\n")
	c.inForce("a", regoSource("a"))
	eventually(t, "profile", func() bool { return c.profile("fast") != nil })
	p := c.policy("a")
	if p.Labels[LabelManaged] != ManagedByFiles || p.Annotations[AnnotationFile] != "all.yaml" {
		t.Errorf("labels %v, annotations %v", p.Labels, p.Annotations)
	}

	// the program changes
	c.write("a.rego", regoSource("b"))
	c.inForce("a", regoSource("b"))

	// the object changes
	c.write("all.yaml", policyYAML("a", "a.rego")+"  extensionPoints: [Validate]\n---\n"+strings.Replace(profileYAML, "weight: 5", "weight: 7", 1))
	eventually(t, "profile with weight 7", func() bool { return *c.profile("fast").Spec.Plugins.Score.Enabled[0].Weight == 7 })
	eventually(t, "policy with points", func() bool { return len(c.policy("a").Spec.ExtensionPoints) == 1 })

	// the file moves: the objects stay what they are
	uid := c.policy("a").UID
	if err := os.Rename(filepath.Join(c.dir, "all.yaml"), filepath.Join(c.dir, "moved.yml")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "objects of the new file", func() bool { return c.policy("a").Annotations[AnnotationFile] == "moved.yml" })
	if c.policy("a").UID != uid {
		t.Error("the policy was deleted and created again")
	}

	// the file goes: so do the objects
	if err := os.Remove(filepath.Join(c.dir, "moved.yml")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "objects gone", func() bool { return c.policy("a") == nil && c.profile("fast") == nil })
	eventually(t, "out of force", func() bool { _, ok := c.host.Status("a"); return !ok })
}

// A file that is broken, or half written, leaves its objects as they are.
func TestBrokenFiles(t *testing.T) {
	c := start(t, true)
	c.write("a.rego", regoSource("a"))
	whole := policyYAML("a", "a.rego") + "---\n" + policyYAML("b", "a.rego")
	c.write("a.yaml", whole)
	c.inForce("a", regoSource("a"))
	c.inForce("b", regoSource("a"))
	for i, broken := range []string{
		"",
		whole[:len(whole)-30],
		strings.Replace(whole, "engine:", "engin:", 1),
		strings.Replace(whole, "kind: Policy", "kind: ConfigMap\n", 1),
		whole + "---\n" + policyYAML("b", "other.rego"),
		strings.Replace(whole, "{name: a}", "{}", 1),
	} {
		c.write("a.yaml", broken)
		c.write(fmt.Sprintf("probe%d.yaml", i), policyYAML(fmt.Sprint("probe", i), "a.rego"))
		c.inForce(fmt.Sprint("probe", i), regoSource("a")) // by now the broken file has been looked at
		if c.policy("a") == nil || c.policy("b") == nil {
			t.Fatalf("broken file %d took an object with it", i)
		}
	}
	c.event("PolicyFileInvalid a.yaml: document 1: ")
	c.write("a.yaml", policyYAML("a", "a.rego"))
	eventually(t, "b gone", func() bool { return c.policy("b") == nil })
	if c.policy("a") == nil {
		t.Error("a is gone too")
	}
}

// Objects of others are left alone, and a directory at rest causes no writes.
func TestLeavesOthersAlone(t *testing.T) {
	c := start(t, true)
	source := regoSource("mine")
	c.create(newPolicy("mine", policyv1alpha1.PolicySource{Rego: source}))
	c.inForce("mine", source)
	c.write("a.rego", regoSource("a"))
	c.write("m.yaml", policyYAML("mine", "a.rego"))
	c.write("a.yaml", policyYAML("a", "a.rego"))
	c.write("dup.yaml", policyYAML("a", "b.rego"))
	c.write("notes.txt", "no object")
	c.inForce("a", regoSource("a"))
	if p := c.policy("mine"); p.Spec.Source.Rego != source || p.Labels[LabelManaged] != "" {
		t.Errorf("the object of another was changed: %+v", p)
	}
	c.mu.Lock()
	writes := c.writes
	c.mu.Unlock()
	c.write("probe.yaml", policyYAML("probe", "a.rego"))
	c.inForce("probe", regoSource("a"))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writes > writes+2 { // the probe and its status
		t.Errorf("%d writes for one new object", c.writes-writes)
	}
}

// A directory that is missing, or whose objects are another's, does not keep
// Synced open.
func TestSyncedDespiteErrors(t *testing.T) {
	s, client := newServer(t)
	ctx, cancel := context.WithCancel(t.Context())
	syncer := NewSyncer(SyncerOptions{Dir: filepath.Join(t.TempDir(), "missing"), Client: client})
	var done waitGroup
	done.run(t, func() error { return syncer.Run(ctx) })
	<-syncer.Synced()
	if err := os.Mkdir(syncer.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(syncer.Dir, "a.yaml"), []byte(policyYAML("a", "a.rego")), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "object of a directory that was made later", func() bool { return s.policy("a") != nil })
	cancel()
	done.Wait()
}
