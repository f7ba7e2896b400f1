package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/core/api"
)

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of Quaymaster and of the Kubernetes libraries in it",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "quaymaster %s\nkubernetes %s\n%s %s/%s\n",
				version, api.KubernetesVersion, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
