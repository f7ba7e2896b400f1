package main

import (
	"flag"
	"strings"
	"testing"
)

var small = flag.Bool("small", false, "race every scenario in small; it builds both sides")

// TestRace runs each scenario in small, in every mode that it has.
//
//	go test . -small
func TestRace(t *testing.T) {
	if !*small {
		t.Skip("needs -small")
	}
	for _, o := range []options{
		{scenarios: "basic,zone-spread,preferred-affinity", modes: "https,deployment,go", nodes: 6, pods: 20},
		{scenarios: "hostname-anti-affinity,unschedulable", modes: "https,go", nodes: 6, pods: 20},
		{scenarios: "preemption", modes: "https,go", nodes: 5, pods: 5},
	} {
		o.rounds, o.clients = 1, 8
		var out strings.Builder
		if err := race(t.Context(), &o, &out); err != nil {
			t.Fatalf("%v\n%s", err, out.String())
		}
		t.Log("\n" + out.String())
		lines := strings.Count(out.String(), " quaymaster ")
		if want := len(strings.Split(o.scenarios, ",")) * len(strings.Split(o.modes, ",")); lines != want {
			t.Errorf("%d results of ours, want %d", lines, want)
		}
	}
}

func TestChoose(t *testing.T) {
	for _, tt := range []struct {
		o    options
		want string // "" for success
	}{
		{options{scenarios: "all", modes: "https,go", pods: 10}, ""},
		{options{scenarios: "basic,none", modes: "https"}, `no scenario "none"`},
		{options{scenarios: "basic", modes: "carrier pigeon"}, `no mode "carrier pigeon"`},
		{options{scenarios: "basic", modes: "go", only: "them"}, `no side "them"`},
	} {
		chosen, err := choose(&tt.o)
		if tt.want == "" {
			if err != nil || len(chosen) < 7 || chosen[0].Pods != 10 {
				t.Errorf("%+v: %v, %v", tt.o, chosen, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: error %v, want %q", tt.o, err, tt.want)
		}
	}
}
