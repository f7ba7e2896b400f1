package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
)

// binaries are paths. Upstream's are kept in the user's cache, as their build
// takes minutes.
type binaries struct {
	quaymaster, e2e, kubectl, ginkgo string

	agnhost, nnp, etcd, sampleServer string // for images of real containers
	debian                           string // Debian's packages for the same, unpacked
	busybox                          string // one with a shell as that of upstream's image
	upstream                         string // the folder of upstream's sources
}

// paths of the binaries, which need not be there.
func paths(root string) (b binaries, module string, err error) {
	module = filepath.Join(root, "bench", "conformance")
	cache, err := cacheFolder(module)
	return binaries{
		quaymaster: filepath.Join(cache, "quaymaster"), e2e: filepath.Join(cache, "e2e.test"),
		kubectl: filepath.Join(cache, "kubectl"), ginkgo: filepath.Join(cache, "ginkgo"),
		agnhost: filepath.Join(cache, "agnhost"), nnp: filepath.Join(cache, "nnp"), etcd: filepath.Join(cache, "etcd"),
		sampleServer: filepath.Join(cache, "sample-apiserver"), debian: filepath.Join(cache, "debian"),
		busybox: filepath.Join(cache, "busybox"),
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
			target{b.nnp, "k8s.io/kubernetes/test/images/nonewprivs", module, static},
			target{b.etcd, "go.etcd.io/etcd/server/v3", module, static}, target{b.sampleServer, "k8s.io/sample-apiserver", module, static})
		if err := unpack(ctx, b.debian); err != nil {
			return b, err
		}
		if err := containerdtest.BuildBusybox(ctx, b.busybox); err != nil {
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

// debianPackages have the programs of images that the machine need not have, with libraries of theirs.
var debianPackages = []string{
	"nginx", "libpcre2-8-0", "netcat-openbsd", "libbsd0", "libmd0", "bind9-dnsutils", "bind9-libs", "libedit2", "libfstrm0", "libicu72", "libidn2-0", "libjemalloc2",
	"libjson-c5", "liblmdb0", "libmaxminddb0", "libnghttp2-14", "libprotobuf-c1", "libuv1", "libxml2",
}

// unpack makes a folder with what Debian's packages have.
func unpack(ctx context.Context, folder string) error {
	if _, err := os.Stat(folder); err == nil {
		return nil
	}
	temporary := folder + ".new"
	if err := errors.Join(os.RemoveAll(temporary), os.Mkdir(temporary, 0o755)); err != nil {
		return err
	}
	if _, err := output(ctx, temporary, "apt-get", append([]string{"download"}, debianPackages...)...); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(temporary, "*.deb"))
	if err != nil || len(files) != len(debianPackages) {
		return fmt.Errorf("apt-get download left %q, %w", files, err)
	}
	for _, f := range files {
		if _, err := output(ctx, temporary, "dpkg-deb", "-x", f, "."); err != nil {
			return err
		}
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	return os.Rename(temporary, folder)
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
	var failed strings.Builder
	command.Stderr = &failed
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, failed.String())
	}
	return strings.TrimSpace(string(out)), nil
}
