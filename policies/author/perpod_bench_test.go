package author_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
	"github.com/quaymaster/quaymaster/policies/author"
)

// regoWays are the policy of the Rego template asked in each way that there is.
// What reads input.requested is not remembered, what takes input as a whole not
// evaluated partially either.
var regoWays = map[string]string{
	"whole": "\nall := input\n", "partial": "\nasked := input.requested\n", "remembered": "",
	"fleet": "",
}

const regoFleet = `package team

pod_team := object.get(input.pod, ["metadata", "labels", "team"], "")

node_team(node) := object.get(node, ["metadata", "labels", "team"], "")

filters := {name: {"node(s) were kept for another team"} |
	some name, node in input.nodes
	not node_team(node) in {"", pod_team}
}

scores := {name: 100 |
	some name, node in input.nodes
	node_team(node) == pod_team
}
`

// BenchmarkPerPod is the filter and the score of one pod for all nodes by one
// logic, that of the templates: native Go over labels as they are, each language
// by columns and by rows, Rego in four ways. All give the same answers. Languages
// whose toolchain is not there are left out.
func BenchmarkPerPod(b *testing.B) {
	for _, n := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprintf("native/nodes=%d", n), func(b *testing.B) { perPod(b, nil, n) })
	}
	for _, lang := range []string{"c", "rust", "assemblyscript", "go"} {
		for _, tier := range []string{"columns", "rows"} {
			b.Run(lang+"-"+tier, func(b *testing.B) {
				needs(b, lang)
				e := engines(b)
				built, _, err := e.Build(b.Context(), perPodSource(b, lang, tier))
				if err != nil {
					b.Fatal(err)
				}
				source, err := os.ReadFile(built)
				if err != nil {
					b.Fatal(err)
				}
				perPodSizes(b, e[policyv1alpha1.EngineWasm], source)
			})
		}
	}
	for _, way := range []string{"whole", "partial", "remembered", "fleet"} {
		b.Run("rego-"+way, func(b *testing.B) {
			dir := filepath.Join(b.TempDir(), "team")
			if _, err := author.New("rego", dir); err != nil {
				b.Fatal(err)
			}
			source, err := os.ReadFile(filepath.Join(dir, "team.rego"))
			if err != nil {
				b.Fatal(err)
			}
			source = append(source, regoWays[way]...)
			if way == "fleet" {
				source = []byte(regoFleet)
			}
			perPodSizes(b, engines(b)[policyv1alpha1.EngineRego], source)
		})
	}
}

// perPodSource lays out the template, with the source of the other tier in it.
func perPodSource(b *testing.B, lang, tier string) string {
	b.Helper()
	dir := filepath.Join(b.TempDir(), "rows")
	if _, err := author.New(lang, dir); err != nil {
		b.Fatal(err)
	}
	if tier == "rows" {
		main := map[string]string{"c": "rows.c", "rust": "main.rs", "assemblyscript": "main.ts", "go": "main.go"}[lang]
		for from, to := range map[string]string{strings.Replace(main, "main.go", "main.go.txt", 1): main, "manifest.json": "manifest.json"} {
			data, err := os.ReadFile(filepath.Join("testdata/rows", from))
			if err != nil {
				b.Fatal(err)
			}
			write(b, dir, to, string(data))
		}
	}
	return dir
}

func perPodSizes(b *testing.B, engine policies.Engine, source []byte) {
	l := policies.Load{Policy: "team", Source: source}
	fuel := int64(1 << 40) // whole nodes in Go take more than the default for 1,000 of them
	l.Limits.Deadline, l.Limits.Fuel = &metav1.Duration{Duration: time.Minute}, &fuel
	p, err := engine.Load(b.Context(), l)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := p.Close(); err != nil {
			b.Error(err)
		}
	}()
	for _, n := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprintf("nodes=%d", n), func(b *testing.B) { perPod(b, p, n) })
	}
}

func perPodFleet(n int) *abi.Fleet {
	nodes := make([]*corev1.Node, n)
	for i := range nodes {
		name := fmt.Sprint("node", i)
		nodes[i] = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			corev1.LabelHostname: name, corev1.LabelTopologyZone: fmt.Sprint("zone", i%8), corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
		}}, Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{"cpu": resource.MustParse("32"), "memory": resource.MustParse("128Gi"), "pods": resource.MustParse("110")}}}
		if i%3 > 0 {
			nodes[i].Labels["team"] = fmt.Sprint("t", i%5)
		}
	}
	return abi.FleetOf(nodes)
}

// teams is the logic in native Go.
func teams(pod *corev1.Pod, fleet *abi.Fleet, verdicts []uint8, scores []int64) {
	want, wants := pod.Labels["team"]
	for row, node := range fleet.Nodes {
		has, is := node.Labels["team"]
		equal := has == want && is == wants
		verdicts[row], scores[row] = 0, 0
		if is && !equal {
			verdicts[row] = 1
		} else if equal {
			scores[row] = 100
		}
	}
}

// perPod measures a program, or native Go when it is nil. A node's use has
// changed before each call.
func perPod(b *testing.B, p policies.Program, n int) {
	fleet := perPodFleet(n)
	var pods []*corev1.Pod
	for i := range 5 {
		pods = append(pods, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("p", i), Labels: map[string]string{"team": fmt.Sprint("t", i)}}})
	}
	verdicts, scores := make([]uint8, n), make([]int64, n)
	wantVerdicts, wantScores := make([]uint8, n), make([]int64, n)
	changed := []int32{0}
	fleet.Changes = func(since uint64) ([]int32, bool) { return changed, since+1 >= fleet.Generation }
	var fuel int64
	call := func(i int) { teams(pods[i%5], fleet, verdicts, scores) }
	if p != nil {
		s := p.Session()
		defer s.Close()
		call = func(i int) {
			fleet.Requested.MilliCPU[i%n]++
			fleet.Generation++
			changed[0] = int32(i % n)
			clear(verdicts)
			clear(scores)
			c := policies.Cycle{Time: time.Unix(1700000000, 0)}
			filter, err := s.Filter(context.Background(), c, pods[i%5], fleet, verdicts)
			if err != nil {
				b.Fatal(err)
			}
			score, err := s.Score(context.Background(), c, pods[i%5], fleet, verdicts, scores)
			if err != nil {
				b.Fatal(err)
			}
			fuel += filter.Fuel + score.Fuel
		}
	}
	for i := range 10 { // each pod twice: what is made for it is there, and the answers are right
		call(i)
		teams(pods[i%5], fleet, wantVerdicts, wantScores)
		if !slices.Equal(verdicts, wantVerdicts) || !slices.Equal(scores, wantScores) {
			b.Fatalf("pod %d: verdicts %v and scores %v, native %v and %v", i, verdicts, scores, wantVerdicts, wantScores)
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	fuel = 0
	began := cpuTime(b)
	for i := range b.N {
		call(i)
	}
	nodes := float64(b.N) * float64(n)
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/nodes, "ns/node")
	b.ReportMetric(float64(cpuTime(b)-began)/nodes, "CPU-ns/node")
	b.ReportMetric(float64(fuel)/nodes, "fuel/node")
}

// cpuTime of this process; it holds on a loaded machine where a rate does not.
func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
