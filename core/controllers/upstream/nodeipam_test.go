package upstream

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
)

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func TestNodeRangesCheck(t *testing.T) {
	for name, test := range map[string]struct {
		ranges NodeRanges
		wrong  string // part of the error; "" for none
	}{
		"none":         {NodeRanges{}, ""},
		"one":          {NodeRanges{Cluster: prefixes("10.244.0.0/16"), Sizes: []int{24}}, ""},
		"dual stack":   {NodeRanges{Cluster: prefixes("10.244.0.0/16", "fd00:1::/48"), Sizes: []int{24, 64}}, ""},
		"one family":   {NodeRanges{Cluster: prefixes("10.244.0.0/16", "10.245.0.0/16"), Sizes: []int{24, 24}}, "one range of each IP family"},
		"bits":         {NodeRanges{Cluster: prefixes("10.244.1.0/16"), Sizes: []int{24}}, "it is 10.244.0.0/16"},
		"too small":    {NodeRanges{Cluster: prefixes("10.244.0.0/25"), Sizes: []int{24}}, "no parts of /24"},
		"no addresses": {NodeRanges{Cluster: prefixes("10.244.0.0/24"), Sizes: []int{31}}, "no parts of /31"},
		"too many":     {NodeRanges{Cluster: prefixes("fd00::/32"), Sizes: []int{64}}, "may differ from the range's by 16"},
	} {
		if err := test.ranges.Check(); (err != nil) != (test.wrong != "") || err != nil && !strings.Contains(err.Error(), test.wrong) {
			t.Errorf("%s: %v, want %q", name, err, test.wrong)
		}
	}
}

// allocating runs the allocator over a client's nodes.
func allocating(t *testing.T, client *fake.Clientset, ranges NodeRanges) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	factory := informers.NewSharedInformerFactory(client, 0)
	o := Options{Client: client, Informers: factory, NodeRanges: ranges}
	run, err := o.late("ranges of nodes", newNodeRanges, factory.Core().V1().Nodes().Informer())
	if err != nil {
		t.Fatal(err)
	}
	factory.StartWithContext(ctx)
	done := make(chan struct{})
	go func() { defer close(done); run(ctx) }()
	return func() {
		cancel()
		<-done
		factory.Shutdown()
	}
}

func rangesOf(t *testing.T, client *fake.Clientset, node string) []string {
	t.Helper()
	n, err := client.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return n.Spec.PodCIDRs
}

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

// TestNodesGetRanges gives nodes ranges of both families, gives one back with its node, keeps them over a restart,
// and says when there are no more.
func TestNodesGetRanges(t *testing.T) {
	client := fake.NewClientset()
	add := func(name string, ranges ...string) {
		t.Helper()
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: ranges}}
		if _, err := client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	// Four parts each; services have one.
	ranges := NodeRanges{Cluster: prefixes("10.244.0.0/22", "fd00:1::/62"), Sizes: []int{24, 64}, Services: prefixes("10.244.2.0/24")}
	add("elsewhere", "192.168.0.0/24")
	stop := allocating(t, client, ranges)
	given := map[string]string{}
	for i := range 3 {
		name := fmt.Sprint("n", i)
		add(name)
		until(t, name+" gets no range", func() bool { return len(rangesOf(t, client, name)) == 2 })
		got := rangesOf(t, client, name)
		for j, text := range got {
			p := netip.MustParsePrefix(text)
			if p.Bits() != ranges.Sizes[j] || !ranges.Cluster[j].Contains(p.Addr()) || p.Overlaps(ranges.Services[0]) || given[text] != "" {
				t.Errorf("%s has %s, %q has it as well", name, text, given[text])
			}
			given[text] = name
		}
	}
	stop()

	// Another leader knows what was given; the next node finds nothing, until another one goes.
	stop = allocating(t, client, ranges)
	defer stop()
	add("late")
	until(t, "no event of a node without a range", func() bool {
		list, err := client.CoreV1().Events("").List(t.Context(), metav1.ListOptions{})
		return err == nil && slices.ContainsFunc(list.Items, func(e corev1.Event) bool {
			return e.Reason == "CIDRNotAvailable" && e.InvolvedObject.Name == "late"
		})
	})
	if got := rangesOf(t, client, "late"); len(got) > 0 {
		t.Errorf("a range is given twice: %v of %v", got, given)
	}
	freed := rangesOf(t, client, "n1")
	if err := client.CoreV1().Nodes().Delete(t.Context(), "n1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "the range of a node that is gone is given to nobody", func() bool { return len(rangesOf(t, client, "late")) == 2 })
	if got := rangesOf(t, client, "late"); got[0] != freed[0] {
		t.Errorf("the next node gets %v, not %v", got, freed)
	}
	if got := rangesOf(t, client, "elsewhere"); !slices.Equal(got, []string{"192.168.0.0/24"}) {
		t.Errorf("the range of a node that had one became %v", got)
	}
}
