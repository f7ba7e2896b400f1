package main

import (
	"testing"
)

// synthetic is a small cluster with pods of a few shapes.
func synthetic() *trace {
	t := &trace{}
	t.addNode("cpu", 64000, 262144, 0, "")
	for range 6 {
		t.addNode("a"+string(rune('0'+len(t.nodes))), 64000, 262144, 4, "A")
	}
	t.addNode("b", 32000, 131072, 8, "B")
	for _, s := range []struct {
		cpu, memory, gpus, share int64
		models                   string
		count                    int
	}{
		{4000, 4096, 1, 300, "", 30}, {4000, 4096, 1, 700, "", 10}, {8000, 8192, 1, 1000, "A", 6},
		{16000, 8192, 4, 1000, "", 3}, {2000, 2048, 1, 500, "B|C", 8}, {1000, 1024, 0, 0, "", 5},
	} {
		t.addShape(s.cpu, s.memory, s.gpus, s.share, s.models)
		for range s.count {
			t.pods = append(t.pods, len(t.shapes)-1)
		}
		t.shapes[len(t.shapes)-1].count = s.count
	}
	return t
}

// TestInflate: no device is given away twice, allocation never falls, and what is
// known of a node step by step is what it would be anew.
func TestInflate(t *testing.T) {
	for _, score := range scoreNames() {
		r, err := inflate(t.Context(), synthetic(), score, 1)
		if err != nil {
			t.Fatal(err)
		}
		for i := 1; i <= last; i++ {
			if r.allocated[i] < r.allocated[i-1] || r.allocated[i] > 100 || r.fragments[i] < 0 || r.allocated[i]+r.fragments[i] > 100.001 {
				t.Errorf("%s: at %d %% %.2f %% are allocated and %.2f %% fragments", score, i*step, r.allocated[i], r.fragments[i])
			}
		}
		if r.allocated[last] < 60 || r.decisions < 30 {
			t.Errorf("%s: %.2f %% allocated after %d decisions", score, r.allocated[last], r.decisions)
		}
	}
}

func TestDevices(t *testing.T) {
	x := synthetic()
	g := newGPUs(x, true)
	const third, whole, four, bOnly = 0, 2, 3, 4
	node := 1 // four devices
	g.assign(third, node)
	g.assign(third, node)
	if free := g.nodes[node].free; free[0] != 400 || free[1] != oneGPU {
		t.Fatalf("two thirds are not on one device: %v", free)
	}
	if m := g.know(four); m.fits[node] || !m.fits[node+1] {
		t.Errorf("four whole devices: fits %v", m.fits)
	}
	if m := g.know(bOnly); !m.fits[7] {
		t.Errorf("half a device does not fit on an empty node: %v", m.fits)
	}
	g.assign(whole, node)
	if free := g.nodes[node].free; free[1] != 0 {
		t.Errorf("a whole device is not taken: %v", free)
	}
	for i := range g.nodes {
		if got, want := g.nodes[i].fragments, g.fragmentsOf(&g.nodes[i]); got != want {
			t.Errorf("node %d: fragments %f, anew %f", i, got, want)
		}
	}
	// An empty node has fragments only for the pods that may not go there.
	empty := 2
	var kept float64
	for _, s := range g.typical {
		if s.models != nil && s.models[0] == "B" {
			kept += s.share * 4 * oneGPU
		}
	}
	if got := g.nodes[empty].fragments; got < kept-1e-6 || got > kept+1e-6 {
		t.Errorf("an empty node has the fragments %f, want %f", got, kept)
	}
}

func TestPublished(t *testing.T) {
	list, err := readPublished()
	if err != nil || len(list) != 6 {
		t.Fatalf("%d curves, %v", len(list), err)
	}
	for _, c := range list {
		if c.allocated[last] < 85 || c.allocated[last] > 100 {
			t.Errorf("%s: %.2f", c.name, c.allocated[last])
		}
	}
	if len(plot(nil, list)) < 1000 {
		t.Error("the plot is empty")
	}
}
