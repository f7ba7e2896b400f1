package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/runtime/cri/wasm"
)

// imagesOf is where the wasm backend of a node keeps its images.
func imagesOf(data string) string { return filepath.Join(data, "wasm", "images") }

func newImage() *cobra.Command {
	var data string
	image := &cobra.Command{
		Use:   "image",
		Short: "Manage the WebAssembly images of a node",
		Long: `Image reads and writes the local OCI image layout of a node that runs
WebAssembly. DIR is the node's data directory: what "quaymaster agent" was given
as --data, or DATA/nodes/NAME for a node of "quaymaster up".`,
	}
	image.PersistentFlags().StringVar(&data, "data", "", "data directory of the node")
	if err := image.MarkPersistentFlagRequired("data"); err != nil {
		panic(err) // the flag is two lines above
	}
	image.AddCommand(
		&cobra.Command{
			Use:     "import FILE NAME",
			Short:   "Store a WASI program as an image",
			Example: "  quaymaster image import hello.wasm localhost/hello:1.0 --data ./data/nodes/local",
			Args:    cobra.ExactArgs(2),
			RunE: func(cmd *cobra.Command, args []string) error {
				images, err := wasm.OpenImages(imagesOf(data))
				if err != nil {
					return err
				}
				file, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer file.Close()
				stored, err := images.Import(args[1], file)
				if err != nil {
					return fmt.Errorf("import %s: %w", args[0], err)
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", stored.Name, stored.Digest)
				return err
			},
		},
		&cobra.Command{
			Use:   "list",
			Short: "List the images",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				images, err := wasm.OpenImages(imagesOf(data))
				if err != nil {
					return err
				}
				all, err := images.List()
				if err != nil {
					return err
				}
				table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(table, "NAME\tDIGEST\tBYTES")
				for _, i := range all {
					fmt.Fprintf(table, "%s\t%.19s\t%d\n", i.Name, i.Digest, i.Size)
				}
				return table.Flush()
			},
		},
		&cobra.Command{
			Use:   "remove NAME…",
			Short: "Forget images",
			Args:  cobra.MinimumNArgs(1),
			RunE: func(_ *cobra.Command, args []string) error {
				images, err := wasm.OpenImages(imagesOf(data))
				if err != nil {
					return err
				}
				var errs []error
				for _, name := range args {
					errs = append(errs, images.Remove(name))
				}
				return errors.Join(errs...)
			},
		},
	)
	return image
}
