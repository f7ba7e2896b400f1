// Command openb schedules the openb GPU cluster trace with the scheduler's own
// decisions and reports how much of the GPUs can be given away, beside the
// results published with the trace (USENIX ATC 2023, "Beware of Fragmentation").
//
//	go run ./bench/openb -data DIR -svg docs/openb.svg
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

func main() {
	data := flag.String("data", "", "directory with openb_node_list_all_node.csv and openb_pod_list_default.csv")
	rounds := flag.Int("rounds", 10, "orders of arrival; seeds 42, 43, …")
	only := flag.String("score", strings.Join(scoreNames(), ","), "scores to run, with commas between")
	svg := flag.String("svg", "", "file for the plot")
	flag.Parse()
	if err := report(context.Background(), *data, *rounds, strings.Split(*only, ","), *svg); err != nil {
		fmt.Fprintln(os.Stderr, "openb:", err)
		os.Exit(1)
	}
}

const firstSeed = 42

func report(ctx context.Context, dir string, rounds int, scores []string, svg string) error {
	if dir == "" {
		return fmt.Errorf("-data is needed: the directory of the trace")
	}
	t, err := readTrace(dir)
	if err != nil {
		return err
	}
	published, err := readPublished()
	if err != nil {
		return err
	}
	fmt.Printf("%d nodes, %d GPUs, %d pods of %d shapes\n", len(t.nodes), t.gpus, len(t.pods), len(t.shapes))
	var ours []curve
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "score\tGPUs allocated at 90 %\tat 100 %\tat 130 %\tfragments at 100 %\tat 130 %\tdecisions/CPU-s\t")
	line := func(c curve, rate string) {
		fmt.Fprintf(out, "%s\t%.2f %%\t%.2f %%\t%.2f %%\t%.2f %%\t%.2f %%\t%s\t\n", c.name, c.allocated[90/step], c.allocated[100/step], c.allocated[last], c.fragments[100/step], c.fragments[last], rate)
	}
	for _, name := range scores {
		if !slices.Contains(scoreNames(), name) {
			return fmt.Errorf("no score %q: there are %s", name, strings.Join(scoreNames(), ", "))
		}
		sum := curve{name: name}
		decisions, seconds := 0, 0.0
		for i := range rounds {
			r, err := inflate(ctx, t, name, firstSeed+uint64(i))
			if err != nil {
				return err
			}
			sum.add(&r.curve, 1/float64(rounds))
			decisions += r.decisions
			seconds += r.cpu.Seconds()
		}
		ours = append(ours, sum)
		line(sum, fmt.Sprintf("%.0f", float64(decisions)/seconds))
	}
	for _, c := range published {
		line(c, "-")
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if svg == "" {
		return nil
	}
	return os.WriteFile(svg, plot(ours, published), 0o644)
}
