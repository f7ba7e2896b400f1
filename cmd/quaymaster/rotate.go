package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/core"
)

func newRotateKey() *cobra.Command {
	var from cluster
	command := &cobra.Command{
		Use:   "rotate-key",
		Short: "Encrypt the Secrets of a running server with a new key",
		Long: `Rotate-key makes a new key in DATA/pki/encryption.yaml of the server and encrypts
with it every Secret that is stored. The key before stays in the file, for history
and backups of its time; the one before that goes. Keep a copy of the file with
your backups, apart from them.

Only administrators may do it, and whom a role allows "post" of the non-resource
URL /encryption/rotate.`,
		Example: "  quaymaster rotate-key --kubeconfig ./data/kubeconfig",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := from.client()
			if err != nil {
				return err
			}
			data, err := client.CoreV1().RESTClient().Post().AbsPath(core.RotateKeyPath).DoRaw(cmd.Context())
			if err != nil {
				return fmt.Errorf("rotate the key: %w: %s", err, data)
			}
			var done core.KeyRotation
			if err := json.Unmarshal(data, &done); err != nil {
				return fmt.Errorf("rotate the key: the server's answer: %w", err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d objects are encrypted with a new key\n", done.Written)
			return err
		},
	}
	from.kubeconfigFlag(command)
	return command
}
