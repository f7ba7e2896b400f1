package main

import (
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/component-base/cli"
	kubernetes "k8s.io/component-base/version"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/plugin"
	"k8s.io/kubectl/pkg/cmd/util"
)

// newKubectl is upstream's kubectl with its own flags, help and exit codes. Its
// command tree is made only when it is called: it is larger than all of ours.
func newKubectl() *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl",
		Short:              "Upstream's kubectl",
		DisableFlagParsing: true,
		Run: func(c *cobra.Command, args []string) {
			if strings.Contains(kubernetes.Get().GitVersion, "$") {
				// Not stamped by `task build`: a placeholder that kubectl cannot parse.
				if err := kubernetes.SetDynamicVersion("v0.0.0-unstamped"); err != nil {
					panic(err) // the text is above
				}
			}
			kubectl := cmd.NewDefaultKubectlCommandWithArgs(cmd.KubectlOptions{
				Arguments:     append([]string{"kubectl"}, args...),
				PluginHandler: cmd.NewDefaultPluginHandler(plugin.ValidPluginFilenamePrefixes),
				IOStreams:     genericiooptions.IOStreams{In: c.InOrStdin(), Out: c.OutOrStdout(), ErrOut: c.ErrOrStderr()},
			})
			kubectl.SetArgs(args)
			if err := cli.RunNoErrOutput(kubectl); err != nil {
				util.CheckErr(err) // prints as upstream does and ends the process
			}
		},
	}
}
