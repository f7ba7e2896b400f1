package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// binaries are paths. Upstream's are kept in the user's cache, as their build
// takes minutes.
type binaries struct {
	quaymaster, e2e, kubectl, ginkgo string

	agnhost, nnp, nginx string // for images of real containers
	upstream            string // the folder of upstream's sources
}

// paths of the binaries, which need not be there.
func paths(root string) (b binaries, module string, err error) {
	module = filepath.Join(root, "bench", "conformance")
	cache, err := cacheFolder(module)
	return binaries{
		quaymaster: filepath.Join(cache, "quaymaster"), e2e: filepath.Join(cache, "e2e.test"),
		kubectl: filepath.Join(cache, "kubectl"), ginkgo: filepath.Join(cache, "ginkgo"),
		agnhost: filepath.Join(cache, "agnhost"), nnp: filepath.Join(cache, "nnp"), nginx: filepath.Join(cache, "nginx", "usr", "sbin", "nginx"),
	}, module, err
}

// build makes the binaries that are not there yet; ours always. Those for images are for a real node.
func build(ctx context.Context, root string, node bool) (binaries, error) {
	b, module, err := paths(root)
	if err != nil {
		return b, err
	}
	version, err := output(ctx, module, "go", "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
	if err != nil {
		return b, err
	}
	flags := func(more string) []string {
		const at = " -X k8s.io/component-base/version."
		minor, _, _ := strings.Cut(strings.TrimPrefix(version, "v1."), ".")
		return []string{"-ldflags", "-s -w" + more + at + "gitVersion=" + version + at + "gitMajor=1" + at + "gitMinor=" + minor}
	}
	type target struct {
		path, pkg, folder string
		command           []string
	}
	targets := []target{
		{b.e2e, "k8s.io/kubernetes/test/e2e", module, append([]string{"test", "-c"}, flags("")...)},
		{b.kubectl, "k8s.io/kubernetes/cmd/kubectl", module, append([]string{"build"}, flags("")...)},
		{b.ginkgo, "github.com/onsi/ginkgo/v2/ginkgo", module, append([]string{"build"}, flags("")...)},
		{b.quaymaster, "./cmd/quaymaster", root, append([]string{"build"}, flags(" -X main.version=conformance")...)},
	}
	if node { // containers have none of the machine's libraries
		static := []string{"build", "-trimpath", "-ldflags", "-s -w", "-tags", "netgo,osusergo"}
		targets = append(targets, target{b.agnhost, "k8s.io/kubernetes/test/images/agnhost", module, static},
			target{b.nnp, "k8s.io/kubernetes/test/images/nonewprivs", module, static})
		if err := debian(ctx, filepath.Dir(b.agnhost), "nginx"); err != nil {
			return b, err
		}
	}
	for _, target := range targets {
		pkg := target.pkg
		if _, err := os.Stat(target.path); err == nil && target.path != b.quaymaster {
			continue
		}
		fmt.Fprintln(os.Stderr, "build", pkg)
		temporary := target.path + ".new"
		if _, err := output(ctx, target.folder, "go", append(target.command, "-o", temporary, pkg)...); err != nil {
			return b, err
		}
		if err := os.Rename(temporary, target.path); err != nil {
			return b, err
		}
	}
	return b, nil
}

// debian unpacks a Debian package into a folder of its name below dir.
func debian(ctx context.Context, dir, name string) error {
	folder := filepath.Join(dir, name)
	if _, err := os.Stat(folder); err == nil {
		return nil
	}
	if _, err := output(ctx, dir, "apt-get", "download", name); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
	if err != nil || len(files) != 1 {
		return fmt.Errorf("apt-get download %s left %q, %w", name, files, err)
	}
	if _, err := output(ctx, dir, "dpkg-deb", "-x", files[0], folder+".new"); err != nil {
		return err
	}
	return os.Rename(folder+".new", folder)
}

// sources is the folder of upstream's module.
func sources(ctx context.Context, module string) (string, error) {
	return output(ctx, module, "go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes")
}

// cacheFolder is one for the versions in go.sum and the toolchain.
func cacheFolder(module string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("where to keep upstream's binaries: %w", err)
	}
	sums, err := os.ReadFile(filepath.Join(module, "go.sum"))
	if err != nil {
		return "", err
	}
	hash := sha256.Sum256(append(sums, runtime.Version()...))
	folder := filepath.Join(cache, "quaymaster", "conformance-"+hex.EncodeToString(hash[:6]))
	return folder, os.MkdirAll(folder, 0o755)
}

// output runs a command and returns its standard output without the last line's end.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	command := exec.CommandContext(ctx, name, args...)
	command.Dir = dir
	var errors strings.Builder
	command.Stderr = &errors
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, errors.String())
	}
	return strings.TrimSpace(string(out)), nil
}
