package author_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/policies/author"
)

const admission = `package p

deny contains msg if {
	not input.request.object.metadata.labels.owner
	msg := sprintf("%s needs an owner", [input.request.object.metadata.name])
}

warn contains "no team" if input.parameters.team == ""

patch contains {"op": "add", "path": "/metadata/labels/team", "value": input.parameters.team} if {
	not input.request.object.metadata.labels.team
}

patch contains {"op": "remove", "path": "/none"} if input.request.object.metadata.labels.bad
`

// TestSuites: each expectation holds where it should, and is reported at its
// line and field where it should not.
func TestSuites(t *testing.T) {
	e := engines(t)
	prefer, err := filepath.Abs(filepath.Join(guests, "c/prefer-label/prefer-label-v2.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	headroom, err := filepath.Abs(filepath.Join(guests, "go/cpu-headroom/cpu-headroom.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, text string
		want       []string // "line: field: text" of each failure
	}{
		{"schedule", `policy: ` + prefer + `
config: {key: disktype, value: ssd, never: tape}
nodes:
- metadata: {name: a, labels: {disktype: ssd}}
- metadata: {name: b}
- metadata: {name: c, labels: {disktype: tape}}
cases:
- name: right
  pod: {metadata: {name: p}}
  passes: [a, b]
  refuses: {c: node(s) had a label value that the policy never uses}
  scores: {a: 0, b: 100}
- name: right, with a config and nodes of its own
  config: {key: zone, value: z}
  nodes:
  - metadata: {name: a, labels: {zone: z}}
  pod: {metadata: {name: p}, spec: {nodeSelector: {zone: z}}}
  scores: {a: 100}
- name: wrong
  pod: {metadata: {name: p}}
  passes: [a,
    c]
  refuses:
    b: never
  scores: {a: 1}
- name: wrong reason
  pod: {metadata: {name: p}}
  refuses: {c: never}
- name: refused by its config
  config: {key: ""}
  error: key and value are needed
- name: fails
  config: {}
  pod: {metadata: {name: p}}
  passes: [a]
- name: does not fail
  error: anything
`, []string{
			`22: cases[2].passes[1]: node "c" is refused: node(s) had a label value`,
			`24: cases[2].refuses.b: the node passes`,
			`25: cases[2].scores.a: is 0, expected 1`,
			`28: cases[3].refuses.c: is refused for "node(s) had a label value that the policy never uses", expected "never"`,
			`32: cases[5]: Configure: the module refuses its config: key and value are needed`,
			`37: cases[6].error: there is none, expected "anything"`,
		}},
		{"running pods", `policy: ` + headroom + `
config: {maxPercent: 50}
nodes:
- {metadata: {name: a}, status: {allocatable: {cpu: "4"}}}
- {metadata: {name: b}, status: {allocatable: {cpu: "4"}}}
running:
- {metadata: {name: r}, spec: {nodeName: a, containers: [{name: c, resources: {requests: {cpu: 1500m}}}]}}
cases:
- name: counts them
  pod: {metadata: {name: p}, spec: {containers: [{name: c, resources: {requests: {cpu: "1"}}}]}}
  passes: [b]
  refuses: {a: node(s) would have too little CPU headroom}
  scores: {b: 75}
- name: not without them
  running: []
  pod: {metadata: {name: p}, spec: {containers: [{name: c, resources: {requests: {cpu: "1"}}}]}}
  passes: [a, b]
`, nil},
		{"admission", `policy: p.rego
config: {team: red}
cases:
- name: right
  request:
    object: {apiVersion: v1, kind: Pod, metadata: {name: p, namespace: default, labels: {owner: o}}}
  allowed: true
  patch: [{op: add, path: /metadata/labels/team, value: red}]
  object: {apiVersion: v1, kind: Pod, metadata: {name: p, namespace: default, labels: {owner: o, team: red}}}
- name: right refusal
  request: {object: {apiVersion: v1, kind: Pod, metadata: {name: p, labels: {team: x}}}}
  allowed: false
  code: 403
  message: p needs an owner
  patch: []
- name: warned
  config: {team: ""}
  request: {object: {apiVersion: v1, kind: Pod, metadata: {name: p, labels: {owner: o, team: x}}}}
  warnings: [no team]
- name: wrong
  request: {object: {apiVersion: v1, kind: Pod, metadata: {name: p, labels: {team: x}}}}
  allowed: true
  message: other
  warnings: [none]
- name: wrong patch
  request: {object: {apiVersion: v1, kind: Pod, metadata: {name: p, labels: {owner: o}}}}
  patch: [{op: remove, path: /x}]
- name: fails
  request: {object: {apiVersion: v1, kind: Pod, metadata: {name: p, labels: {owner: o, team: x, bad: "yes"}}}}
  error: patch
- name: does not schedule
  nodes: [{metadata: {name: a}}]
  pod: {metadata: {name: p}}
  passes: [a]
`, []string{
			`22: cases[3].allowed: is false, expected true: p needs an owner`,
			`23: cases[3].message: is "p needs an owner", expected "other"`,
			`24: cases[3].warnings: are [], expected ["none"]`,
			`27: cases[4].patch: is [{"op":"add","path":"/metadata/labels/team","value":"red"}], expected [{"op":"remove","path":"/x"}]`,
			`31: cases[6]: the policy is no filter`,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "p.rego", admission)
			file := write(t, dir, "tests.yaml", tt.text)
			results, err := e.Test(t.Context(), file)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(tt.text, "\n- name:"); len(results) != n {
				t.Errorf("%d results of %d cases", len(results), n)
			}
			var got []string
			for _, r := range results {
				for _, f := range r.Failures {
					got = append(got, f.Error())
				}
			}
			for i := range max(len(got), len(tt.want)) {
				switch {
				case i >= len(got):
					t.Errorf("missing: %s", tt.want[i])
				case i >= len(tt.want):
					t.Errorf("too much: %s", got[i])
				case !strings.HasPrefix(got[i], file+":"+tt.want[i]):
					t.Errorf("failure %q, want %q", got[i], tt.want[i])
				}
			}
		})
	}
}

