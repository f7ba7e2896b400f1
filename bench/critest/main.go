// Command critest runs upstream's tests of container runtimes, cri-tools' critest, against
// a backend of ours, through a socket as any CRI client has it. Its images are made here and
// come from a registry on loopback by hosts.toml, under the names that the tests ask for. It
// compares the outcomes to docs/critest.txt, or writes them there.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
	"github.com/quaymaster/quaymaster/runtime/cri/oci/shim"
	"github.com/quaymaster/quaymaster/runtime/cri/wasm/program"
)

// built names the folder of what is built before the namespaces are entered, where no network is.
const built = "QUAYMASTER_CRITEST_BUILT"

var (
	backend = flag.String("backend", "oci", "which of the backends: "+strings.Join(backends, ", "))
	focus   = flag.String("focus", "", "run the tests whose names match")
	skip    = flag.String("skip", "", "leave out the tests whose names match")
	update  = flag.Bool("update", false, "write the outcomes down")
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "oci-shim" {
		if err := shim.Run(os.Args[2]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 2 && os.Args[1] == "oci-pause" {
		shim.Pause()
	}
	if len(os.Args) == 3 && os.Args[1] == "wasm-shim" {
		if err := program.Shim(os.Args[2]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	os.Exit(begin(context.Background()))
}

// begin checks what it is asked for and builds; the rest goes on in namespaces. It returns the exit code.
func begin(ctx context.Context) int {
	if !containerdtest.IsInside() {
		dir, err := os.MkdirTemp("", "critest")
		if err == nil {
			defer os.RemoveAll(dir)
			err = errors.Join(check(), os.Setenv(built, dir))
		}
		if err == nil {
			err = build(ctx, dir)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return containerdtest.Inside(func() int {
		if err := run(ctx, os.Getenv(built)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	})
}

func check() error {
	if !slices.Contains(backends, *backend) {
		return fmt.Errorf("-backend %q: it is none of %s", *backend, strings.Join(backends, ", "))
	}
	if *update && *focus+*skip != "" {
		return errors.New("-update writes down what all tests come to: leave out -focus and -skip")
	}
	if why := containerdtest.Missing(); why != "" {
		return errors.New(strings.Replace(why, "this test", "critest", 1))
	}
	return nil
}

// build makes upstream's program, what its images want, and busybox, which is kept.
func build(ctx context.Context, dir string) error {
	cache, err := os.UserCacheDir()
	if err != nil {
		return fmt.Errorf("where to keep busybox: %w", err)
	}
	cache = filepath.Join(cache, "quaymaster", "critest")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	if err := containerdtest.BuildBusybox(ctx, filepath.Join(cache, "busybox")); err != nil {
		return err
	}
	if err := os.Symlink(filepath.Join(cache, "busybox"), filepath.Join(dir, "busybox")); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"-C", "suite", "test", "-c", "-o", filepath.Join(dir, "suite"), "sigs.k8s.io/cri-tools/cmd/critest"},
		{"build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "program"), "./program"},
	} {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
		}
	}
	return nil
}

func run(ctx context.Context, dir string) error {
	mirror, closeRegistry, err := serveImages(dir)
	if err != nil {
		return err
	}
	defer closeRegistry()
	socket := filepath.Join(dir, "cri.sock")
	stop, err := serveBackend(*backend, dir, mirror, socket)
	if err != nil {
		return err
	}
	report := filepath.Join(dir, "report.json")
	args := []string{"-runtime-endpoint", "unix://" + socket, "-image-endpoint", "unix://" + socket, "-ginkgo.json-report", report, "-ginkgo.no-color", "-test.timeout", "1h"}
	if *focus != "" {
		args = append(args, "-ginkgo.focus", *focus)
	}
	if *skip != "" {
		args = append(args, "-ginkgo.skip", *skip)
	}
	test := exec.CommandContext(ctx, filepath.Join(dir, "suite"), args...)
	test.Stdout, test.Stderr = os.Stdout, os.Stderr
	ran := test.Run() // fails with any of the tests: the report says which
	if err := stop(); err != nil {
		return err
	}
	content, err := os.ReadFile(report)
	if err != nil {
		return errors.Join(ran, err)
	}
	outcomes, err := decodeReport(content)
	if err != nil {
		return errors.Join(ran, err)
	}
	if *update {
		return write(docs, *backend, outcomes)
	}
	return compare(os.Stdout, docs, *backend, outcomes, *focus+*skip == "")
}
