package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/author"
	"github.com/quaymaster/quaymaster/policies/rego"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

func newPolicy() *cobra.Command {
	policy := &cobra.Command{
		Use:   "policy",
		Short: "Write, build, test, measure and apply policies",
		Long: `Policy holds the tools of those who write policies. Tests and measurements run on
the code that the server decides with, and need no server; apply, status and
rollback talk to one.`,
	}
	policy.AddCommand(newPolicyNew(), newPolicyBuild(), newPolicyPack(), newPolicyInspect(), newPolicyTest(), newPolicyBench(), newPolicyVerify(),
		newPolicyApply(), newPolicyStatus(), newPolicyRollback())
	return policy
}

// withEngines runs f with the engines that the server has.
func withEngines(f func(author.Engines) error) (err error) {
	w := wasm.New(wasm.Options{})
	defer func() { err = errors.Join(err, w.Close()) }()
	return f(author.Engines{policyv1alpha1.EngineWasm: w, policyv1alpha1.EngineRego: rego.New(rego.Options{Sandbox: w})})
}

func newPolicyInspect() *cobra.Command {
	var output string
	command := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Tell what a policy is, imports and may use",
		Long: `Inspect prints the manifest of a .wasm policy, its imports with the grant that
each needs, its limits, and what a server would refuse it for. Of a .rego policy,
or an OPA bundle, it prints the extension points.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withEngines(func(engines author.Engines) error {
				i, err := engines.Inspect(args[0])
				if err != nil {
					return err
				}
				return printed(cmd, output, i, func(table io.Writer) { inspectionTable(table, i) })
			})
		},
	}
	command.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return command
}

// printed writes value as JSON, or what table writes, in columns.
func printed(cmd *cobra.Command, output string, value any, table func(io.Writer)) error {
	switch output {
	case "table":
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		table(w)
		return w.Flush()
	case "json":
		encoder := json.NewEncoder(cmd.OutOrStdout())
		encoder.SetIndent("", "  ")
		return encoder.Encode(value)
	default:
		return fmt.Errorf("unknown output %q: it is table or json", output)
	}
}

func inspectionTable(w io.Writer, i *policies.Inspection) {
	row := func(name string, values ...string) {
		for k, value := range values {
			if k > 0 {
				name = ""
			}
			fmt.Fprintf(w, "%s\t%s\n", name, value)
		}
	}
	points := make([]string, len(i.ExtensionPoints))
	for k, p := range i.ExtensionPoints {
		points[k] = string(p)
	}
	row("name", strings.TrimSpace(i.Name+" "+i.Version))
	row("engine", string(i.Engine))
	row("size", fmt.Sprintf("%d bytes", i.Size))
	row("digest", i.Digest)
	row("extension points", strings.Join(points, ", "))
	if len(i.Columns) > 0 {
		row("columns", strings.Join(i.Columns, ", "))
	}
	for k, reason := range i.Reasons {
		row(fmt.Sprintf("reason %d", k+1), reason)
	}
	if len(i.Grants) > 0 {
		row("grants asked for", strings.Join(i.Grants, ", "))
	}
	if len(i.Reads) > 0 {
		row("reads", strings.Join(i.Reads, ", ")+": spec.grants.reads of its Policy has to name them")
	}
	for _, m := range i.Imports {
		text := m.Name + " " + m.Type
		if m.Grant != "" {
			text += ", needs the grant " + m.Grant
		}
		row("import", text)
	}
	var limits []string
	if l := i.Limits.Memory; l != nil {
		limits = append(limits, "memory "+l.String())
	}
	if l := i.Limits.Fuel; l != nil {
		limits = append(limits, fmt.Sprintf("fuel %d", *l))
	}
	if l := i.Limits.Deadline; l != nil {
		limits = append(limits, "deadline "+l.Duration.String())
	}
	row("limits", strings.Join(limits, ", "))
	if i.SelfTests > 0 {
		row("self-tests", fmt.Sprint(i.SelfTests))
	}
	if len(i.Problems) > 0 {
		row("a server refuses it", i.Problems...)
	}
}

func newPolicyPack() *cobra.Command {
	var out string
	command := &cobra.Command{
		Use:   "pack MODULE MANIFEST",
		Short: "Put a manifest into a module",
		Long: `Pack checks a manifest and writes the module with the manifest as its custom
section "qm.manifest", in the place of the one that is there.`,
		Example: "  quaymaster policy pack built.wasm manifest.json -o policy.wasm",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := author.PackFile(args[0], args[1], out); err != nil {
				return err
			}
			return withEngines(func(engines author.Engines) error {
				i, err := engines.Inspect(out)
				if err != nil {
					return err
				}
				return printBuilt(cmd, out, i)
			})
		},
	}
	command.Flags().StringVarP(&out, "output", "o", "", "file to write")
	if err := command.MarkFlagRequired("output"); err != nil {
		panic(err) // the flag is one line above
	}
	return command
}

func printBuilt(cmd *cobra.Command, file string, i *policies.Inspection) error {
	for _, p := range i.Problems {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: a server refuses it: %s\n", file, p)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %d bytes %s\n", file, i.Size, i.Digest)
	return err
}
