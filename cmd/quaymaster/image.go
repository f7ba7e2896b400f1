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
	"github.com/quaymaster/quaymaster/runtime/cri/oci"
	"github.com/quaymaster/quaymaster/runtime/cri/wasm"
)

// imagesOf is where the wasm backend of a node keeps its images.
func imagesOf(data string) string { return filepath.Join(data, "wasm", "images") }

// errNoData says which flag is missing.
var errNoData = errors.New("say the node's directory as --data")

type imageFlags struct{ data, address, runtime string }

func newImage() *cobra.Command {
	f := &imageFlags{}
	image := &cobra.Command{
		Use:   "image",
		Short: "Manage the images of a node",
		Long: `Image reads and writes the local OCI image layout of a node that runs
WebAssembly or, with --runtime oci, containers without a daemon. DIR is the node's
data directory: what "quaymaster agent" was given as --data, or DATA/nodes/NAME for
a node of "quaymaster up". With --runtime-address import stores the images of an
archive in a containerd.`,
	}
	image.PersistentFlags().StringVar(&f.data, "data", "", "data directory of the node")
	image.PersistentFlags().StringVar(&f.runtime, "runtime", runtimeWasm, "whose images: wasm or oci")
	imports := &cobra.Command{
		Use:   "import FILE [NAME]",
		Short: "Store a WASI program as an image, or the images of an archive",
		Example: `  quaymaster image import hello.wasm localhost/hello:1.0 --data ./data/nodes/local
  quaymaster image import nginx.tar --runtime oci --data ./quaymaster-node01
  quaymaster image import pause.tar --runtime-address unix:///run/containerd/containerd.sock`,
		Args: cobra.RangeArgs(1, 2),
		RunE: f.importFile,
	}
	imports.Flags().StringVar(&f.address, "runtime-address", "", "socket of a containerd, unix:///PATH: FILE is what docker save or an OCI layout in a tar file has")
	image.AddCommand(
		imports,
		&cobra.Command{Use: "list", Short: "List the images", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error { return f.list(cmd) }},
		&cobra.Command{Use: "remove NAME…", Short: "Forget images", Args: cobra.MinimumNArgs(1), RunE: func(_ *cobra.Command, args []string) error { return f.remove(args) }},
	)
	return image
}

// check says what is wrong with the flags of a node's own images.
func (f *imageFlags) check() error {
	if f.runtime != runtimeWasm && f.runtime != runtimeOCI {
		return fmt.Errorf("--runtime %q: images of a node's own are those of wasm and oci", f.runtime)
	}
	if f.data == "" {
		return errNoData
	}
	return nil
}

func (f *imageFlags) importFile(cmd *cobra.Command, args []string) error {
	archive := f.address != "" || f.runtime == runtimeOCI
	switch {
	case f.address != "" && (len(args) == 2 || f.data != ""):
		return errors.New("an archive names its images: with --runtime-address say neither a name nor --data")
	case f.address != "" && cmd.Flags().Changed("runtime"):
		return errors.New("--runtime-address is a containerd: say no --runtime")
	case archive && len(args) == 2:
		return errors.New("an archive names its images: with --runtime oci say no name")
	case !archive && len(args) == 1:
		return errors.New("a WASI program needs a name; for the archive of containers' images say --runtime oci or --runtime-address")
	}
	if f.address == "" {
		if err := f.check(); err != nil {
			return err
		}
	}
	if f.runtime == runtimeOCI {
		images, err := oci.OpenImages(oci.ImagesDir(ociDir(f.data)))
		if err != nil {
			return err
		}
		names, err := images.Import(args[0])
		for _, name := range names {
			fmt.Fprintln(cmd.OutOrStdout(), name)
		}
		return err
	}
	file, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer file.Close()
	if f.address != "" {
		return importArchive(cmd, f.address, file)
	}
	images, err := wasm.OpenImages(imagesOf(f.data))
	if err != nil {
		return err
	}
	stored, err := images.Import(args[1], file)
	if err != nil {
		return fmt.Errorf("import %s: %w", args[0], err)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", stored.Name, stored.Digest)
	return err
}

func (f *imageFlags) list(cmd *cobra.Command) error {
	if err := f.check(); err != nil {
		return err
	}
	table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tDIGEST\tBYTES")
	if f.runtime == runtimeOCI {
		images, err := oci.OpenImages(oci.ImagesDir(ociDir(f.data)))
		if err != nil {
			return err
		}
		all, err := images.List()
		if err != nil {
			return err
		}
		for _, i := range all {
			fmt.Fprintf(table, "%s\t%.19s\t%d\n", i.Name, i.Digest, i.Size)
		}
		return table.Flush()
	}
	images, err := wasm.OpenImages(imagesOf(f.data))
	if err != nil {
		return err
	}
	all, err := images.List()
	if err != nil {
		return err
	}
	for _, i := range all {
		fmt.Fprintf(table, "%s\t%.19s\t%d\n", i.Name, i.Digest, i.Size)
	}
	return table.Flush()
}

func (f *imageFlags) remove(names []string) error {
	if err := f.check(); err != nil {
		return err
	}
	var images interface{ Remove(string) error }
	var err error
	if f.runtime == runtimeOCI {
		images, err = oci.OpenImages(oci.ImagesDir(ociDir(f.data)))
	} else {
		images, err = wasm.OpenImages(imagesOf(f.data))
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, images.Remove(name))
	}
	return errors.Join(errs...)
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
