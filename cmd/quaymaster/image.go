package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/runtime/cri/containerd"
	"github.com/quaymaster/quaymaster/runtime/cri/wasm"
)

// imagesOf is where the wasm backend of a node keeps its images.
func imagesOf(data string) string { return filepath.Join(data, "wasm", "images") }

// errNoData says which flag is missing.
var errNoData = errors.New("say the node's directory as --data")

func newImage() *cobra.Command {
	var data, address string
	image := &cobra.Command{
		Use:   "image",
		Short: "Manage the images of a node",
		Long: `Image reads and writes the local OCI image layout of a node that runs
WebAssembly. DIR is the node's data directory: what "quaymaster agent" was given
as --data, or DATA/nodes/NAME for a node of "quaymaster up". With --runtime-address
import stores the images of an archive in a containerd.`,
	}
	image.PersistentFlags().StringVar(&data, "data", "", "data directory of the node")
	imports := &cobra.Command{
		Use:   "import FILE [NAME]",
		Short: "Store a WASI program as an image, or an archive's images in a containerd",
		Example: `  quaymaster image import hello.wasm localhost/hello:1.0 --data ./data/nodes/local
  quaymaster image import pause.tar --runtime-address unix:///run/containerd/containerd.sock`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case address != "" && (len(args) == 2 || data != ""):
				return errors.New("an archive names its images: with --runtime-address say neither a name nor --data")
			case address == "" && len(args) == 1:
				return errors.New("a WASI program needs a name; for the archive of containers' images say --runtime-address")
			case address == "" && data == "":
				return errNoData
			}
			file, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer file.Close()
			if address != "" {
				return importArchive(cmd, address, file)
			}
			images, err := wasm.OpenImages(imagesOf(data))
			if err != nil {
				return err
			}
			stored, err := images.Import(args[1], file)
			if err != nil {
				return fmt.Errorf("import %s: %w", args[0], err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", stored.Name, stored.Digest)
			return err
		},
	}
	imports.Flags().StringVar(&address, "runtime-address", "", "socket of a containerd, unix:///PATH: FILE is what docker save or an OCI layout in a tar file has")
	image.AddCommand(
		imports,
		&cobra.Command{
			Use:   "list",
			Short: "List the images",
			Args:  noArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				if data == "" {
					return errNoData
				}
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
				if data == "" {
					return errNoData
				}
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

// importArchive stores the images of an archive in a containerd and says their names.
func importArchive(cmd *cobra.Command, address string, file *os.File) error {
	b, err := containerd.New(containerd.Options{Address: address})
	if err != nil {
		return fmt.Errorf("--runtime-address: %w", err)
	}
	defer b.Close()
	names, err := b.Import(cmd.Context(), file)
	if err != nil {
		return fmt.Errorf("%s: %w", file.Name(), err)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintln(cmd.OutOrStdout(), name)
	}
	return nil
}
