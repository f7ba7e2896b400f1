package main

import (
	"bytes"
	"strings"
	"testing"
)

// run executes the command line as main does and returns what it printed.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func TestVersion(t *testing.T) {
	out, err := run(t, "version")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out, "quaymaster dev\nkubernetes ") {
		t.Errorf("version printed %q", out)
	}
}

func TestBadArguments(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"fly"}, `unknown command "fly"`},
		{[]string{"backup", "monday.qmb"}, `quaymaster backup takes no argument "monday.qmb"; write: quaymaster backup -o FILE [flags]`},
		{[]string{"restore", "--revision", "7"}, `unknown flag: --revision; "quaymaster restore --help" lists the flags`},
		{[]string{"up", "--runtime", "docker"}, `--runtime "docker": it is auto, wasm or sim`},
		{[]string{"up", "--policies", "/nowhere"}, "--policies: stat /nowhere"},
		{[]string{"explain", "node", "n1"}, "only pods are scheduled: say explain pod n1"},
		{[]string{"server", "--listen", "nonsense"}, `"nonsense" is not host:port`},
	} {
		out, err := run(t, test.args...)
		if err == nil {
			t.Errorf("%v succeeded: %s", test.args, out)
		} else if !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: %v\nwant %q", test.args, err, test.want)
		}
	}
}
