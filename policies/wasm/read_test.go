package wasm_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

// store answers with one config map, whose data tells the revision asked for.
type store struct {
	calls int
	fails error
}

func (s *store) Revision() int64 { return 1 }

func (s *store) Get(_ context.Context, revision int64, resource schema.GroupResource, namespace, name string) (runtime.Object, error) {
	s.calls++
	if s.fails != nil {
		return nil, s.fails
	}
	if name != "flags" {
		return nil, apierrors.NewNotFound(resource, name)
	}
	return configMap(revision, namespace), nil
}

func configMap(revision int64, namespace string) *corev1.ConfigMap {
	return &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Name: "flags", Namespace: namespace}, Data: map[string]string{"revision": fmt.Sprint(revision)}}
}

// readGuest reads into a buffer of a kilobyte twice, logs what the read
// returned as a reason of row 0, and leaves the object at 1024.
func readGuest(resource, object, encoding string) *module {
	get := cat(i32const(64), i32const(int32(len(resource))), i32const(100), i32const(2), i32const(110), i32const(int32(len(object))),
		i32const(1024), i32const(2000), []byte{0x10, 0})
	m := filterGuest(cat(get, []byte{0x1a}, get, []byte{0x21, 3}, // drop, local 3 = length
		// an object: verdicts[0] = 1 and its text is the reason; else verdicts[0] = -result
		[]byte{0x20, 3}, i32const(0), []byte{0x48, 0x04, 0x40, 0x20, 2}, i32const(0), []byte{0x20, 3, 0x6b, 0x3a, 0, 0, 0x05},
		[]byte{0x20, 2}, i32const(9), []byte{0x3a, 0, 0}, i32const(0), i32const(1024), []byte{0x20, 3, 0x10, 1, 0x0b},
		pass))
	m.imports = []imported{{"qm", "get", strings.Repeat(t32, 8), t32}, {"qm", "reason", t32 + t32 + t32, ""}}
	m.manifest = strings.Replace(filterManifest, `"reasons"`, `"grants":["read"],"reads":["configmaps"],"encoding":"`+encoding+`","reasons"`, 1)
	m.extra = data(64, resource+strings.Repeat(" ", 36-len(resource))+"ns"+strings.Repeat(" ", 8)+object)
	return m
}

func TestReads(t *testing.T) {
	protobuf, err := configMap(7, "ns").Marshal()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(configMap(7, "ns"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, resource, object, encoding string
		verdict                          uint8
		reason                           []byte
		calls                            int
	}{
		{"JSON", "configmaps", "flags", "json", 9, text, 1},
		{"protobuf", "configmaps", "flags", "protobuf", 9, protobuf, 1},
		{"not there", "configmaps", "other", "json", 1, []byte("no"), 1},
		{"not granted", "secrets", "flags", "json", 2, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := tryLoad(t, readGuest(tt.resource, tt.object, tt.encoding).bytes())
			if err != nil {
				t.Fatal(err)
			}
			if p.Static() {
				t.Error("a guest that reads is static")
			}
			s := p.Session()
			defer s.Close()
			reads := &store{}
			verdicts := make([]uint8, 1)
			if _, err := s.Filter(context.Background(), policies.Cycle{Revision: 7, Reads: reads}, pod("1"), fleet(1), verdicts); err != nil {
				t.Fatal(err)
			}
			reason := s.Reason(0, verdicts[0])
			if want := strings.ToValidUTF8(string(tt.reason), "?"); verdicts[0] != tt.verdict || reason != want {
				t.Errorf("verdict %d, reason %q, expected %d and %q", verdicts[0], reason, tt.verdict, want)
			}
			if reads.calls != tt.calls { // the second, with the same names, is the first's answer
				t.Errorf("%d reads of the store, expected %d", reads.calls, tt.calls)
			}
		})
	}
}

// A store that does not answer fails the call with an error of its own.
func TestReadFails(t *testing.T) {
	p, err := tryLoad(t, readGuest("configmaps", "flags", "json").bytes())
	if err != nil {
		t.Fatal(err)
	}
	s := p.Session()
	defer s.Close()
	expired := apierrors.NewResourceExpired("compacted")
	_, err = s.Filter(context.Background(), policies.Cycle{Reads: &store{fails: expired}}, pod("1"), fleet(1), make([]uint8, 1))
	if !errors.Is(err, policies.ErrRead) || !strings.Contains(err.Error(), "configmaps ns/flags at revision 0: compacted") {
		t.Errorf("error %v", err)
	}
	verdicts := make([]uint8, 1)
	if _, err = s.Filter(context.Background(), policies.Cycle{Reads: &store{}}, pod("1"), fleet(1), verdicts); err != nil || verdicts[0] != 9 {
		t.Errorf("the call after it: %v, verdict %d", err, verdicts[0])
	}
}

// What the manifest reads has to be granted by the policy; without a policy,
// as in tools, everything is.
func TestReadsAreGranted(t *testing.T) {
	e := wasm.New(wasm.Options{})
	defer e.Close()
	source := readGuest("configmaps", "flags", "json").bytes()
	load := func(grants *policyv1alpha1.PolicyGrants) error {
		p, err := e.Load(context.Background(), policies.Load{Policy: "test", Source: source, Grants: grants})
		if err == nil {
			err = p.Close()
		}
		return err
	}
	if err := load(nil); err != nil {
		t.Error(err)
	}
	if err := load(&policyv1alpha1.PolicyGrants{Reads: []string{"pods", "configmaps"}}); err != nil {
		t.Error(err)
	}
	err := load(&policyv1alpha1.PolicyGrants{Reads: []string{"pods"}})
	if err == nil || err.Error() != "Imports: the manifest asks to read configmaps, the policy grants pods: name it in spec.grants.reads" {
		t.Errorf("error %v", err)
	}
}

// In the row tier a manifest chooses JSON.
func TestRowsAsJSON(t *testing.T) {
	for _, encoding := range []string{"json", "protobuf"} {
		// filter(pod, len, node, len): verdict 1 where the pod begins with '{' and 2 more where the node does
		m := filterGuest(nil)
		m.manifest = strings.Replace(filterManifest, `"reasons":["no"]`, `"encoding":"`+encoding+`","reasons":["1","2","3"]`, 1)
		m.funcs[2] = function{params: t32 + t32 + t32 + t32, results: t32, code: cat(
			[]byte{0x20, 0, 0x2d, 0, 0}, i32const('{'), []byte{0x46},
			[]byte{0x20, 2, 0x2d, 0, 0}, i32const('{'), []byte{0x46}, i32const(1), []byte{0x74, 0x6a})}
		delete(m.exports, "filter_batch")
		m.exports["filter"] = 2
		p, err := tryLoad(t, m.bytes())
		if err != nil {
			t.Fatal(err)
		}
		s := p.Session()
		verdicts := make([]uint8, 3)
		if _, err := s.Filter(context.Background(), policies.Cycle{}, pod("1"), fleet(3), verdicts); err != nil {
			t.Fatal(err)
		}
		s.Close()
		want := []uint8{0, 0, 0}
		if encoding == "json" {
			want = []uint8{3, 3, 3}
		}
		if !bytes.Equal(verdicts, want) {
			t.Errorf("%s: verdicts %v, expected %v", encoding, verdicts, want)
		}
	}
}
