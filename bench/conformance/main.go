// Conformance runs upstream's own conformance tests, unmodified, against a
// running engine with simulated nodes, or with a node of real containers, and
// compares with what was recorded.
//
//	conformance                        every test that is not left out
//	conformance -node                  the same on a real node
//	conformance -focus 'sig-auth'      those whose name matches
//	conformance -update                record the outcomes
//
// It fails when a test that was recorded as passed does not pass.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
)

type options struct {
	render     bool
	node       bool
	focus      *regexp.Regexp
	all        bool
	update     bool
	kubeconfig string
	root       string
	procs      int
	nodes      int
	timeout    time.Duration
	keep       bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := 0
	if err := run(ctx, os.Args[1:], os.Stdout, &code); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "conformance:", err)
		}
		code = 1
	}
	stop()
	os.Exit(code)
}

func parse(args []string) (options, error) {
	var o options
	var focus string
	flags := flag.NewFlagSet("conformance", flag.ContinueOnError)
	flags.BoolVar(&o.node, "node", false, "run on a node with containerd and real containers, which needs root; without it nodes are simulated")
	flags.StringVar(&focus, "focus", "", "run only tests whose name matches this regular expression, such as sig-auth")
	flags.BoolVar(&o.all, "all", false, "run also what is left out; it is not recorded")
	flags.BoolVar(&o.update, "update", false, "record the outcomes in docs/conformance.txt and docs/conformance.md")
	flags.BoolVar(&o.render, "render", false, "run nothing: write the records and the page anew, after a change of what is left out")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "run against this cluster instead of an engine made for the run")
	flags.StringVar(&o.root, "root", "../..", "the repository")
	flags.IntVar(&o.procs, "procs", 6, "how many tests to run at a time; those that upstream marks as serial run alone")
	flags.IntVar(&o.nodes, "nodes", 4, "simulated nodes of the engine")
	flags.DurationVar(&o.timeout, "timeout", 2*time.Hour, "for all tests together")
	flags.BoolVar(&o.keep, "keep", false, "keep the folder with the reports and the engine's log, and say where it is")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q; see -help", flags.Arg(0))
	}
	var err error
	if o.focus, err = regexp.Compile(focus); err != nil {
		return o, fmt.Errorf("-focus: %w", err)
	}
	o.root, err = filepath.Abs(o.root)
	return o, err
}

// run builds what is needed and runs the tests, on a real node in namespaces of their own: code is then
// that of the process there.
func run(ctx context.Context, args []string, out io.Writer, code *int) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if o.render {
		return render(o.root)
	}
	b, module, err := paths(o.root)
	if err != nil {
		return err
	}
	if !containerdtest.IsInside() {
		if b, err = build(ctx, o.root, o.node); err != nil {
			return err
		}
	}
	if !o.node {
		return inside(ctx, o, b, out)
	}
	if b.upstream, err = sources(ctx, module); err != nil {
		return err
	}
	*code = containerdtest.Inside(func() int {
		if err := inside(ctx, o, b, out); err != nil {
			fmt.Fprintln(os.Stderr, "conformance:", err)
			return 1
		}
		return 0
	})
	return nil
}

// inside runs the tests on a cluster that it makes.
func inside(ctx context.Context, o options, b binaries, out io.Writer) (err error) {
	tests, err := o.tests()
	if err != nil {
		return err
	}
	record, err := readRecord(o.recordFile())
	if err != nil {
		return err
	}
	var chosen []test
	for _, t := range tests {
		if o.focus.MatchString(t.name) && (o.all || t.leftOut == "") {
			chosen = append(chosen, t)
		}
	}
	if len(chosen) == 0 {
		return fmt.Errorf("no test to run matches %q: of those that match, all are left out, see docs/conformance.md", o.focus)
	}
	dir, err := os.MkdirTemp("", "conformance")
	if err != nil {
		return err
	}
	defer func() {
		if o.keep {
			fmt.Fprintln(out, "reports and logs are in", dir)
		} else {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if o.kubeconfig == "" {
		var c *cluster
		if o.node {
			c, err = real(ctx, b, dir)
		} else {
			c, err = simulated(ctx, b, dir, o.nodes)
		}
		if err != nil {
			return err
		}
		defer c.stop()
		o.kubeconfig = c.kubeconfig
	}
	outcomes, err := runTests(ctx, o, b, dir, chosen)
	if err != nil {
		return err
	}
	report(out, tests, chosen, outcomes)
	if o.update {
		record.merge(tests, outcomes)
		if err := os.WriteFile(o.recordFile(), record.encode(tests), 0o644); err != nil {
			return err
		}
		return writePage(o.root)
	}
	return record.compare(out, outcomes)
}

// tests are upstream's, with the reasons of those that are left out.
func (o options) tests() ([]test, error) {
	if o.node {
		return conformanceTests(leftOutNode)
	}
	return conformanceTests(leftOutSimulated)
}

func (o options) recordFile() string {
	if o.node {
		return filepath.Join(o.root, "docs", "conformance-node.txt")
	}
	return filepath.Join(o.root, "docs", "conformance.txt")
}

func pageFile(root string) string { return filepath.Join(root, "docs", "conformance.md") }

// writePage writes docs/conformance.md from both records.
func writePage(root string) error {
	content, err := pageOf(root)
	if err != nil {
		return err
	}
	return os.WriteFile(pageFile(root), content, 0o644)
}

// render writes both records and the page as the lists of what is left out make them.
func render(root string) error {
	for _, node := range []bool{false, true} {
		o := options{node: node, root: root}
		tests, err := o.tests()
		if err != nil {
			return err
		}
		r, err := readRecord(o.recordFile())
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.recordFile(), r.encode(tests), 0o644); err != nil {
			return err
		}
	}
	return writePage(root)
}

func pageOf(root string) ([]byte, error) {
	var parts []part
	for _, node := range []bool{false, true} {
		o := options{node: node, root: root}
		tests, err := o.tests()
		if err != nil {
			return nil, err
		}
		r, err := readRecord(o.recordFile())
		if err != nil {
			return nil, err
		}
		parts = append(parts, part{tests, r})
	}
	return page(parts[0], parts[1]), nil
}
