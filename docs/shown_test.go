package docs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	testFunc = regexp.MustCompile(`(?m)^func (Test\w+|Benchmark\w+|Fuzz\w+)\(`)
	quoted   = regexp.MustCompile("`([^`]+)`")
)

// promise is a row of a table whose last columns are a package and its tests; those of
// another package have its path before them, as in core/scheduler.TestCrowd.
type promise struct {
	where, text, folder string
	tests               []string
}

// promises reads the tables with the columns promise, package and test.
func promises(t *testing.T) []promise {
	t.Helper()
	files, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	var out []promise
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		inside := false
		for i, line := range strings.Split(string(data), "\n") {
			if !strings.HasPrefix(line, "|") {
				inside = false
				continue
			}
			cells := strings.Split(strings.Trim(line, "|"), " | ")
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			switch {
			case strings.Join(cells, "|") == "promise|package|test":
				inside = true
			case !inside || strings.HasPrefix(line, "|--"):
			case len(cells) != 3:
				t.Errorf("%s:%d: a row of promises has three cells: %s", file, i+1, line)
			default:
				p := promise{where: fmt.Sprintf("%s:%d", file, i+1), text: cells[0], folder: strings.Trim(cells[1], "`")}
				for _, m := range quoted.FindAllStringSubmatch(cells[2], -1) {
					p.tests = append(p.tests, m[1])
				}
				out = append(out, p)
			}
		}
	}
	return out
}

// TestPromisesAreShown holds each row of the tables to tests that exist.
func TestPromisesAreShown(t *testing.T) {
	all := promises(t)
	if len(all) < 30 {
		t.Fatalf("found %d rows: the check would mean nothing", len(all))
	}
	for _, p := range all {
		if source(t, filepath.Join("..", p.folder), ".go") == "" {
			t.Errorf("%s: there is no package %s", p.where, p.folder)
		}
		if len(p.tests) == 0 {
			t.Errorf("%s: %q has no test", p.where, p.text)
		}
		for _, test := range p.tests {
			folder := p.folder
			if path, name, other := strings.Cut(test, ".Test"); other {
				folder, test = path, "Test"+name
			}
			if !hasTest(source(t, filepath.Join("..", folder), "_test.go"), test) {
				t.Errorf("%s: package %s has no test %s", p.where, folder, test)
			}
		}
	}
}

// TestPredicatesAndPrioritiesAreShown: no predicate or priority of Kubernetes is left out
// of the tables of scheduler-shown.md.
func TestPredicatesAndPrioritiesAreShown(t *testing.T) {
	var rows strings.Builder
	for _, p := range promises(t) {
		if strings.HasPrefix(p.where, "scheduler-shown.md:") {
			rows.WriteString(p.text + "\n")
		}
	}
	for _, name := range []string{
		"PodFitsHostPorts", "PodFitsPorts", "PodFitsHost", "HostName", "PodFitsResources", "MatchNodeSelector", "PodSelectorMatches", "required node affinity",
		"NoVolumeZoneConflict", "NoDiskConflict", "MaxCSIVolumeCount", "MaxEBSVolumeCount", "MaxGCEPDVolumeCount", "MaxAzureDiskVolumeCount", "MaxCinderVolumeCount",
		"CheckNodeMemoryPressure", "CheckNodePIDPressure", "CheckNodeDiskPressure", "CheckNodeCondition", "PodToleratesNodeTaints", "CheckVolumeBinding",
		"required pod affinity and anti-affinity", "EvenPodsSpread hard constraints",
		"SelectorSpread", "ServiceSpreading", "InterPodAffinity", "LeastRequested", "MostRequested", "RequestedToCapacityRatio", "BalancedResourceAllocation",
		"NodePreferAvoidPods", "NodeAffinity", "TaintToleration", "ImageLocality", "EvenPodsSpread: ", "EqualPriority",
	} {
		if !strings.Contains(rows.String(), name) {
			t.Errorf("scheduler-shown.md has no row of %s", name)
		}
	}
}

// source is all that a folder's files with an ending hold; "" where there is none.
func source(t *testing.T, folder, ending string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*"+ending))
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(data)
	}
	return all.String()
}

// hasTest tells whether a package's tests have one by its name, or NAME/PART.
func hasTest(text, test string) bool {
	name, part, _ := strings.Cut(test, "/")
	return slices.ContainsFunc(testFunc.FindAllStringSubmatch(text, -1), func(m []string) bool { return m[1] == name }) &&
		(part == "" || strings.Contains(text, fmt.Sprintf("%q", part)))
}
