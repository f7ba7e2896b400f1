package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// TestRecorded: the records have every test of upstream's once, the page says what
// the records say, and nothing that is left out counts as run.
func TestRecorded(t *testing.T) {
	for _, node := range []bool{false, true} {
		o := options{node: node, root: "../.."}
		tests, err := o.tests()
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(o.recordFile())
		if err != nil {
			t.Fatal(err)
		}
		r, err := decode(content)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(r.encode(tests), content) {
			t.Errorf("%s is not what the list of tests left out and the outcomes make: run with -update", o.recordFile())
		}
		groups, by, sum := counts(tests, r.state)
		if len(tests) != 446 || len(groups) != 10 || by["storage"].all != 91 || sum.passed > sum.run || sum.run+sum.left > sum.all {
			t.Errorf("%d tests in %d groups: %+v", len(tests), len(groups), sum)
		}
	}
	want, err := pageOf("../..")
	if err != nil {
		t.Fatal(err)
	}
	if written, err := os.ReadFile(pageFile("../..")); err != nil || !bytes.Equal(want, written) {
		t.Errorf("docs/conformance.md does not say what the records say, %v: run task conformance -- -update", err)
	}
}

func TestLeftOut(t *testing.T) {
	for text, want := range map[string]string{
		`[{reason: a, tests: [x, x]}]`: "is there twice",
		`[{tests: [x]}]`:               "no reason",
		`[{why: a}]`:                   "unknown field",
	} {
		if _, err := readLeftOut([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	const name = "[sig-x] A thing should work [Slow] [Conformance]"
	for pattern, want := range map[string]bool{"[sig-x] A thing*": true, "[sig-x] A thing should work": true, "[sig-x] A thing": false, "[sig-y]*": false} {
		if matches(pattern, name) != want {
			t.Errorf("%q: %v", pattern, !want)
		}
	}
}

// TestCompare: a test that is lost is an error, one that is new is told of.
func TestCompare(t *testing.T) {
	r := record{"a": passed, "b": failed}
	var out bytes.Buffer
	err := r.compare(&out, map[string]outcome{"a": {}, "b": {passed: true}, "c": {passed: true}})
	if err == nil || !strings.Contains(err.Error(), "1 tests passed before and do not now:\n  a") || !strings.Contains(out.String(), "2 tests pass that did not before") {
		t.Errorf("%v, %q", err, out.String())
	}
	if err := r.compare(&out, map[string]outcome{"a": {passed: true}, "b": {}}); err != nil {
		t.Error(err)
	}
	if _, err := decode([]byte("won\tx\n")); err == nil {
		t.Error("a state that is none was read")
	}
}

func TestReport(t *testing.T) {
	outcomes, err := readReport([]byte(`[{"SpecReports": [
		{"LeafNodeType": "It", "ContainerHierarchyTexts": ["[sig-x] A"], "LeafNodeText": "works [Conformance]", "State": "passed"},
		{"LeafNodeType": "It", "ContainerHierarchyTexts": ["[sig-x] A"], "LeafNodeText": "fails", "State": "failed", "Failure": {"Message": "one\n two"}},
		{"LeafNodeType": "It", "LeafNodeText": "is not in focus", "State": "skipped"}]}]`))
	if err != nil || len(outcomes) != 2 || !outcomes["[sig-x] A works [Conformance]"].passed || outcomes["[sig-x] A fails"].why != "one | two" {
		t.Errorf("%+v, %v", outcomes, err)
	}
	if _, err := readReport([]byte(`[{"SpecReports": [{"LeafNodeType": "SynchronizedBeforeSuite", "State": "failed", "Failure": {"Message": "no nodes"}}]}]`)); err == nil || !strings.Contains(err.Error(), "no nodes") {
		t.Errorf("a suite that did not begin: %v", err)
	}
}
