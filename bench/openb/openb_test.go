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

// TestInflate: no device is given away twice (inflate compares what is free on
// devices with what was given away) and allocation never falls.
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
