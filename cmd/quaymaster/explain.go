package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/quaymaster/quaymaster/cmd/quaymaster/matrix"
	"github.com/quaymaster/quaymaster/core/api"
	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
)

func newExplain() *cobra.Command {
	var from cluster
	var output string
	var all, taken bool
	command := &cobra.Command{
		Use:   "explain pod [NAMESPACE/]NAME",
		Short: "Tell why a pod went where it went, or why it goes nowhere",
		Long: `Explain prints, for each node, the filter that refused it or the weighted score
of every plugin and policy. For a running pod it also prints the decision as it
was taken. For one that no node takes it prints what preemption would do, and the
smallest changes that would let it run, which have been tried. With --all it prints
every filter that refuses a node, with what the pod wants and what the node has.
With --taken it prints the nodes as they were when the last decision was taken.`,
		Example: "  quaymaster explain pod default/web-7c5d --all -o yaml",
		Args: cobra.MatchAll(cobra.ExactArgs(2), func(_ *cobra.Command, args []string) error {
			if args[0] != "pod" && args[0] != "pods" {
				return fmt.Errorf("only pods are scheduled: say explain pod %s", args[1])
			}
			return nil
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, inUse, err := from.config()
			if err != nil {
				return err
			}
			namespace, name, found := strings.Cut(args[1], "/")
			if !found {
				namespace, name = inUse, namespace
			}
			client, err := api.NewClient(config)
			if err != nil {
				return err
			}
			var decision *decisionv1alpha1.Decision
			switch {
			case taken:
				decision, err = client.TakenDecision(cmd.Context(), namespace, name)
			case all:
				decision, err = client.FullDecision(cmd.Context(), namespace, name)
			default:
				decision, err = client.Decisions(namespace).Get(cmd.Context(), name, metav1.GetOptions{})
			}
			if err != nil {
				return fmt.Errorf("explain pod %s/%s: %w", namespace, name, err)
			}
			return printDecision(cmd, decision, output)
		},
	}
	from.kubeconfigFlag(command)
	command.Flags().BoolVar(&all, "all", false, "every filter that refuses a node, and preemption on each")
	command.Flags().BoolVar(&taken, "taken", false, "the nodes as they were when the last decision was taken")
	command.MarkFlagsMutuallyExclusive("all", "taken")
	command.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	return command
}

func printDecision(cmd *cobra.Command, decision *decisionv1alpha1.Decision, output string) error {
	switch output {
	case "table":
		return matrix.Write(cmd.OutOrStdout(), decision, "")
	case "json":
		decision.GetObjectKind().SetGroupVersionKind(decisionv1alpha1.SchemeGroupVersion.WithKind("Decision"))
		encoder := json.NewEncoder(cmd.OutOrStdout())
		encoder.SetIndent("", "  ")
		return encoder.Encode(decision)
	case "yaml":
		decision.GetObjectKind().SetGroupVersionKind(decisionv1alpha1.SchemeGroupVersion.WithKind("Decision"))
		text, err := yaml.Marshal(decision)
		if err != nil {
			return err
		}
		_, err = cmd.OutOrStdout().Write(text)
		return err
	default:
		return fmt.Errorf("unknown output %q: it is table, json or yaml", output)
	}
}
