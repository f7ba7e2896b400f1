package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/cmd/quaymaster/demo"
)

func newDemo() *cobra.Command {
	var options demo.Options
	command := &cobra.Command{
		Use:   "demo",
		Short: "Take a tour: engine, nodes, workloads, policies, a crash",
		Long: `Demo starts an engine and four nodes as processes of their own on this machine
and drives them through HTTPS, step by step. It ends with 0 only when each step
really happened.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if options.Binary, err = os.Executable(); err != nil {
				return err
			}
			options.Out = cmd.OutOrStdout()
			return demo.Run(cmd.Context(), options)
		},
	}
	command.Flags().StringVar(&options.DataDir, "data", "", "data directory, kept (default: a temporary one)")
	command.Flags().BoolVar(&options.Keep, "keep", false, "leave everything running until interrupted")
	return command
}