func TestSuitesRefused(t *testing.T) {
	e := engines(t)
	const head = "policy: p.rego\nnodes:\n- metadata: {name: a}\ncases:\n"
	for _, tt := range []struct {
		name, text, want string // "line: field: text"
	}{
		{"empty", "", "1: the file is empty"},
		{"a text", "hello\n", "1: is no mapping"},
		{"syntax", "policy: p.rego\ncases: [\n", "2: did not find expected node content"},
		{"a tab", "policy: p.rego\n\tcases: 1\n", "2: found a tab character"},
		{"twice", "policy: p.rego\npolicy: q.rego\n", `2: key "policy" already set in map`},
		{"two documents", "policy: p.rego\n---\npolicy: p.rego\n", "2: a second document"},
		{"no policy", "cases: [{name: c, error: x}]\n", "1: policy: is needed"},
		{"no cases", "policy: p.rego\n", "1: cases: is needed"},
		{"no file", "policy: none.rego\ncases: [{name: c, error: x}]\n", "1: policy: open "},
		{"no program", "policy: tests.yaml\ncases: [{name: c, error: x}]\n", "1: policy: "},
		{"unknown field", head + "- name: c\n  error: x\n  pods: {}\n", `7: cases[0].pods: unknown field "pods"`},
		{"unknown field of a pod", head + "- name: c\n  pod:\n    metadata:\n      nam: p\n  passes: [a]\n", `8: cases[0].pod.metadata.nam: unknown field "nam"`},
		{"wrong type", head + "- name: c\n  pod: {}\n  scores:\n    a: high\n", "8: cases[0].scores.a: is a string, no int64"},
		{"wrong types", head + "- name: c\n  pod: {}\n  passes: [a]\n- name: d\n  pod: {}\n  refuses:\n    a: no\n- name: e\n  pod: {}\n  refuses: {a: no}\n", "11: cases[1].refuses.a: is a bool, no string"},
		{"wrong quantity", head + "- name: c\n  nodes:\n  - metadata: {name: a}\n    status:\n      allocatable: {pods: 1,\n        cpu: four}\n  pod: {}\n  passes: [a]\n",
			"10: cases[0].nodes[0].status.allocatable.cpu: quantities must match"},
		{"no name", head + "- error: x\n", "5: cases[0]: has no name"},
		{"no question", head + "- name: c\n  passes: [a]\n", "5: cases[0]: has neither pod nor request"},
		{"two questions", head + "- name: c\n  pod: {}\n  request: {}\n", "7: cases[0].request: a case has a pod or a request"},
		{"nothing expected", head + "- name: c\n  pod: {}\n", "5: cases[0]: expects nothing"},
		{"no pod", head + "- name: c\n  request: {object: {apiVersion: v1, kind: Pod}}\n  passes: [a]\n", "5: cases[0]: passes, refuses and scores need a pod"},
		{"no request", head + "- name: c\n  pod: {}\n  allowed: true\n", "5: cases[0]: allowed, code"},
		{"no object", head + "- name: c\n  request: {}\n  allowed: true\n", "6: cases[0].request: has no object"},
		{"no kind", head + "- name: c\n  request: {object: {metadata: {}}}\n  allowed: true\n", "6: cases[0].request: the object has no apiVersion and kind"},
		{"no such node", head + "- name: c\n  pod: {}\n  passes: [a,\n    b]\n", `8: cases[0].passes[1]: there is no node "b"`},
		{"two verdicts", head + "- name: c\n  pod: {}\n  passes: [a]\n  refuses: {a: never}\n", "8: cases[0].refuses.a: the node is in passes as well"},
		{"a score for a refusal", head + "- name: c\n  pod: {}\n  refuses: {a: never}\n  scores: {a: 1}\n", "8: cases[0].scores.a: a node that is refused has no score"},
		{"running nowhere", head + "- name: c\n  running: [{metadata: {name: r}}]\n  pod: {}\n  passes: [a]\n", `6: cases[0].running[0]`},
		{"two nodes of a name", "policy: p.rego\nnodes:\n- metadata: {name: a}\n- metadata:\n    name: a\ncases:\n- {name: c, error: x}\n", `5: nodes[1].metadata.name: "a" is there twice`},
		{"an object without a name", head + "- name: c\n  objects: [{apiVersion: v1, kind: ConfigMap}]\n  pod: {}\n  passes: [a]\n", "6: cases[0].objects[0]: the ConfigMap has no metadata.name"},
		{"an object of no kind", head + "- name: c\n  objects: [{kind: Thing}]\n  pod: {}\n  passes: [a]\n", "6: cases[0].objects[0]: "},
		{"an anchor", "policy: p.rego\nnodes: &n\n- metadata: {name: a}\ncases:\n- name: c\n  nodes: *n\n  pod: {}\n  passes: [b]\n", `8: cases[0].passes[0]: there is no node "b"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "p.rego", admission)
			file := write(t, dir, "tests.yaml", tt.text)
			_, err := e.Test(t.Context(), file)
			var field *author.FieldError
			if !errors.As(err, &field) {
				t.Fatalf("error %v is no FieldError", err)
			}
			if !strings.HasPrefix(err.Error(), file+":"+tt.want) {
				t.Errorf("error %q, want %q", err, tt.want)
			}
		})
	}
}

func FuzzSuite(f *testing.F) {
	f.Add("policy: p.rego\ncases:\n- name: c\n  pod: {}\n  passes: [a]\n")
	f.Add("policy: p.rego\ncases: &a [*a]\n")
	f.Add("- a\n- {b: 1}\n")
	e := author.Engines{}
	f.Fuzz(func(t *testing.T, text string) {
		dir := t.TempDir()
		write(t, dir, "p.rego", admission)
		if _, err := e.Test(t.Context(), write(t, dir, "tests.yaml", text)); err != nil && err.Error() == "" {
			t.Error("an error without a text")
		}
	})
}
