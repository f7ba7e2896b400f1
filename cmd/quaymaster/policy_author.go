package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/quaymaster/quaymaster/policies/author"
)

func newPolicyNew() *cobra.Command {
	var lang string
	command := &cobra.Command{
		Use:   "new FOLDER",
		Short: "Start a policy from a template",
		Long: `New makes a folder with a filter and score in the language asked for, its
manifest, its tests and the objects that put it in force. The last part of the
folder's path names the policy.`,
		Example: "  quaymaster policy new --lang c spread",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			files, err := author.New(lang, args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), strings.Join(files, "\n"))
			return err
		},
	}
	command.Flags().StringVar(&lang, "lang", "", strings.Join(author.Languages(), ", "))
	if err := command.MarkFlagRequired("lang"); err != nil {
		panic(err) // the flag is one line above
	}
	return command
}

func newPolicyBuild() *cobra.Command {
	return &cobra.Command{
		Use:   "build [FOLDER]",
		Short: "Compile and pack a policy",
		Long: `Build compiles the Go package, the C files, the Rust crate or the AssemblyScript
module of a folder, adds manifest.json and writes NAME.wasm beside them, NAME
being the manifest's. docs/sdk says what each language needs. A Rego policy is
only checked. Without FOLDER it is the one you are in.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			folder := "."
			if len(args) > 0 {
				folder = args[0]
			}
			return withEngines(func(engines author.Engines) error {
				file, i, err := engines.Build(cmd.Context(), folder)
				if err != nil {
					return err
				}
				return printBuilt(cmd, file, i)
			})
		},
	}
}

func newPolicyTest() *cobra.Command {
	var verbose bool
	command := &cobra.Command{
		Use:   "test [FILE|FOLDER…]",
		Short: "Run test cases",
		Long: `Test runs the cases of YAML files, of a folder those of its tests.yaml, and
without arguments those of the folder you are in; docs/policies.md describes them.
It fails when any does, and says at which file, line and field. Of a policy in Rego
it runs the rules test_… of …_test.rego files beside it, and in its bundle, as "opa
test" does, and says which lines they do not cover. A FILE that is such a policy has
only these.`,
		Example: "  quaymaster policy test\n  quaymaster policy test teams wasm-plugins/c/*/\n  quaymaster policy test teams/teams.rego",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{"."}
			}
			return withEngines(func(engines author.Engines) error {
				var errs []error
				for _, file := range args {
					errs = append(errs, testFile(cmd, engines, casesOf(file), verbose))
				}
				return errors.Join(errs...)
			})
		},
	}
	command.Flags().BoolVarP(&verbose, "verbose", "v", false, "name the cases that pass, too")
	return command
}

func newPolicyBench() *cobra.Command {
	var config, output string
	var options author.BenchOptions
	command := &cobra.Command{
		Use:   "bench FILE",
		Short: "Measure time, fuel and memory of a policy",
		Long: `Bench measures a policy at each of its extension points over clusters of several
sizes. NATIVE is what the scheduler's own fit filter, or its least-allocated
score, takes by node in Go over the same columns, and how much of the policy's
time that is: whatever the policy does, it is the price of a plain decision.
Admission has nothing native to compare with.`,
		Example: "  quaymaster policy bench policy.wasm --config '{key: disktype, value: ssd}'",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if config != "" {
				data, err := yaml.YAMLToJSONStrict([]byte(config))
				if err != nil {
					return fmt.Errorf("--config: %w", err)
				}
				options.Config = bytes.TrimSpace(data)
			}
			for _, n := range options.Nodes {
				if n <= 0 {
					return fmt.Errorf("--nodes: %d is no size of a cluster", n)
				}
			}
			return withEngines(func(engines author.Engines) error {
				all, err := engines.Bench(cmd.Context(), args[0], options)
				if err != nil {
					return err
				}
				return printed(cmd, output, all, func(table io.Writer) {
					fmt.Fprintln(table, "POINT\tNODES\tCALLS\tPER CALL\tPER NODE\tNATIVE\tFUEL\tMEMORY\tHOST ALLOCATES")
					for _, m := range all {
						perNode, native := "-", "-" // of admission
						if m.Native > 0 {
							perNode, native = fmt.Sprintf("%d ns", m.PerNode), fmt.Sprintf("%.1f ns (1/%.1f)", m.Native, float64(m.PerNode)/m.Native)
						}
						fmt.Fprintf(table, "%s\t%d\t%d\t%v\t%s\t%s\t%d\t%d KiB\t%d B\n", m.Point, m.Nodes, m.Calls,
							time.Duration(m.Nanoseconds), perNode, native, m.Fuel, m.Memory>>10, m.Allocated)
					}
				})
			})
		},
	}
	command.Flags().StringVar(&config, "config", "", "configuration of the policy, YAML or JSON")
	command.Flags().IntSliceVar(&options.Nodes, "nodes", []int{100, 1000, 5000}, "sizes of the cluster")
	command.Flags().DurationVar(&options.Time, "time", 300*time.Millisecond, "time to spend on each measurement")
	command.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return command
}
