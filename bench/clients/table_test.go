package clients

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"k8s.io/kubectl/pkg/cmd"
)

var update = flag.Bool("update", false, "write the table of docs/clients.md anew")

const (
	tableFile  = "../../docs/clients.md"
	tableBegin = "<!-- by go test -run Table ./... -update in bench/clients -->\n"
	tableEnd   = "<!-- end -->\n"
)

// untried are the verbs of kubectl without a step, and why.
var untried = map[string]string{
	"attach":       "needs a container: runtime/agent/e2e runs it on one",
	"cp":           "needs a container: runtime/agent/e2e runs it on one",
	"exec":         "needs a container: runtime/agent/e2e runs it on one",
	"port-forward": "needs a container: runtime/agent/e2e runs it on one",
	"kuberc set":   "writes a file of the client",
	"kuberc view":  "reads a file of the client",
}

// apart are the steps that other functions run, as they need two processes.
var apart = []step{{command: "proxy --port=0"}, {command: "get configmaps -w --output-watch-events"}}

// TestTable holds the table of docs/clients.md to the steps, and the steps to
// the verbs that kubectl has.
func TestTable(t *testing.T) {
	root := cmd.NewDefaultKubectlCommand()
	tried := map[string][]step{}
	for _, s := range slices.Concat(script, certificates(t), verbs(t, t.TempDir()), apart) {
		if verb := verbOf(root, strings.Fields(s.command)); verb != "" {
			tried[verb] = append(tried[verb], s)
		}
	}
	var out strings.Builder
	out.WriteString("| verb | flags | embedded, upstream 1.36 | Debian 1.20 |\n|---|---|---|---|\n")
	for _, verb := range slices.Sorted(maps.Keys(tried)) {
		fmt.Fprintf(&out, "| %s | %s | %s | %s |\n", verb, flags(tried[verb]), count(tried[verb], 36), count(tried[verb], 20))
	}
	out.WriteString("\n| verb without a step | why |\n|---|---|\n")
	for _, verb := range slices.Sorted(maps.Keys(untried)) {
		fmt.Fprintf(&out, "| %s | %s |\n", verb, untried[verb])
	}
	for _, verb := range leaves(root, "") {
		_, reason := untried[verb]
		if reason == (tried[verb] != nil) {
			t.Errorf("kubectl %s: %d steps, and a reason to have none: %v; write a step, or the reason into untried", verb, len(tried[verb]), reason)
		}
	}

	doc, err := os.ReadFile(tableFile)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := bytes.Cut(doc, []byte(tableBegin))
	_, after, ends := bytes.Cut(rest, []byte(tableEnd))
	if !ok || !ends {
		t.Fatalf("%s has no table between %q and %q", tableFile, tableBegin, tableEnd)
	}
	want := slices.Concat(before, []byte(tableBegin), []byte(out.String()), []byte(tableEnd), after)
	if bytes.Equal(doc, want) {
		return
	}
	if !*update {
		t.Fatalf("%s does not say what the steps are: run go test -run Table ./... -update in bench/clients", tableFile)
	}
	if err := os.WriteFile(tableFile, want, 0o644); err != nil {
		t.Fatal(err)
	}
}

// verbOf is the path of the command in kubectl's tree, empty for a plugin's.
func verbOf(root *cobra.Command, args []string) string {
	found, _, err := root.Find(args)
	if err != nil || found == root {
		return ""
	}
	return strings.TrimPrefix(found.CommandPath(), root.Name()+" ")
}

// leaves are the verbs that do something of their own.
func leaves(c *cobra.Command, path string) (out []string) {
	for _, sub := range c.Commands() {
		if sub.Hidden || sub.Name() == "help" || sub.Name() == "alpha" || sub.Deprecated != "" {
			continue
		}
		name := strings.TrimSpace(path + " " + sub.Name())
		if !sub.HasSubCommands() || strings.Contains(sub.UseLine(), " -f FILENAME") || name == "cluster-info" {
			out = append(out, name)
		}
		out = append(out, leaves(sub, name)...)
	}
	return out
}

// flags are those that the steps of a verb have.
func flags(steps []step) string {
	seen := map[string]bool{}
	for _, s := range steps {
		for _, arg := range append(strings.Fields(s.command), s.args...) {
			name, _, _ := strings.Cut(arg, "=")
			if strings.HasPrefix(name, "-") && len(name) > 1 && !strings.ContainsAny(name, " ,") {
				seen["`"+name+"`"] = true
			}
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(seen)), " ")
}

// count is how many steps a client of the release runs, or which has the verb.
func count(steps []step, release int) string {
	n := 0
	for _, s := range steps {
		if s.runs(release) {
			n++
		}
	}
	if n == 0 {
		first := slices.MinFunc(steps, func(a, b step) int { return cmp.Compare(a.since, b.since) })
		return fmt.Sprintf("none: from 1.%d", first.since)
	}
	return fmt.Sprint(n)
}
