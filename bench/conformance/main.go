// Conformance runs upstream's own conformance tests, unmodified, against a
// running engine with simulated nodes, and compares with what was recorded.
//
//	conformance                        every test that is not left out
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
)

type options struct {
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
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "conformance:", err)
		}
		stop()
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	var focus string
	flags := flag.NewFlagSet("conformance", flag.ContinueOnError)
	flags.StringVar(&focus, "focus", "", "run only tests whose name matches this regular expression, such as sig-auth")
	flags.BoolVar(&o.all, "all", false, "run also what is left out; it is not recorded")
	flags.BoolVar(&o.update, "update", false, "record the outcomes in docs/conformance.txt and docs/conformance.md")
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

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	tests, err := conformanceTests()
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
	binaries, err := build(ctx, o.root)
	if err != nil {
		return err
	}
	if o.kubeconfig == "" {
		engine, err := start(ctx, binaries.quaymaster, dir, o.nodes)
		if err != nil {
			return err
		}
		defer engine.stop()
		o.kubeconfig = engine.kubeconfig
	}
	outcomes, err := runTests(ctx, o, binaries, dir, chosen)
	if err != nil {
		return err
	}
	report(out, tests, chosen, outcomes)
	if o.update {
		record.merge(tests, outcomes)
		if err := os.WriteFile(o.recordFile(), record.encode(tests), 0o644); err != nil {
			return err
		}
		return os.WriteFile(o.pageFile(), page(tests, record), 0o644)
	}
	return record.compare(out, outcomes)
}

func (o options) recordFile() string { return filepath.Join(o.root, "docs", "conformance.txt") }
func (o options) pageFile() string   { return filepath.Join(o.root, "docs", "conformance.md") }
