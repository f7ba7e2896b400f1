package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the expected output into the golden files")

const dashes = "-----\n"

func runRoot(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	root := newRoot()
	var out bytes.Buffer
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

// TestSimulate runs the command in the first line of each golden file on the
// objects that follow.
func TestSimulate(t *testing.T) {
	files, err := filepath.Glob("testdata/simulate/*.txt")
	if err != nil || len(files) < 4 {
		t.Fatalf("%d golden files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			parts := strings.SplitN(string(data), dashes, 3)
			if len(parts) != 3 {
				t.Fatal("the file is not a command, objects and output between lines of dashes")
			}
			got, err := runRoot(t, parts[1], strings.Fields(parts[0])...)
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(file, []byte(parts[0]+dashes+parts[1]+dashes+got), 0o600); err != nil {
					t.Fatal(err)
				}
			} else if got != parts[2] {
				t.Errorf("output\n%s\nwant\n%s", got, parts[2])
			}
		})
	}
}

func TestSimulateRefuses(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {%containers: [{name: c, image: x}]}\n"
	in := func(field string) string { return strings.Replace(pod, "%", field, 1) }
	nothing := write("nothing.yaml", "# no profile\n")
	bad := write("bad.yaml", "apiVersion: scheduling.quaymaster.dev/v1alpha1\nkind: SchedulerProfile\nmetadata: {name: p}\nspec: {plugins: {filter: {enabled: [{policy: missing}]}}}\n")
	for _, tt := range []struct{ args, in, want string }{
		{"", "", "name the files"},
		{"-f " + filepath.Join(dir, "none.yaml"), "", "no such file"},
		{"-f - -o yaml", "", "table or json"},
		{"-f -", in("") + "---\n" + in(""), "standard input: document 2: Pod web: metadata.name: the object is there twice"},
		{"-f -", in("nodeSelectr: {}, "), `Pod web: unknown field "spec.nodeSelectr"`},
		{"-f -", in("priorityClassName: none, "), `spec.priorityClassName: no PriorityClass "none" was given`},
		{"-f -", in("topologySpreadConstraints: [{maxSkew: 0, topologyKey: zone, whenUnsatisfiable: DoNotSchedule}], "), "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0"},
		{"-f -", in("affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Near}]}]}}}, "), "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution: Invalid value"},
		{"-f -", in("affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{labelSelector: {}}]}}, "), "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Required value"},
		{"-f - --profile " + nothing, in(""), "holds no SchedulerProfile"},
		{"-f - --profile " + bad, in(""), `policy "missing": policy is not loaded`},
	} {
		if _, err := runRoot(t, tt.in, append([]string{"simulate"}, strings.Fields(tt.args)...)...); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", tt.args, err, tt.want)
		}
	}
}

// TestSimulateFolder takes a folder as the files in it.
func TestSimulateFolder(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"1-node.yaml": "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nstatus: {allocatable: {cpu: 2, memory: 1Gi, pods: 10}}\n",
		"2-pod.json":  `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web"},"spec":{"containers":[{"name":"c","image":"x"}]}}`,
		"notes.txt":   "no objects",
		"3-map.yml":   "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := runRoot(t, "", "simulate", "-f", dir)
	if err != nil || !strings.Contains(out, "default/web  a") || !strings.Contains(out, "1 Secret play no part") {
		t.Errorf("%v\n%s", err, out)
	}
}
