// Command race has upstream's scheduler, API server and etcd bind pods, and
// Quaymaster, in turn: the same nodes, the same pods, the same client. It prints
// rates, CPU time and memory of both sides, and their ratios.
//
//	go run . -scenario basic-100 -pods 8000 -rounds 2
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/quaymaster/quaymaster/bench/race/work"
)

func main() {
	var o options
	flag.StringVar(&o.scenarios, "scenario", "basic-100", "scenarios, with commas between them, or all: "+strings.Join(work.Names(), ", "))
	flag.StringVar(&o.modes, "mode", work.ModeHTTPS, "how pods are made, with commas between: https, deployment, go (upstream has no Go API: its https counts)")
	flag.IntVar(&o.nodes, "nodes", 0, "nodes, instead of the scenario's")
	flag.IntVar(&o.pods, "pods", 0, "pods, instead of the scenario's")
	flag.IntVar(&o.rounds, "rounds", 2, "rounds of each side")
	flag.IntVar(&o.clients, "clients", 64, "requests at once")
	flag.StringVar(&o.only, "only", "", "run only this side: "+upstreamSide+" or "+ourSide)
	flag.StringVar(&o.profile, "profile", "", "folder for profiles of our side: the CPU of what is timed, and the heap before it and at its end; go tool pprof -sample_index=alloc_space -diff_base FILE.before FILE.heap tells what was allocated")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := race(ctx, &o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "race:", err)
		os.Exit(1)
	}
}

type options struct {
	scenarios, modes, only, profile string
	nodes, pods, rounds, clients    int
}

const (
	upstreamSide = "upstream"
	ourSide      = "quaymaster"
)

// race prints each result, and the table of all in the end.
func race(ctx context.Context, o *options, out io.Writer) error {
	chosen, err := choose(o)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "race-bin-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := build(ctx, dir, o); err != nil {
		return err
	}
	var rows []row
	for _, s := range chosen {
		for _, mode := range strings.Split(o.modes, ",") {
			r := row{scenario: s, mode: mode}
			for range o.rounds {
				for _, side := range []string{upstreamSide, ourSide} { // A B A B
					if o.only != "" && o.only != side || side == upstreamSide && mode == work.ModeGo {
						continue
					}
					result, err := runSide(ctx, filepath.Join(dir, side), s, mode, o)
					if err != nil {
						return fmt.Errorf("%s, %s, %s: %w", s.Name, mode, side, err)
					}
					fmt.Fprintf(out, "%-20s %-10s %-10s %s\n", s.Name, mode, side, result)
					r.add(side, result)
				}
			}
			rows = append(rows, r)
		}
	}
	printTable(out, rows)
	return nil
}

// build compiles the sides: a program each, so that neither carries the other. What runs is a copy, as an
// installation is one: a kernel maps a file fresh from the linker in pieces of 2 MiB.
func build(ctx context.Context, dir string, o *options) error {
	for _, side := range []string{upstreamSide, ourSide} {
		if o.only != "" && o.only != side {
			continue
		}
		linked := filepath.Join(dir, side+".linked")
		command := exec.CommandContext(ctx, "go", "build", "-o", linked, "github.com/quaymaster/quaymaster/bench/race/"+side)
		if text, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", side, err, text)
		}
		if text, err := exec.CommandContext(ctx, "cp", linked, filepath.Join(dir, side)).CombinedOutput(); err != nil {
			return fmt.Errorf("copy %s: %w: %s", side, err, text)
		}
	}
	return nil
}

func choose(o *options) ([]*work.Scenario, error) {
	names := strings.Split(o.scenarios, ",")
	if o.scenarios == "all" {
		names = work.Names()
	}
	for _, mode := range strings.Split(o.modes, ",") {
		if !slices.Contains([]string{work.ModeHTTPS, work.ModeDeployment, work.ModeGo}, mode) {
			return nil, fmt.Errorf("no mode %q: there are %s, %s, %s", mode, work.ModeHTTPS, work.ModeDeployment, work.ModeGo)
		}
	}
	if o.only != "" && o.only != upstreamSide && o.only != ourSide {
		return nil, fmt.Errorf("no side %q: there are %s and %s", o.only, upstreamSide, ourSide)
	}
	var chosen []*work.Scenario
	for _, name := range names {
		found, err := work.Find(name)
		if err != nil {
			return nil, err
		}
		s := *found
		if o.nodes > 0 {
			s.Nodes = o.nodes
		}
		if o.pods > 0 {
			s.Before = s.Before * o.pods / s.Pods
			s.Pods = o.pods
		}
		chosen = append(chosen, &s)
	}
	return chosen, nil
}
