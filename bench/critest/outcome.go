package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	docs    = "../../docs"
	passed  = "passed"
	failed  = "failed"
	leftOut = "left out" // by the test itself, where the backend or the machine says that it has not what is tested
	notRun  = "not run"
)

// report is what is read of ginkgo's.
type report struct {
	SpecReports []struct {
		ContainerHierarchyTexts    []string
		LeafNodeType, LeafNodeText string
		State                      string
		Failure                    struct{ Message string }
	}
}

// decodeReport returns the state of each test that ginkgo's report has as run or left out by itself.
func decodeReport(content []byte) (map[string]string, error) {
	var reports []report
	if err := json.Unmarshal(content, &reports); err != nil {
		return nil, fmt.Errorf("read critest's report: %w", err)
	}
	out := map[string]string{}
	for _, r := range reports {
		for _, s := range r.SpecReports {
			if s.LeafNodeType != "It" {
				if s.State != passed && s.State != "skipped" {
					return nil, fmt.Errorf("critest's %s %s: %s", s.LeafNodeType, s.State, s.Failure.Message)
				}
				continue
			}
			state := failed
			switch {
			case s.State == "pending", s.State == "skipped" && s.Failure.Message == "": // by -focus or -skip
				continue
			case s.State == "skipped":
				state = leftOut
			case s.State == passed:
				state = passed
			}
			out[strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeText), " ")] = state
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no test ran")
	}
	return out, nil
}

// record is the state of each test on each backend, by the test's name.
type record map[string]map[string]string

// readRecord reads lines of a state for each of the backends and a test's name, with tabs between them.
func readRecord(dir string) (record, error) {
	content, err := os.ReadFile(recordFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, nil
	}
	if err != nil {
		return nil, err
	}
	return decode(content)
}

func recordFile(dir string) string { return filepath.Join(dir, "critest.txt") }

func decode(content []byte) (record, error) {
	r := record{}
	for i, line := range strings.Split(string(content), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Split(line, "\t")
		if len(fields) != len(backends)+1 {
			return nil, fmt.Errorf("critest.txt, line %d: %q has not %d states and a name", i+1, line, len(backends))
		}
		r[fields[len(backends)]] = map[string]string{}
		for j, b := range backends {
			if !slices.Contains([]string{passed, failed, leftOut, notRun}, fields[j]) {
				return nil, fmt.Errorf("critest.txt, line %d: %q is no state", i+1, fields[j])
			}
			r[fields[len(backends)]][b] = fields[j]
		}
	}
	return r, nil
}

func (r record) encode() []byte {
	var out bytes.Buffer
	fmt.Fprintf(&out, "# Outcome of each of critest's tests, written with -update.\n# %s\ttest\n", strings.Join(backends, "\t"))
	for _, name := range slices.Sorted(maps.Keys(r)) {
		for _, b := range backends {
			fmt.Fprintf(&out, "%s\t", r.state(name, b))
		}
		fmt.Fprintln(&out, name)
	}
	return out.Bytes()
}

func (r record) state(name, backend string) string {
	if s := r[name][backend]; s != "" {
		return s
	}
	return notRun
}

// merge takes a backend's outcomes over.
func (r record) merge(backend string, outcomes map[string]string) {
	for name, states := range r {
		delete(states, backend)
		if len(states) == 0 {
			delete(r, name)
		}
	}
	for name, state := range outcomes {
		if r[name] == nil {
			r[name] = map[string]string{}
		}
		r[name][backend] = state
	}
}

// write puts the outcomes into the record and makes its page anew.
func write(dir, backend string, outcomes map[string]string) error {
	r, err := readRecord(dir)
	if err != nil {
		return err
	}
	r.merge(backend, outcomes)
	if err := os.WriteFile(recordFile(dir), r.encode(), 0o644); err != nil {
		return err
	}
	reasons, err := readReasons()
	if err != nil {
		return err
	}
	page, err := page(r, reasons)
	if err != nil {
		return err
	}
	return os.WriteFile(pageFile(dir), page, 0o644)
}

// compare fails where a test of the record does not pass any more, and, where all were to run, where it did not run. It tells
// of those that pass for the first time.
func compare(out io.Writer, dir, backend string, outcomes map[string]string, all bool) error {
	r, err := readRecord(dir)
	if err != nil {
		return err
	}
	count := map[string]int{}
	var lost []string
	for name, state := range outcomes {
		count[state]++
		if was := r.state(name, backend); state == passed && was != passed {
			fmt.Fprintf(out, "passes, and is recorded as %s: %s\n", was, name)
		} else if state != passed && (was == passed || r[name] == nil) {
			lost = append(lost, fmt.Sprintf("%s: %s", state, name))
		}
	}
	for name := range r {
		if all && outcomes[name] == "" && r.state(name, backend) == passed {
			lost = append(lost, fmt.Sprintf("%s: %s", notRun, name))
		}
	}
	fmt.Fprintf(out, "%s: %d passed, %d failed, %d left out\n", backend, count[passed], count[failed], count[leftOut])
	if len(lost) > 0 {
		slices.Sort(lost)
		return fmt.Errorf("%d tests do not pass that passed before or are new:\n  %s", len(lost), strings.Join(lost, "\n  "))
	}
	return nil
}
