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
}

// build makes the binaries that are not there yet; ours always.
func build(ctx context.Context, root string) (binaries, error) {
	module := filepath.Join(root, "bench", "conformance")
	cache, err := cacheFolder(module)
	if err != nil {
		return binaries{}, err
	}
	b := binaries{
		quaymaster: filepath.Join(cache, "quaymaster"), e2e: filepath.Join(cache, "e2e.test"),
		kubectl: filepath.Join(cache, "kubectl"), ginkgo: filepath.Join(cache, "ginkgo"),
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
	for _, target := range []struct {
		path, folder string
		command      []string
	}{
		{b.e2e, module, append([]string{"test", "-c"}, flags("")...)},
		{b.kubectl, module, append([]string{"build"}, flags("")...)},
		{b.ginkgo, module, append([]string{"build"}, flags("")...)},
		{b.quaymaster, root, append([]string{"build"}, flags(" -X main.version=conformance")...)},
	} {
		pkg := map[string]string{
			b.e2e: "k8s.io/kubernetes/test/e2e", b.kubectl: "k8s.io/kubernetes/cmd/kubectl",
			b.ginkgo: "github.com/onsi/ginkgo/v2/ginkgo", b.quaymaster: "./cmd/quaymaster",
		}[target.path]
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
