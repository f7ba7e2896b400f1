package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/cert"

	"github.com/quaymaster/quaymaster/core"
)

func newCerts() *cobra.Command {
	command := &cobra.Command{
		Use:   "certs",
		Short: "Look at a running server's certificates and keys, and make them anew",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	command.AddCommand(newCertsCheck(), newCertsRotate())
	return command
}

func newCertsCheck() *cobra.Command {
	var from cluster
	var output string
	command := &cobra.Command{
		Use:   "check",
		Short: "List certificates and keys, and when they expire",
		Long: `Check asks the server for its certificates and keys. The last line is of the
certificate that it was asked with. What has a time at RENEWED is made anew then by
the server itself; an authority is made anew by "quaymaster certs rotate --ca".`,
		Example: "  quaymaster certs check --kubeconfig ./data/kubeconfig",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf("--output %q: it is json, or left out for a table", output)
			}
			client, config, err := from.client()
			if err != nil {
				return err
			}
			data, err := client.CoreV1().RESTClient().Get().AbsPath(core.CertificatesPath).DoRaw(cmd.Context())
			if err != nil {
				return fmt.Errorf("list the certificates: %w", err)
			}
			var all []core.Certificate
			if err := json.Unmarshal(data, &all); err != nil {
				return fmt.Errorf("list the certificates: the server's answer: %w", err)
			}
			if own, ok := ownCertificate(config); ok {
				all = append(all, own)
			}
			if output == "json" {
				encoder := json.NewEncoder(cmd.OutOrStdout())
				encoder.SetIndent("", "  ")
				return encoder.Encode(all)
			}
			table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(table, "NAME\tSUBJECT\tFILE\tEXPIRES\tRENEWED\tSIGNED BY")
			for _, c := range all {
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", c.Name, c.Subject, c.File, day(c.Expires), day(c.Renewed), c.SignedBy)
			}
			return table.Flush()
		},
	}
	from.kubeconfigFlag(command)
	command.Flags().StringVarP(&output, "output", "o", "", "json, instead of a table")
	return command
}

// day is a time in a table; "-" where there is none.
func day(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04")
}

// ownCertificate is the client's, from the kubeconfig.
func ownCertificate(config *rest.Config) (core.Certificate, bool) {
	copied := rest.CopyConfig(config)
	if rest.LoadTLSFiles(copied) != nil {
		return core.Certificate{}, false
	}
	parsed, err := cert.ParseCertsPEM(copied.CertData)
	if err != nil {
		return core.Certificate{}, false // a token, for example
	}
	return core.Certificate{Name: "this client", Subject: parsed[0].Subject.String(), File: "(kubeconfig)", Expires: parsed[0].NotAfter, SignedBy: parsed[0].Issuer.String()}, true
}

func newCertsRotate() *cobra.Command {
	var from cluster
	var wanted core.Rotation
	command := &cobra.Command{
		Use:   "rotate",
		Short: "Make certificates and keys anew while the server runs",
		Long: `Rotate makes the certificates of the server itself anew, and writes DATA/kubeconfig
and DATA/join-token. With a flag it makes more, and nobody is cut off:

  --ca              the cluster's authority. The one before is trusted for the
                    overlap: nodes get certificates of the new one by themselves,
                    copies of DATA/kubeconfig have to be replaced by then.
  --front-proxy-ca  the authority by which extension servers know this server.
  --token-key       the key of service account tokens. The next key is published at
                    once and signs an hour later; the one before verifies until the
                    last token that it has signed has ended.

Only administrators may do it, and whom a role allows "post" of the non-resource
URL /certificates/rotate.`,
		Example: "  quaymaster certs rotate --ca --overlap 48h --kubeconfig ./data/kubeconfig",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("overlap") && !wanted.Authority && !wanted.FrontProxy {
				return fmt.Errorf("--overlap is for --ca and --front-proxy-ca")
			}
			client, _, err := from.client()
			if err != nil {
				return err
			}
			body, err := json.Marshal(wanted)
			if err != nil {
				return err
			}
			data, err := client.CoreV1().RESTClient().Post().AbsPath(core.RotateCertificatesPath).
				SetHeader("Content-Type", "application/json").Body(body).DoRaw(cmd.Context())
			if err != nil {
				return fmt.Errorf("rotate certificates: %w: %s", err, data)
			}
			var done core.Rotated
			if err := json.Unmarshal(data, &done); err != nil {
				return fmt.Errorf("rotate certificates: the server's answer: %w", err)
			}
			out := cmd.OutOrStdout()
			fmt.Fprintln(out, "the server's certificates are new")
			if !done.TrustedUntil.IsZero() {
				fmt.Fprintf(out, "what was signed before is trusted until %s\n", done.TrustedUntil.UTC().Format(time.RFC3339))
			}
			if !done.SignsFrom.IsZero() {
				fmt.Fprintf(out, "the next key of tokens is published, and signs from %s\n", done.SignsFrom.UTC().Format(time.RFC3339))
			}
			return nil
		},
	}
	from.kubeconfigFlag(command)
	flags := command.Flags()
	flags.BoolVar(&wanted.Authority, "ca", false, "make the cluster's authority anew")
	flags.BoolVar(&wanted.FrontProxy, "front-proxy-ca", false, "make the authority of the front proxy anew")
	flags.BoolVar(&wanted.TokenKey, "token-key", false, "make the key of service account tokens anew")
	flags.DurationVar(&wanted.Overlap, "overlap", core.DefaultOverlap, "how long the authorities before are trusted")
	return command
}

// renewFiles is how often an administrator's file is written anew without a
// rotation: its certificate lives for a year.
const renewFiles = 30 * 24 * time.Hour

// writeFiles writes what administrators and agents start with, and returns the
// path of the kubeconfig.
func writeFiles(engine *core.Engine, dir string) (string, error) {
	kubeconfig, err := engine.Kubeconfig()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "kubeconfig")
	if err := writeSecret(path, kubeconfig); err != nil {
		return "", err
	}
	return path, writeSecret(filepath.Join(dir, "join-token"), []byte(engine.JoinToken()+"\n"))
}

// keepFiles writes them again whenever credentials have changed, until the context ends.
func keepFiles(ctx context.Context, engine *core.Engine, dir string, changed <-chan struct{}, failed func(error)) {
	ticker := time.NewTicker(renewFiles)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			changed = engine.CredentialsChanged() // before they are read: none is missed
		case <-ticker.C:
		}
		if _, err := writeFiles(engine, dir); err != nil {
			failed(err)
		}
	}
}
