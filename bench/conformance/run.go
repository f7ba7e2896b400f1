package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/onsi/ginkgo/v2/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// address is where a pod could reach the engine, as the service kubernetes must
// say; the loopback on a machine without a network.
func address() string {
	if ip, err := utilnet.ChooseHostInterface(); err == nil {
		return ip.String()
	}
	return "127.0.0.1"
}

// outcome of a test.
type outcome struct {
	passed bool
	why    string // the first lines of the failure
	took   time.Duration
}

// runTests runs upstream's binary under ginkgo, which spreads the tests over
// processes, and returns the outcomes by name. A test without one was not run.
func runTests(ctx context.Context, o options, b binaries, dir string, chosen []test) (map[string]outcome, error) {
	args := []string{
		"--procs=" + strconv.Itoa(o.procs), "--timeout=" + o.timeout.String(), "--output-dir=" + dir, "--json-report=report.json",
		"--keep-going", "--no-color", "--succinct",
	}
	for _, t := range chosen {
		// Ginkgo matches the name with the name of the suite before it.
		args = append(args, "--focus= "+regexp.QuoteMeta(t.name)+"$")
	}
	args = append(args, b.e2e, "--", "--kubeconfig="+o.kubeconfig, "--kubectl-path="+b.kubectl, "--provider=skeleton",
		"--dump-logs-on-failure=false", "--disable-log-dump", "--report-dir="+dir, "--e2e-output-dir="+dir)
	command := exec.CommandContext(ctx, b.ginkgo, args...)
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	command.WaitDelay = time.Minute
	log, err := os.Create(filepath.Join(dir, "e2e.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	command.Stdout, command.Stderr = log, log
	ran := command.Run() // failed tests fail it: the report says which
	content, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		return nil, fmt.Errorf("upstream's binary left no report: %w\n%s", errors.Join(ran, err), tail(log.Name()))
	}
	outcomes, err := readReport(content)
	if err == nil && len(outcomes) == 0 {
		err = fmt.Errorf("upstream's binary ran no test\n%s", tail(log.Name()))
	}
	return outcomes, err
}

// tail is the end of a file, for a message.
func tail(path string) []byte {
	content, err := os.ReadFile(path)
	if err != nil {
		return []byte(err.Error())
	}
	return content[max(0, len(content)-2000):]
}

// readReport reads ginkgo's JSON.
func readReport(content []byte) (map[string]outcome, error) {
	var suites []types.Report
	if err := json.Unmarshal(content, &suites); err != nil {
		return nil, fmt.Errorf("ginkgo's report: %w", err)
	}
	outcomes := map[string]outcome{}
	for _, suite := range suites {
		for _, spec := range suite.SpecReports {
			if spec.LeafNodeType != types.NodeTypeIt {
				if spec.Failed() {
					return nil, fmt.Errorf("%s failed: %s", spec.LeafNodeType, spec.FailureMessage())
				}
				continue
			}
			if spec.State.Is(types.SpecStateSkipped|types.SpecStatePending) && spec.FailureMessage() == "" {
				continue // not in focus
			}
			outcomes[spec.FullText()] = outcome{
				passed: spec.State == types.SpecStatePassed, took: spec.RunTime,
				why: firstLines(spec.FailureMessage()),
			}
		}
	}
	return outcomes, nil
}

func firstLines(message string) string {
	lines := strings.FieldsFunc(message, func(r rune) bool { return r == '\n' })
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	text := strings.Join(lines[:min(len(lines), 6)], " | ")
	return text[:min(len(text), 700)]
}
