package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/quaymaster/quaymaster/bench/race/work"
)

// row is one scenario and mode with the results of both sides.
type row struct {
	scenario     *work.Scenario
	mode         string
	theirs, ours []result
}

func (r *row) add(side string, result result) {
	if side == upstreamSide {
		r.theirs = append(r.theirs, result)
	} else {
		r.ours = append(r.ours, result)
	}
}

// mean of all rounds, as one result; the peak is the largest.
func mean(list []result) (m result) {
	for _, r := range list {
		m.elapsed += r.elapsed
		m.cpu += r.cpu
		m.client += r.client
		m.pods += r.pods
		m.memory, m.anon = max(m.memory, r.memory), max(m.anon, r.anon)
	}
	return m
}

// printTable compares the means of the sides. A mode that upstream does not have
// is compared with its https.
func printTable(out io.Writer, rows []row) {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "scenario\tmode\tnodes\tpods\tupstream pods/s\tours\tratio\tupstream ms CPU/pod\tours\tratio\tclient\tclient\tupstream MiB\tours\t")
	for _, r := range rows {
		theirs := r.theirs
		for _, other := range rows {
			if len(theirs) == 0 && other.scenario.Name == r.scenario.Name && other.mode == work.ModeHTTPS {
				theirs = other.theirs
			}
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%d\t", r.scenario.Name, r.mode, r.scenario.Nodes, r.scenario.Pods)
		a, b := mean(theirs), mean(r.ours)
		pair := func(a, b float64, sides [2]bool, ratio float64, digits int) {
			for i, value := range []float64{a, b} {
				if sides[i] {
					fmt.Fprintf(table, "%.*f\t", digits, value)
				} else {
					fmt.Fprint(table, "-\t")
				}
			}
			if ratio < 0 {
				return
			}
			if sides[0] && sides[1] {
				fmt.Fprintf(table, "%.1f\t", ratio)
			} else {
				fmt.Fprint(table, "-\t")
			}
		}
		have := [2]bool{len(theirs) > 0, len(r.ours) > 0}
		pair(a.rate(), b.rate(), have, b.rate()/a.rate(), 0)
		pair(a.perPod(), b.perPod(), have, a.perPod()/b.perPod(), 3)
		pair(a.perClient(), b.perClient(), have, -1, 3)
		pair(a.memory, b.memory, have, -1, 0)
		fmt.Fprintln(table)
	}
	if err := table.Flush(); err != nil {
		fmt.Fprintln(out, err)
	}
}
