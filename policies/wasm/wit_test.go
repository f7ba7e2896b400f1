package wasm

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/policies"
)

// flattened is the core signature of a WIT function as abi.md makes it: an address
// and a length for what has no fixed size, an address for records and for lists that
// have a row for each node. What an import gives of no fixed size is copied to an
// address, as much as there is room for, and its length returned; what an export gives
// is packed into an i64.
func flattened(params, result string, isImport bool) signature {
	var s signature
	for _, p := range strings.FieldsFunc(params, func(r rune) bool { return r == ',' }) {
		_, kind, _ := strings.Cut(p, ": ")
		switch strings.TrimSpace(kind) {
		case "string", "json", "object":
			s.Params += i32 + i32
		default: // s32, u32, symbol, pod, snapshot, list<…>
			s.Params += i32
		}
	}
	inner := strings.TrimSuffix(strings.TrimPrefix(result, "result<"), ">")
	value, _, _ := strings.Cut(inner, ",")
	switch {
	case isImport && (value == "string" || value == "object"):
		s.Params, s.Results = s.Params+i32+i32, i32
	case value == "json" || value == "s64":
		s.Results = i64
	case isImport && result == "":
	case value == "list<s32>" && !strings.Contains(params, "scores"): // written to a list of the caller's
		s.Params, s.Results = s.Params+i32, i32
	case value == "s32": // and a code
		s.Results = i64
	default:
		s.Results = i32
	}
	if strings.Contains(params, "scores") { // no snapshot that says how many rows there are
		s.Params += i32
	}
	return s
}

// qm.wit says of each import and export what the host links and requires.
func TestWIT(t *testing.T) {
	text, err := os.ReadFile("../../docs/qm.wit")
	if err != nil {
		t.Fatal(err)
	}
	imports, exports := map[string]signature{}, map[string]signature{}
	for _, f := range hostFuncs {
		imports[f.name] = signature{Params: string(f.params), Results: string(f.results)}
	}
	for name, s := range map[string]signature{"configure": sigConf, "describe": sigDescr, "filter_batch": sigBatch, "score_batch": sigScore, "normalize": sigBatch,
		"prefilter": sigPre, "filter": sigFilterRow, "score": sigScoreRow, "admit": sigAdmit} {
		exports[name] = s
	}
	block := regexp.MustCompile(`(?s)interface (\w+) \{(.*?)\n\}`)
	function := regexp.MustCompile(`(?m)^\s+([a-z-]+): func\((.*)\)(?: -> (.*))?;$`)
	seen := map[string]bool{}
	for _, b := range block.FindAllStringSubmatch(string(text), -1) {
		for _, f := range function.FindAllStringSubmatch(b[2], -1) {
			name, want := strings.ReplaceAll(f[1], "-", "_"), exports
			if b[1] == "host" {
				want = imports
			}
			seen[b[1]+"."+name] = true
			s, ok := want[name]
			if got := flattened(f[2], f[3], b[1] == "host"); !ok || got != s {
				t.Errorf("%s.%s is %s in qm.wit, %s in the host", b[1], name, describe(got), describe(s))
			}
		}
	}
	if len(seen) != len(imports)+len(exports) {
		t.Errorf("qm.wit has %v, the host %v and %v", slices.Sorted(maps.Keys(seen)), slices.Sorted(maps.Keys(imports)), slices.Sorted(maps.Keys(exports)))
	}
	// and the page names each import and export
	page, err := os.ReadFile("../../docs/abi.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range imports {
		if !strings.Contains(string(page), "| `"+name+"` | ") {
			t.Errorf("abi.md has no import %s", name)
		}
	}
	for name := range exports {
		if name == "configure" || name == "describe" {
			name = "qm_" + name
		}
		if !strings.Contains(string(page), "| `"+name+"` | ") {
			t.Errorf("abi.md has no export %s", name)
		}
	}
	for _, step := range []string{policies.StepFetch, policies.StepParse, policies.StepManifest, policies.StepImports, policies.StepRewrite, policies.StepCompile, policies.StepInstantiate, policies.StepConfigure, policies.StepSelfTest} {
		if !strings.Contains(string(page), "`"+step+"`") {
			t.Errorf("abi.md has no step %s", step)
		}
	}
}
