package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of Quaymaster and of the Kubernetes libraries in it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			kubernetes := "unknown"
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, dependency := range info.Deps {
					if dependency.Path == "k8s.io/kubernetes" {
						kubernetes = dependency.Version
					}
				}
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "quaymaster %s\nkubernetes %s\n%s %s/%s\n",
				version, kubernetes, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
