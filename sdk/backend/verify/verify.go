// Package verify is the conformance kit of backends: it asks one for all that an
// agent will, and says where it does otherwise. The suite of networks is here;
// that of container runtimes is the agent's own, in the same terms.
//
//	func TestNetwork(t *testing.T) { verify.Network(verify.Testing(t), target) }
//
// "quaymaster backend verify" runs the same on a program.
package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// T is where a suite tells of failures: a test of Go's, or a report for people.
type T interface {
	Helper()
	Name() string
	Error(args ...any)
	Errorf(format string, args ...any)
	Fatal(args ...any) // does not return
	Fatalf(format string, args ...any)
	Cleanup(func())
	TempDir() string
	Context() context.Context
	// Group runs a part; its failures are the whole's.
	Group(name string, fn func(T))
}

// Testing makes a T of a test.
func Testing(t *testing.T) T { return inTest{t} }

type inTest struct{ *testing.T }

func (t inTest) Group(name string, fn func(T)) {
	t.Run(name, func(t *testing.T) { fn(inTest{t}) })
}

// Report runs a suite and prints a line a part. Its error says how many parts failed.
func Report(ctx context.Context, out io.Writer, suite func(T)) error {
	root := &report{ctx: ctx, out: out}
	root.run(suite)
	switch {
	case root.parts == 0:
		return errors.Join(errors.New("no part of the suite ran"), errors.New(strings.Join(root.failures, "; ")))
	case root.failed > 0 || len(root.failures) > 0:
		return fmt.Errorf("%d of %d parts failed", root.failed, root.parts)
	}
	return ctx.Err()
}

// report is a T that prints.
type report struct {
	ctx      context.Context
	out      io.Writer
	name     string
	failures []string
	cleanups []func()

	parts, failed int
}

// stopped ends a part's goroutine at Fatal.
type stopped struct{}

func (r *report) run(fn func(T)) {
	guard := func(fn func()) {
		defer func() {
			if e := recover(); e != nil {
				if _, ours := e.(stopped); !ours {
					panic(e)
				}
			}
		}()
		fn()
	}
	guard(func() { fn(r) })
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		guard(r.cleanups[i])
	}
}

func (r *report) Group(name string, fn func(T)) {
	if r.ctx.Err() != nil {
		return
	}
	part := &report{ctx: r.ctx, out: r.out, name: strings.TrimPrefix(r.name+"/"+name, "/")}
	begun := time.Now()
	part.run(fn)
	r.parts++
	word := "ok"
	if len(part.failures) > 0 {
		word = "FAIL"
		r.failed++
	}
	fmt.Fprintf(r.out, "%-5s %-28s %5d ms\n", word, part.name, time.Since(begun).Milliseconds())
	for _, f := range part.failures {
		fmt.Fprintf(r.out, "      %s\n", strings.ReplaceAll(f, "\n", "\n      "))
	}
}

func (r *report) Helper()                  {}
func (r *report) Name() string             { return r.name }
func (r *report) Context() context.Context { return r.ctx }
func (r *report) Cleanup(fn func())        { r.cleanups = append(r.cleanups, fn) }
func (r *report) Error(args ...any) {
	r.failures = append(r.failures, strings.TrimSpace(fmt.Sprintln(args...)))
}

func (r *report) Errorf(format string, args ...any) { r.Error(fmt.Sprintf(format, args...)) }

func (r *report) Fatal(args ...any) {
	r.Error(args...)
	panic(stopped{})
}

func (r *report) Fatalf(format string, args ...any) { r.Fatal(fmt.Sprintf(format, args...)) }

func (r *report) TempDir() string {
	dir, err := os.MkdirTemp("", "verify")
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
