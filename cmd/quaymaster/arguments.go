package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// noArgs is cobra.NoArgs, but calls an argument an argument and says what to write.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%s takes no argument %q; write: %s", cmd.CommandPath(), args[0], cmd.UseLine())
	}
	return nil
}

// helpOnFlags says of a wrong flag where the right ones are.
func helpOnFlags(cmd *cobra.Command, err error) error {
	return fmt.Errorf(`%w; "%s --help" lists the flags`, err, cmd.CommandPath())
}
