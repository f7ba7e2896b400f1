package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

//go:embed reasons.yaml
var reasonsFile []byte

// reason says why tests do not pass on some backends. A test's name may end with *, for all that begin so.
type reason struct {
	Reason   string   `json:"reason"`
	Backends []string `json:"backends"`
	Tests    []string `json:"tests"`
}

func readReasons() ([]reason, error) { return decodeReasons(reasonsFile) }

func decodeReasons(content []byte) ([]reason, error) {
	var out []reason
	if err := yaml.UnmarshalStrict(content, &out); err != nil {
		return nil, fmt.Errorf("reasons.yaml: %w", err)
	}
	for i, r := range out {
		if r.Reason == "" || len(r.Tests) == 0 || len(r.Backends) == 0 {
			return nil, fmt.Errorf("reasons.yaml, entry %d: it needs reason, backends and tests", i+1)
		}
		for _, b := range r.Backends {
			if !slices.Contains(backends, b) {
				return nil, fmt.Errorf("reasons.yaml, entry %d: no backend %q", i+1, b)
			}
		}
	}
	return out, nil
}

func (r reason) has(backend, test string) bool {
	return slices.Contains(r.Backends, backend) && slices.ContainsFunc(r.Tests, func(p string) bool { return matches(p, test) })
}

func matches(pattern, test string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(test, prefix)
	}
	return pattern == test
}

func pageFile(dir string) string { return filepath.Join(dir, "critest.md") }

// page is docs/critest.md. It is an error where a test that does not pass has no reason or two, and where a reason's test passes
// on one of its backends or is none.
func page(r record, reasons []reason) ([]byte, error) {
	var out bytes.Buffer
	fmt.Fprintf(&out, `# Upstream's tests of container runtimes

critest of sigs.k8s.io/cri-tools as in `+"`bench/critest/suite/go.mod`"+`, unmodified, against our backends, each at a socket as any client of
the container runtime interface has it. Its images have the names that the tests ask for, are made of Debian's busybox and small programs of our own,
and come from a registry on the loopback. Each test's outcome is in [critest.txt](critest.txt), written by
`+"`task critest BACKEND=oci -- -update`"+`; without `+"`-update`"+` a run fails when a test that is recorded as passed does not pass.
Its five benchmarks are no tests and are not run, as critest leaves them out unless it is asked for them.

| backend | passed | failed | left out by the test | all |
|---|---|---|---|---|
`)
	for _, b := range backends {
		count := map[string]int{}
		for name := range r {
			count[r.state(name, b)]++
		}
		fmt.Fprintf(&out, "| %s | %d | %d | %d | %d |\n", b, count[passed], count[failed], count[leftOut], len(r))
	}
	out.WriteString("\n`oci` has no daemon, only runc; `containerd` is Debian's 1.6 through our backend, to compare with; `wasm` runs WebAssembly alone.\n")
	tests := slices.Sorted(maps.Keys(r))
	why := map[[2]string]string{}
	for _, name := range tests {
		for _, b := range backends {
			if r.state(name, b) == passed {
				continue
			}
			for _, reason := range reasons {
				if reason.has(b, name) {
					if why[[2]string{b, name}] != "" {
						return nil, fmt.Errorf("reasons.yaml: %s on %s has two reasons", name, b)
					}
					why[[2]string{b, name}] = reason.Reason
				}
			}
			if why[[2]string{b, name}] == "" {
				return nil, fmt.Errorf("reasons.yaml: %s on %s (%s) has no reason", name, b, r.state(name, b))
			}
		}
	}
	for _, reason := range reasons {
		for _, b := range reason.Backends {
			for _, p := range reason.Tests {
				if !slices.ContainsFunc(tests, func(t string) bool { return matches(p, t) && r.state(t, b) != passed }) {
					return nil, fmt.Errorf("reasons.yaml: %s on %s passes or is no test", p, b)
				}
			}
			var of []string
			for _, t := range tests {
				if why[[2]string{b, t}] == reason.Reason {
					of = append(of, fmt.Sprintf("- %s (%s)\n", t, r.state(t, b)))
				}
			}
			fmt.Fprintf(&out, "\n### %s: %s (%d)\n\n%s", b, reason.Reason, len(of), strings.Join(of, ""))
		}
	}
	return out.Bytes(), nil
}
