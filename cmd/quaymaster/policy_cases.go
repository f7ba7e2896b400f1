package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/author"
)

// casesOf is the file of test cases that an argument names: itself, or a folder's tests.yaml.
func casesOf(file string) string {
	if info, err := os.Stat(file); err == nil && info.IsDir() {
		return filepath.Join(file, "tests.yaml")
	}
	return file
}

// testFile runs the cases of a file, and the tests in Rego of its policy.
func testFile(cmd *cobra.Command, engines author.Engines, file string, verbose bool) error {
	if author.IsPolicy(file) {
		return testUnits(cmd, engines, file, verbose)
	}
	failed := testCases(cmd, engines, file, verbose)
	units := testUnits(cmd, engines, file, verbose)
	if failed != nil && units != nil && failed.Error() == units.Error() {
		return failed // of the file that both read
	}
	return errors.Join(failed, units)
}

func testCases(cmd *cobra.Command, engines author.Engines, file string, verbose bool) error {
	results, err := engines.Test(cmd.Context(), file)
	if err != nil {
		return err
	}
	failed := 0
	out := cmd.OutOrStdout()
	for _, r := range results {
		if len(r.Failures) > 0 {
			failed++
			fmt.Fprintf(out, "FAIL %s\n", r.Case)
		} else if verbose {
			fmt.Fprintf(out, "ok   %s  %v\n", r.Case, r.Wall.Round(time.Microsecond))
		}
		for _, f := range r.Failures {
			fmt.Fprintf(out, "     %v\n", f)
		}
	}
	if failed > 0 {
		return fmt.Errorf("%s: %d of %d cases failed", file, failed, len(results))
	}
	_, err = fmt.Fprintf(out, "%s: %d cases passed\n", file, len(results))
	return err
}

func testUnits(cmd *cobra.Command, engines author.Engines, file string, verbose bool) error {
	units, err := engines.TestUnits(cmd.Context(), file)
	if err != nil {
		return err
	}
	if len(units.Results) == 0 {
		if author.IsPolicy(file) {
			return fmt.Errorf("%s: there are no tests: write rules test_… in a …_test.rego beside a policy in Rego, or cases in YAML", file)
		}
		return nil
	}
	out := cmd.OutOrStdout()
	failed, skipped := 0, 0
	for _, r := range units.Results {
		switch {
		case r.Skipped:
			skipped++
			fmt.Fprintf(out, "skip %s.%s\n", r.Package, r.Name)
		case !r.Passed:
			failed++
			fmt.Fprintf(out, "FAIL %s.%s\n     %s:%d%s\n", r.Package, r.Name, r.File, r.Line, after(": ", r.Failure))
		case verbose:
			fmt.Fprintf(out, "ok   %s.%s  %v\n", r.Package, r.Name, r.Duration.Round(time.Microsecond))
		}
	}
	printCoverage(out, units.Coverage)
	ran := len(units.Results) - skipped
	if failed > 0 {
		return fmt.Errorf("%s: %d of %d tests failed", units.Policy, failed, ran)
	}
	_, err = fmt.Fprintf(out, "%s: %d tests passed%s, %.1f%% covered\n", units.Policy, ran, after(", ", skips(skipped)), units.Coverage.Percent)
	return err
}

func skips(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d skipped", n)
}

func after(separator, text string) string {
	if text == "" {
		return ""
	}
	return separator + text
}

// printCoverage names the lines of each file that no test covers.
func printCoverage(out io.Writer, c *policies.Coverage) {
	for _, file := range slices.Sorted(maps.Keys(c.Files)) {
		f := c.Files[file]
		fmt.Fprintf(out, "%s: %.1f%% covered%s\n", file, f.Percent, after(", not lines ", ranges(f.NotCovered)))
	}
}

// ranges of ascending numbers: "3, 5–7".
func ranges(lines []int) string {
	var parts []string
	for i := 0; i < len(lines); {
		last := i
		for last+1 < len(lines) && lines[last+1] <= lines[last]+1 {
			last++
		}
		part := fmt.Sprint(lines[i])
		if lines[last] > lines[i] {
			part += fmt.Sprintf("–%d", lines[last])
		}
		parts = append(parts, part)
		i = last + 1
	}
	return strings.Join(parts, ", ")
}
