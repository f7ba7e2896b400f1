package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies/author"
	"github.com/quaymaster/quaymaster/sdk/conformance"
)

func newPolicyVerify() *cobra.Command {
	var config, output string
	var options conformance.Options
	command := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check a module against the ABI over generated inputs",
		Long: `Verify asks a .wasm policy about generated clusters, pods and requests. It fails
when a call does, when answers are not the same for the same question, depend on
the numbers of symbols or on vacant rows, differ between the tiers, when an
instance grows with its calls, or when a patch does not apply.
sdk/conformance/README.md lists the checks.`,
		Example: "  quaymaster policy verify policy.wasm --config '{key: disktype, value: ssd}'",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if config != "" {
				data, err := yaml.YAMLToJSONStrict([]byte(config))
				if err != nil {
					return fmt.Errorf("--config: %w", err)
				}
				options.Config = bytes.TrimSpace(data)
			}
			source, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			return withEngines(func(engines author.Engines) error {
				report, err := conformance.Guest(cmd.Context(), engines[policyv1alpha1.EngineWasm], source, options)
				if err != nil {
					return fmt.Errorf("%s: %w", args[0], err)
				}
				err = printed(cmd, output, report, func(table io.Writer) {
					fmt.Fprintf(table, "checked\t%s\n", strings.Join(report.Checks, ", "))
					fmt.Fprintf(table, "answers\t%d nodes refused, %d passed, %d requests denied, %d patched\n", report.Refused, report.Rated, report.Denied, report.Patched)
					if report.Refused+report.Denied+report.Patched == 0 {
						fmt.Fprintf(table, "\tthe inputs did not reach what the policy is for: give a --config under which something is refused\n")
					}
					for _, f := range report.Findings {
						fmt.Fprintf(table, "FAIL %s\t%s\n", f.Check, f.Text)
					}
				})
				if err == nil && len(report.Findings) > 0 {
					err = fmt.Errorf("%s: %d of %d checks failed", args[0], len(report.Findings), len(report.Checks))
				}
				return err
			})
		},
	}
	command.Flags().StringVar(&config, "config", "", "configuration of the policy, YAML or JSON")
	command.Flags().IntVar(&options.Rounds, "rounds", 50, "clusters and requests to ask about")
	command.Flags().Uint64Var(&options.Seed, "seed", 0, "of the inputs")
	command.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return command
}
