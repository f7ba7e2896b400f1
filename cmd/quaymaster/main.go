// Command quaymaster is the engine, its node agent and its tools in one binary.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	_ "github.com/quaymaster/quaymaster/cmd/quaymaster/early" // a container's shim goes no further
	"github.com/quaymaster/quaymaster/runtime/cni"
	"github.com/quaymaster/quaymaster/runtime/cni/gate"
)

// version is set by the linker.
var version = "dev"

func main() {
	if filepath.Base(os.Args[0]) == cni.RelayType { // a container runtime runs us as a network plugin
		gate.RunRelay()
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newRoot().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "quaymaster:", err)
		os.Exit(1)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "quaymaster",
		Short: "A Kubernetes-compatible engine whose decisions are WebAssembly and Rego policies",
		Long: `Quaymaster is a Kubernetes-compatible orchestration engine in one binary. Where a
pod may go, where it should go and whether an object may exist are decided by
policies in WebAssembly or Rego, which are replaced while it runs.

Start with "quaymaster demo" for a tour, or "quaymaster up" for a cluster.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	for _, g := range []struct {
		title    string
		commands []*cobra.Command
	}{
		{"Run a cluster:", []*cobra.Command{newDemo(), newUp(), newServer(), newAgent()}},
		{"Use it:", []*cobra.Command{newKubectl(), newExplain(), newSimulate(), newHistory(), newDiff(), newUndelete()}},
		{"Write policies:", []*cobra.Command{newPolicy()}},
		{"Care for its data:", []*cobra.Command{newBackup(), newRestore(), newRotateKey(), newCerts(), newStore()}},
		{"Care for its nodes:", []*cobra.Command{newNode(), newImage(), newBackend()}},
	} {
		root.AddGroup(&cobra.Group{ID: g.title, Title: g.title})
		for _, c := range g.commands {
			c.GroupID = g.title
			root.AddCommand(c)
		}
	}
	root.SetFlagErrorFunc(helpOnFlags)
	root.AddCommand(newVersion())
	return root
}
