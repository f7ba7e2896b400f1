package wasm_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

const (
	preferV1 = "c/prefer-label/prefer-label-v1.wasm"
	preferV2 = "c/prefer-label/prefer-label-v2.wasm"
	headroom = "go/cpu-headroom/cpu-headroom.wasm"
)

func guest(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../../wasm-plugins", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func load(t testing.TB, source []byte, config string) policies.Program {
	t.Helper()
	e := wasm.New(wasm.Options{})
	p, err := e.Load(context.Background(), policies.Load{Policy: "test", Source: source, Digest: policies.Digest(source), Config: []byte(config)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func node(name, cpu string, labels ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
	for i := 0; i < len(labels); i += 2 {
		n.Labels[labels[i]] = labels[i+1]
	}
	n.Status.Allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse("32Gi")}
	return n
}

func pod(cpu string, selector ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default"}}
	p.Spec.Containers = []corev1.Container{{Name: "c", Image: "i", Resources: corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)},
	}}}
	for i := 0; i < len(selector); i += 2 {
		p.Spec.NodeSelector = map[string]string{selector[i]: selector[i+1]}
	}
	return p
}

// decide runs the filter and the score of one session.
func decide(t testing.TB, s policies.Session, pod *corev1.Pod, fleet *abi.Fleet) ([]uint8, []int64) {
	t.Helper()
	verdicts, scores := make([]uint8, fleet.Len()), make([]int64, fleet.Len())
	c := policies.Cycle{Time: time.Unix(1700000000, 0), Seed: 1}
	if _, err := s.Filter(context.Background(), c, pod, fleet, verdicts); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Score(context.Background(), c, pod, fleet, verdicts, scores); err != nil {
		t.Fatal(err)
	}
	return verdicts, scores
}

func TestGuests(t *testing.T) {
	nodes := []*corev1.Node{
		node("a", "4", "disktype", "ssd"), node("b", "4"), nil, node("c", "1", "disktype", "tape"), node("d", "8", "disktype", "hdd"),
	}
	const config = `{"key":"disktype","value":"ssd","never":"tape"}`
	for _, tt := range []struct {
		name, guest, config string
		pod                 *corev1.Pod
		verdicts            []uint8
		scores              []int64
		reason              string
	}{
		{"v1 prefers the label", preferV1, config, pod("100m"), []uint8{0, 0, 0, 1, 0}, []int64{100, 0, 0, 0, 0}, "node(s) had a label value that the policy never uses"},
		{"v2 keeps it free", preferV2, config, pod("100m"), []uint8{0, 0, 0, 1, 0}, []int64{0, 100, 0, 0, 100}, "node(s) had a label value that the policy never uses"},
		{"v2 for who selects it", preferV2, config, pod("100m", "disktype", "ssd"), []uint8{0, 0, 0, 1, 0}, []int64{100, 0, 0, 0, 0}, "node(s) had a label value that the policy never uses"},
		{"headroom", headroom, `{"maxPercent": 50}`, pod("2"), []uint8{0, 0, 0, 1, 0}, []int64{50, 50, 0, 0, 75}, "node(s) would have too little CPU headroom"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := load(t, guest(t, tt.guest), tt.config).Session()
			defer s.Close()
			verdicts, scores := decide(t, s, tt.pod, abi.FleetOf(nodes))
			if !slices.Equal(verdicts, tt.verdicts) || !slices.Equal(scores, tt.scores) {
				t.Errorf("verdicts %v, scores %v, expected %v, %v", verdicts, scores, tt.verdicts, tt.scores)
			}
			if got := s.Reason(3, verdicts[3]); got != tt.reason {
				t.Errorf("reason %q, expected %q", got, tt.reason)
			}
		})
	}
}

func TestConfigIsRefused(t *testing.T) {
	for _, tt := range []struct{ guest, config, want string }{
		{preferV1, `{"key":"disktype"}`, "Configure: the module refuses its config: key and value are needed"},
		{preferV1, `{"key":7,"value":"x"}`, "Configure: the module refuses its config: key must be a string"},
		{headroom, `{"maxPercent": 500}`, `Configure: the module refuses its config: want {"maxPercent": N}`},
	} {
		e := wasm.New(wasm.Options{})
		_, err := e.Load(context.Background(), policies.Load{Policy: "test", Source: guest(t, tt.guest), Config: []byte(tt.config)})
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: error %v, expected %s", tt.config, err, tt.want)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestDigests(t *testing.T) {
	for _, name := range []string{preferV1, preferV2, headroom} {
		if want, got := strings.TrimSpace(string(guest(t, name+".sha256"))), policies.Digest(guest(t, name)); got != want {
			t.Errorf("%s is %s, its .sha256 says %s", name, got, want)
		}
	}
}

// fleet of n nodes, a third of them with the label of the tests.
func fleet(n int) *abi.Fleet {
	nodes := make([]*corev1.Node, n)
	for i := range nodes {
		labels := []string{"topology.kubernetes.io/zone", fmt.Sprint("z", i%3), "pool", "general", "arch", "amd64"}
		if i%3 == 0 {
			labels = append(labels, "disktype", "ssd")
		}
		nodes[i] = node(fmt.Sprint("node", i), "16", labels...)
	}
	return abi.FleetOf(nodes)
}

func BenchmarkGuests(b *testing.B) {
	for _, g := range []struct{ guest, config string }{
		{preferV1, `{"key":"disktype","value":"ssd","never":"tape"}`}, {headroom, ""},
	} {
		for _, n := range []int{100, 1000, 5000} {
			b.Run(fmt.Sprintf("%s/%d", filepath.Base(g.guest), n), func(b *testing.B) {
				s := load(b, guest(b, g.guest), g.config).Session()
				defer s.Close()
				f := fleet(n)
				pods := []*corev1.Pod{pod("100m"), pod("200m")}
				verdicts, scores := make([]uint8, n), make([]int64, n)
				c := policies.Cycle{Time: time.Unix(1700000000, 0)}
				var fuel int64
				changed := []int32{0}
				f.Changes = func(uint64) ([]int32, bool) { return changed, true }
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					f.Requested.MilliCPU[i%n] += 10 // one bind a pod
					f.Generation++
					changed[0] = int32(i % n)
					p := pods[i%2]
					x, err := s.Filter(context.Background(), c, p, f, verdicts)
					if err != nil {
						b.Fatal(err)
					}
					y, err := s.Score(context.Background(), c, p, f, verdicts, scores)
					if err != nil {
						b.Fatal(err)
					}
					fuel = x.Fuel + y.Fuel
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/node")
				b.ReportMetric(float64(fuel)/float64(n), "fuel/node")
			})
		}
	}
}

func rawJSON(s string) *runtime.RawExtension    { return &runtime.RawExtension{Raw: []byte(s)} }
func duration(d time.Duration) *metav1.Duration { return &metav1.Duration{Duration: d} }
