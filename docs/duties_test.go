package docs_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const agentFolder = "../runtime/agent"

// dutyFolder is the folder of a package as agent-duties.md names it.
func dutyFolder(name string) string {
	switch {
	case name == "agent":
		return agentFolder
	case strings.Contains(name, "/"):
		return filepath.Join("..", name)
	}
	return filepath.Join(agentFolder, name)
}

// TestAgentDuties holds the tables of agent-duties.md to the code: each package and test is there, each duty has both, and no
// package of the agent is left out.
func TestAgentDuties(t *testing.T) {
	data, err := os.ReadFile("agent-duties.md")
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	rows := 0
	for _, line := range strings.Split(string(data), "\n") {
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if !strings.HasPrefix(line, "| ") || len(cells) < 2 || strings.HasSuffix(line, "| test |") {
			continue
		}
		rows++
		tests := quoted.FindAllStringSubmatch(cells[len(cells)-1], -1)
		found := 0
		for _, m := range tests {
			name, test, ok := strings.Cut(m[1], ".")
			if !ok || !strings.HasPrefix(test, "Test") && !strings.HasPrefix(test, "Fuzz") {
				continue
			}
			found++
			if !hasTest(source(t, dutyFolder(name), "_test.go"), test) {
				t.Errorf("%s: no %s in %s", strings.TrimSpace(cells[0]), test, dutyFolder(name))
			}
		}
		if found == 0 {
			t.Errorf("no test shows: %s", strings.TrimSpace(cells[0]))
		}
		if len(cells) == 2 {
			continue // of bad input
		}
		for _, m := range quoted.FindAllStringSubmatch(cells[1], -1) {
			named[m[1]] = true
			if source(t, dutyFolder(m[1]), ".go") == "" {
				t.Errorf("%s: no package %s", strings.TrimSpace(cells[0]), m[1])
			}
		}
	}
	if rows < 40 {
		t.Fatalf("found %d duties: the check would mean nothing", rows)
	}
	folders, err := os.ReadDir(agentFolder)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range folders {
		if !f.IsDir() || named[f.Name()] || strings.HasSuffix(f.Name(), "test") || !slices.ContainsFunc(goFiles(t, filepath.Join(agentFolder, f.Name())), func(name string) bool { return !strings.HasSuffix(name, "_test.go") }) {
			continue
		}
		t.Errorf("package runtime/agent/%s has no duty in agent-duties.md", f.Name())
	}
}

func goFiles(t *testing.T, folder string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}
