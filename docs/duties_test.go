package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const agentFolder = "../runtime/agent"

var quoted = regexp.MustCompile("`([^`]+)`")

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

// source is all that the folder's files with the ending hold; "" where there is none.
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
			test, sub, _ := strings.Cut(test, "/")
			text := source(t, dutyFolder(name), "_test.go")
			if !strings.Contains(text, "\nfunc "+test+"(") {
				t.Errorf("%s: no %s in %s", strings.TrimSpace(cells[0]), test, dutyFolder(name))
			}
			if sub != "" && !strings.Contains(text, `t.Run("`+sub+`", `) {
				t.Errorf("%s: %s in %s has no part %q", strings.TrimSpace(cells[0]), test, dutyFolder(name), sub)
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
		if !f.IsDir() || named[f.Name()] || !slices.ContainsFunc(goFiles(t, filepath.Join(agentFolder, f.Name())), func(name string) bool { return !strings.HasSuffix(name, "_test.go") }) {
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
