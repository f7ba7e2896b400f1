// Package matrix prints a decision as a table of nodes by plugins that fits a
// terminal of 80 columns.
package matrix

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
)

// maxNodes is how many rows are printed of either kind, feasible and refused.
const maxNodes = 20

// Write prints the decision: what was taken, what would be chosen now, then the
// weighted score of each plugin on each feasible node and the first refusal of
// each other node. Every line starts with indent.
func Write(w io.Writer, d *decisionv1alpha1.Decision, indent string) error {
	p := &printer{w: w, indent: indent}
	p.line("pod %s/%s, scheduler %s", d.Namespace, d.Name, d.SchedulerName)
	if taken := d.Taken; taken != nil {
		if taken.Node != "" {
			p.line("taken:  %s with %d points; %d of %d nodes were feasible", taken.Node, taken.Score, taken.Feasible, taken.Evaluated)
		} else {
			p.line("taken:  none: %s", taken.Message)
		}
		p.policies(taken.Policies)
	}
	if d.Node != "" {
		p.line("now:    %s%s", d.Node, margin(d.Nodes))
	} else {
		p.line("now:    none: %s", d.Message)
	}
	p.policies(d.Policies)
	p.remedies(d)
	p.group(d.Group)
	feasible, refused := split(d.Nodes)
	if err := p.scores(feasible); err != nil {
		return err
	}
	p.refusals(refused)
	return p.err
}

// printer remembers the first error, so that the text reads plainly.
type printer struct {
	w      io.Writer
	indent string
	err    error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, p.indent+format+"\n", args...)
	}
}

func (p *printer) policies(versions []decisionv1alpha1.PolicyVersion) {
	for _, v := range versions {
		p.line("        with policy %s, generation %d, %.19s", v.Name, v.Generation, v.Digest)
	}
}

// group is how far the pods are that get nodes at once.
func (p *printer) group(g *decisionv1alpha1.GroupVerdict) {
	if g == nil {
		return
	}
	kind := "gang"
	if g.PodGroup {
		kind = "pod group"
	}
	p.line("%s %s: %d pods have nodes, %d more needed at once", kind, g.Name, g.Placed, g.Needed)
	if g.Message != "" {
		p.line("  waits:    %s", g.Message)
	}
	if g.Deadline != nil {
		p.line("  deadline: %s", g.Deadline.UTC().Format(time.RFC3339))
	}
	if g.Domain != "" {
		p.line("  within:   %s", g.Domain)
	}
	for _, m := range g.Members[:min(len(g.Members), maxNodes)] {
		if m.Node != "" {
			p.line("  %s would go to %s", m.Name, m.Node)
			continue
		}
		by := ""
		if len(m.Filters) > 0 {
			by = ", refused by " + strings.Join(m.Filters, ", ")
		}
		p.line("  %s has none%s:", m.Name, by)
		p.line("    %s", m.Message)
	}
	if more := len(g.Members) - maxNodes; more > 0 {
		p.line("  … %d more pods", more)
	}
}

// remedies are what would let a pod run that no node takes.
func (p *printer) remedies(d *decisionv1alpha1.Decision) {
	if d.Preemption != nil {
		p.line("preempt on %s: %s", d.Preemption.Node, victims(d.Preemption))
	}
	for i, change := range d.Changes {
		if i == 0 {
			p.line("it would run with")
		} else {
			p.line("or with")
		}
		for _, step := range change.Steps {
			p.line("  %s: %s", step.Object, step.Action)
		}
		p.line("  on %s", change.Node)
	}
}

func victims(v *decisionv1alpha1.PreemptionVerdict) string {
	text := "evict " + strings.Join(v.Victims, ", ")
	if v.Violations > 0 {
		text += fmt.Sprintf("; %d more than disruption budgets allow", v.Violations)
	}
	return text
}

func (p *printer) scores(nodes []decisionv1alpha1.NodeVerdict) error {
	if len(nodes) == 0 || p.err != nil {
		return p.err
	}
	letters := make([]string, len(nodes[0].Scores))
	for i, score := range nodes[0].Scores {
		letters[i] = string(rune('a' + i))
		p.line("  %s = %s", letters[i], score.Plugin)
	}
	table := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(table, "%s  NODE\tTOTAL\t%s\t\n", p.indent, strings.Join(letters, "\t"))
	for _, node := range nodes[:min(len(nodes), maxNodes)] {
		fmt.Fprintf(table, "%s  %s\t%d\t", p.indent, node.Name, node.Total)
		for _, score := range node.Scores {
			fmt.Fprintf(table, "%d\t", score.Weighted)
		}
		fmt.Fprintln(table)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	p.more(len(nodes), "feasible")
	return nil
}

func (p *printer) refusals(nodes []decisionv1alpha1.NodeVerdict) {
	for _, node := range nodes[:min(len(nodes), maxNodes)] {
		if len(node.Failures) == 0 {
			p.line("  %s refused by %s:", node.Name, node.Filter.Plugin)
			p.line("    %s", node.Filter.Reason)
			continue
		}
		p.line("  %s refused by", node.Name)
		for _, f := range node.Failures {
			p.line("    %s: %s", f.Plugin, f.Reason)
			if f.Wanted != "" {
				p.line("      wants %s", f.Wanted)
				p.line("      finds %s", f.Found)
			}
		}
		if v := node.Preemption; v != nil && v.Reason != "" {
			p.line("    preemption: %s", v.Reason)
		} else if v != nil {
			p.line("    preemption: %s", victims(v))
		}
	}
	p.more(len(nodes), "refused")
}

func (p *printer) more(n int, kind string) {
	if n > maxNodes {
		p.line("  … and %d more %s nodes; -o json has them all", n-maxNodes, kind)
	}
}

func split(nodes []decisionv1alpha1.NodeVerdict) (feasible, refused []decisionv1alpha1.NodeVerdict) {
	for _, node := range nodes {
		if node.Filter == nil {
			feasible = append(feasible, node)
		} else {
			refused = append(refused, node)
		}
	}
	return feasible, refused
}

func margin(nodes []decisionv1alpha1.NodeVerdict) string {
	feasible, _ := split(nodes)
	switch {
	case len(feasible) < 2:
		return ", the only feasible node"
	case feasible[0].Total == feasible[1].Total:
		return fmt.Sprintf(", tied with %s and chosen by the seeded tie-break", feasible[1].Name)
	default:
		return fmt.Sprintf(", %d points before %s", feasible[0].Total-feasible[1].Total, feasible[1].Name)
	}
}
