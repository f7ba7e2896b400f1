package apiserver

import (
	"math/rand"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	upstreamtesting "k8s.io/kubernetes/pkg/api/testing"
	core "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/registry/core/pod"
)

// TestStoredPodsAreSelected reads labels and fields of stored random pods, marked and
// not, and compares them with upstream's of the decoded ones.
func TestStoredPodsAreSelected(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	fuzz := fuzzer.FuzzerFor(upstreamtesting.FuzzerFuncs, rand.NewSource(seed), legacyscheme.Codecs)
	codec, encoder := storedCodec(t, kind{resource: "pods", kind: "Pod", versions: []string{"v1"}})
	s := watchStorage{Interface: asWritten{}, paths: podSelectable}
	var all []fields.Selector
	for name := range podSelectable {
		all = append(all, fields.OneTermNotEqualSelector(name, "x"))
	}
	label, err := labels.Parse("a!=b")
	if err != nil {
		t.Fatal(err)
	}
	predicate, ok := s.selects(storage.SelectionPredicate{Label: label, Field: fields.AndSelectors(all...)})
	if !ok {
		t.Fatal("the fields are not known")
	}
	if _, ok := s.selects(storage.SelectionPredicate{Label: label, Field: fields.OneTermEqualSelector("spec.restartPolicy", "Always")}); ok {
		t.Error("a field that is not read is known")
	}
	for round := range 200 {
		internal := &core.Pod{}
		fuzz.Fill(internal)
		internal.ResourceVersion, internal.SelfLink = "", ""
		from := runtime.Encoder(codec)
		if round%4 == 0 {
			from = codec.Codec
		}
		value, err := runtime.Encode(from, internal)
		if err != nil {
			t.Fatal(err)
		}
		decoded, err := runtime.Decode(codec, value)
		if err != nil {
			t.Fatal(err)
		}
		wantLabels, wantFields, err := pod.GetAttrs(decoded)
		if err != nil {
			t.Fatal(err)
		}
		stored, err := runtime.Decode(watchedCodec{codec, &encoder}, value)
		if err != nil {
			t.Fatal(err)
		}
		gotLabels, gotFields, err := predicate.GetAttrs(stored)
		if err != nil {
			t.Fatal(err)
		}
		if !labels.Equals(gotLabels, wantLabels) || len(gotFields) != len(podSelectable) {
			t.Fatalf("labels %v, upstream's are %v; fields %v", gotLabels, wantLabels, gotFields)
		}
		for name, got := range gotFields {
			if got != wantFields[name] {
				t.Fatalf("%s is %q, upstream's is %q", name, got, wantFields[name])
			}
		}
	}
}
