// Package demo is the guided tour: it drives a real engine and real agents, each
// a process of its own, through HTTPS, and believes only what it has seen.
package demo

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/restmapper"

	"github.com/quaymaster/quaymaster/core/api"
)

// Options of a tour.
type Options struct {
	// Binary is the quaymaster executable.
	Binary string
	// DataDir of the engine; "" is a temporary one, removed at the end.
	DataDir string
	// Keep leaves everything running until the context ends.
	Keep bool
	// Out takes the text of the tour, at most 80 columns wide.
	Out io.Writer
}

// stepTime bounds one step, on a machine that is busy with much else. A tour takes well under 20 s in all.
const stepTime = 2 * time.Minute

// tour is the state that the steps share.
type tour struct {
	Options
	engine     *process
	agents     []*process
	address    string // where the engine listens, kept over its restart
	kubernetes kubernetes.Interface
	dynamic    dynamic.Interface
	ours       *api.Client
	mapper     *restmapper.DeferredDiscoveryRESTMapper
}

type step struct {
	title string
	run   func(*tour, context.Context) error
}

var steps = []step{
	{"Start the engine on Badger", (*tour).startEngine},
	{"Join three simulated nodes and one that runs WebAssembly", (*tour).joinNodes},
	{"A Deployment that asks for an SSD", (*tour).nodeSelector},
	{"Taints and tolerations", (*tour).taints},
	{"A real workload: a WASI program as a pod", (*tour).workload},
	{"A scheduling policy in WebAssembly, replaced while pods arrive", (*tour).wasmPolicy},
	{"An admission policy in Rego, edited in place", (*tour).regoPolicy},
	{"Why did that pod go there?", (*tour).explain},
	{"kill -9 the engine, start it again on the same data", (*tour).crash},
}

// Run takes the tour. Its error names the step that failed.
func Run(ctx context.Context, options Options) (err error) {
	t := &tour{Options: options}
	if t.DataDir == "" {
		t.DataDir, err = os.MkdirTemp("", "quaymaster-demo-")
		if err != nil {
			return err
		}
		defer func() {
			if err == nil {
				os.RemoveAll(t.DataDir)
			}
		}()
	}
	for _, dir := range []string{t.policyDir(), t.logDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	defer t.end()
	begin := time.Now()
	for i, s := range steps {
		fmt.Fprintf(t.Out, "\n%d/%d  %s\n", i+1, len(steps), s.title)
		stepBegin := time.Now()
		stepCtx, cancel := context.WithTimeout(ctx, stepTime)
		err := s.run(t, stepCtx)
		cancel()
		if err != nil {
			return fmt.Errorf("step %d (%s): %w\nlogs and data are kept in %s", i+1, s.title, err, t.DataDir)
		}
		t.say("done in %s", since(stepBegin))
	}
	fmt.Fprintf(t.Out, "\nEvery step happened, in %s.\n", since(begin))
	if options.Keep {
		fmt.Fprintf(t.Out, "\nIt is still running; end it with Ctrl-C. To look around:\n  export KUBECONFIG=%s\n  quaymaster kubectl get pods -A -o wide\n", t.kubeconfig())
		<-ctx.Done()
	}
	return nil
}

func (t *tour) policyDir() string  { return filepath.Join(t.DataDir, "policies") }
func (t *tour) logDir() string     { return filepath.Join(t.DataDir, "logs") }
func (t *tour) kubeconfig() string { return filepath.Join(t.DataDir, "kubeconfig") }

// end stops what the tour started, agents first.
func (t *tour) end() {
	for _, p := range append(t.agents, t.engine) {
		if p == nil {
			continue
		}
		if err := p.stop(); err != nil {
			fmt.Fprintln(t.Out, "     ", err)
		}
	}
}

// say prints an indented line, wrapped at 80 columns.
func (t *tour) say(format string, args ...any) {
	const width, indent = 80, "     "
	line := indent
	for _, word := range strings.Fields(fmt.Sprintf(format, args...)) {
		if len(line)+len(word) >= width && strings.TrimSpace(line) != "" {
			fmt.Fprintln(t.Out, line)
			line = indent + "  "
		}
		if strings.TrimSpace(line) == "" {
			line += word
		} else {
			line += " " + word
		}
	}
	fmt.Fprintln(t.Out, line)
}

func since(t time.Time) string {
	d := time.Since(t)
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}
