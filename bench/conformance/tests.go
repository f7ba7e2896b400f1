package main

import (
	_ "embed"
	"fmt"
	"regexp"
	"strings"

	"k8s.io/kubernetes/test/conformance/testdata"
	"sigs.k8s.io/yaml"
)

// test is one of upstream's conformance tests.
type test struct {
	name    string // as upstream's binary reports it
	group   string // the part of Kubernetes that it belongs to: "auth" for sig-auth
	leftOut string // why it is not run; "" is run
}

//go:embed leftout.yaml
var leftOutSimulated []byte

//go:embed leftout-node.yaml
var leftOutNode []byte

// leftOut says why tests are not run. A name that ends in an asterisk stands for
// all that begin with it; the marks in brackets at the end are not written.
type leftOut struct {
	Reason string   `json:"reason"`
	Tests  []string `json:"tests"`
}

var groupOf = regexp.MustCompile(`^\[sig-([a-z-]+)\]`)

// conformanceTests lists upstream's in its order, with the reasons of those that are left out.
func conformanceTests(leftOut []byte) ([]test, error) {
	const file = "test/conformance/testdata/conformance.yaml"
	content, err := testdata.GetConformanceTestdataFS().ReadTestFile(file)
	if err != nil {
		return nil, fmt.Errorf("upstream's list of tests: %w", err)
	}
	var listed []struct {
		Codename string `json:"codename"`
	}
	if err := yaml.Unmarshal(content, &listed); err != nil {
		return nil, fmt.Errorf("upstream's list of tests: %w", err)
	}
	reasons, err := readLeftOut(leftOut)
	if err != nil {
		return nil, err
	}
	tests := make([]test, 0, len(listed))
	used := map[string]bool{}
	for _, l := range listed {
		group := groupOf.FindStringSubmatch(l.Codename)
		if group == nil {
			return nil, fmt.Errorf("upstream's list of tests: %q does not say its group", l.Codename)
		}
		t := test{name: l.Codename, group: group[1]}
		for pattern, reason := range reasons {
			if !matches(pattern, t.name) {
				continue
			}
			if t.leftOut != "" {
				return nil, fmt.Errorf("leftout.yaml: two entries match %q, one is %q", t.name, pattern)
			}
			t.leftOut, used[pattern] = reason, true
		}
		tests = append(tests, t)
	}
	for pattern := range reasons {
		if !used[pattern] {
			return nil, fmt.Errorf("leftout.yaml: no test is called %q", pattern)
		}
	}
	return tests, nil
}

// readLeftOut returns the reason of each pattern.
func readLeftOut(content []byte) (map[string]string, error) {
	var entries []leftOut
	if err := yaml.UnmarshalStrict(content, &entries); err != nil {
		return nil, fmt.Errorf("leftout.yaml: %w", err)
	}
	reasons := map[string]string{}
	for _, e := range entries {
		if e.Reason == "" {
			return nil, fmt.Errorf("leftout.yaml: no reason for %q", e.Tests)
		}
		for _, pattern := range e.Tests {
			if reasons[pattern] != "" {
				return nil, fmt.Errorf("leftout.yaml: %q is there twice", pattern)
			}
			reasons[pattern] = e.Reason
		}
	}
	return reasons, nil
}

func matches(pattern, name string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	rest, ok := strings.CutPrefix(name, pattern)
	return ok && marks.MatchString(rest)
}

// marks are what follows a test's sentence: [Slow] [Conformance].
var marks = regexp.MustCompile(`^( \[[^\]]+\])*$`)
