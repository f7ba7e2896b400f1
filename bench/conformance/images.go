package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"k8s.io/kubernetes/test/utils/image"

	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
)

// searchPath is where programs are found in the images.
const searchPath = "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// images makes what upstream's tests run, from upstream's sources and Debian's programs, by the names
// that the tests ask for.
func images(b binaries) (map[string]v1.Image, error) {
	out := map[string]v1.Image{}
	var errs []error
	add := func(img v1.Image, err error, names ...string) {
		errs = append(errs, err)
		for _, n := range names {
			out[n] = img
		}
	}
	e2e := func(ids ...image.ImageID) (names []string) {
		for _, id := range ids {
			names = append(names, image.GetE2EImage(id))
		}
		return names
	}
	pause, err := containerdtest.PauseImage()
	add(pause, err, append(e2e(image.Pause), containerdtest.Pause)...)
	shell, err := containerdtest.BusyboxAt(b.busybox)
	if err != nil {
		return nil, err
	}
	config := v1.Config{Cmd: []string{"sh"}, Env: []string{searchPath}}
	busybox, err := containerdtest.Image(config, shell...)
	add(busybox, err, e2e(image.BusyBox)...)
	config.User = "1234"
	nonRoot, err := containerdtest.Image(config, shell...)
	add(nonRoot, err, e2e(image.NonRoot)...)
	agnhost, err := agnhostImage(b, shell)
	add(agnhost, err, e2e(image.Agnhost, image.AgnhostPrev)...)
	for id, animal := range map[image.ImageID]string{image.Nautilus: "nautilus", image.Kitten: "kitten"} {
		demo, err := updateDemo(b, agnhost, animal)
		add(demo, err, e2e(id)...)
	}
	names, err := dnsImage(b, shell)
	add(names, err, e2e(image.GlibcDnsTesting)...)
	program, err := read(b.etcd, "usr/local/bin/etcd", 0)
	errs = append(errs, err)
	etcd, err := containerdtest.Image(v1.Config{Env: []string{searchPath}}, append(slices.Clone(shell), program)...)
	add(etcd, err, e2e(image.Etcd)...)
	program, err = read(b.sampleServer, "sample-apiserver", 0)
	errs = append(errs, err)
	sample, err := containerdtest.Image(v1.Config{Entrypoint: []string{"/sample-apiserver"}}, append(slices.Clone(shell), program)...)
	add(sample, err, e2e(image.APIServer)...)
	privileges, err := read(b.nnp, "usr/local/bin/nnp", 0o4755)
	errs = append(errs, err)
	nnp, err := containerdtest.Image(v1.Config{Cmd: []string{"nnp"}, Env: []string{searchPath}}, append(shell, privileges)...)
	add(nnp, err, e2e(image.Nonewprivs)...)
	nginx, err := nginxImage(b, shell)
	add(nginx, err, e2e(image.Nginx, image.NginxNew)...)
	return out, errors.Join(errs...)
}

func read(path, as string, mode int64) (containerdtest.File, error) {
	content, err := os.ReadFile(path)
	return containerdtest.File{Path: as, Content: content, Mode: mode}, err
}

// agnhostImage follows upstream's Dockerfile, without iperf and CoreDNS.
func agnhostImage(b binaries, shell []containerdtest.File) (v1.Image, error) {
	program, err := read(b.agnhost, "agnhost", 0)
	if err != nil {
		return nil, err
	}
	var files []containerdtest.File
	for _, f := range shell {
		switch f.Path {
		case "etc/passwd":
			f.Content = append(f.Content[:len(f.Content):len(f.Content)], "user-defined-in-image:x:1000:1000::/home:/bin/sh\n"...)
		case "etc/group":
			f.Content = append(f.Content[:len(f.Content):len(f.Content)], "user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n"...)
		}
		files = append(files, f)
	}
	files = append(files, program, containerdtest.File{Path: "agnhost-2", Link: "agnhost"}, containerdtest.File{Path: "uploads", Dir: true})
	for _, file := range []string{"localhost.crt", "localhost.key"} {
		f, err := read(filepath.Join(b.upstream, "test/images/agnhost/porter", file), file, 0o644)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	for program, as := range map[string]string{
		"curl": "usr/bin/curl", "usr/bin/dig": "usr/bin/dig", "bin/nc.openbsd": "usr/bin/nc", "ss": "usr/bin/ss", "getent": "usr/bin/getent",
	} {
		more, err := b.dynamic(program, as)
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	return containerdtest.Image(v1.Config{
		Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, Env: []string{searchPath},
		ExposedPorts: map[string]struct{}{"80/tcp": {}, "8080/tcp": {}, "8081/tcp": {}, "9376/tcp": {}, "5000/tcp": {}},
	}, unique(files)...)
}

// updateDemo is agnhost serving the picture of an animal.
func updateDemo(b binaries, agnhost v1.Image, animal string) (v1.Image, error) {
	if agnhost == nil {
		return nil, nil // its own error says why
	}
	var files []containerdtest.File
	for _, file := range []string{animal + ".jpg", "data.json"} {
		f, err := read(filepath.Join(b.upstream, "test/images", animal, "html", file), file, 0o644)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	img, err := containerdtest.Append(agnhost, files...)
	if err != nil {
		return nil, err
	}
	c, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config := c.Config
	config.Cmd = []string{"test-webserver"}
	return mutate.Config(img, config)
}

// dnsImage has a resolver of glibc, where agnhost upstream has one of musl.
func dnsImage(b binaries, shell []containerdtest.File) (v1.Image, error) {
	files := append(slices.Clone(shell), containerdtest.File{Path: "etc/nsswitch.conf", Content: []byte("hosts: files dns\n"), Mode: 0o644})
	for program, as := range map[string]string{"usr/bin/dig": "usr/bin/dig", "getent": "usr/bin/getent", "hostname": "usr/bin/hostname"} {
		more, err := b.dynamic(program, as)
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	return containerdtest.Image(v1.Config{Cmd: []string{"sh"}, Env: []string{searchPath}}, unique(files)...)
}

// unique leaves the last of files with one path.
func unique(files []containerdtest.File) []containerdtest.File {
	seen := map[string]bool{}
	var out []containerdtest.File
	for _, f := range slices.Backward(files) {
		if !seen[f.Path] {
			seen[f.Path] = true
			out = append(out, f)
		}
	}
	slices.Reverse(out)
	return out
}

const nginxConf = `daemon off;
error_log /dev/stderr;
pid /tmp/nginx.pid;
events {}
http { access_log /dev/stdout; server { listen 80; root /usr/share/nginx/html; } }
`

func nginxImage(b binaries, shell []containerdtest.File) (v1.Image, error) {
	program, err := b.dynamic("usr/sbin/nginx", "usr/sbin/nginx")
	if err != nil {
		return nil, err
	}
	files := append(append([]containerdtest.File(nil), shell...), program...)
	for _, dir := range []string{"var", "var/log", "var/log/nginx", "var/lib", "var/lib/nginx"} {
		files = append(files, containerdtest.File{Path: dir, Dir: true})
	}
	files = append(files, containerdtest.File{Path: "etc/nginx/nginx.conf", Content: []byte(nginxConf), Mode: 0o644},
		containerdtest.File{Path: "usr/share/nginx/html/index.html", Content: []byte("nginx\n"), Mode: 0o644})
	return containerdtest.Image(v1.Config{
		Cmd: []string{"nginx", "-c", "/etc/nginx/nginx.conf"}, Env: []string{searchPath}, ExposedPorts: map[string]struct{}{"80/tcp": {}},
	}, files...)
}

// dynamic is a program with the libraries that it loads: one of Debian's packages by its path there, or
// one of the machine's by its name.
func (b binaries) dynamic(program, as string) ([]containerdtest.File, error) {
	path := filepath.Join(b.debian, program)
	if _, err := os.Stat(path); err != nil {
		if path, err = exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%w: apt-get install %s", err, program)
		}
	}
	first, err := read(path, as, 0)
	if err != nil {
		return nil, err
	}
	files := []containerdtest.File{first}
	unpacked := filepath.Join(b.debian, "usr/lib", triple) + ":" + filepath.Join(b.debian, "lib", triple)
	libraries, err := output(context.Background(), "/", "env", "LD_LIBRARY_PATH="+unpacked, "ldd", path)
	if err != nil {
		return nil, err
	}
	if strings.Contains(libraries, "not found") {
		return nil, fmt.Errorf("%s needs libraries that are not there:\n%s", program, libraries)
	}
	for line := range strings.Lines(libraries) { // name => path (address), or path (address)
		for _, f := range strings.Fields(line) {
			if !strings.HasPrefix(f, "/") {
				continue
			}
			lib, err := read(f, strings.TrimPrefix(strings.TrimPrefix(f, b.debian), "/"), 0)
			if err != nil {
				return nil, err
			}
			files = append(files, lib)
			break
		}
	}
	return files, nil
}

// triple is the folder of libraries of this architecture.
const triple = "x86_64-linux-gnu"

// serveImages is a registry on the loopback that has them under their names' paths; its address has no scheme.
func serveImages(ctx context.Context, b binaries) (address string, err error) {
	all, err := images(b)
	if err != nil {
		return "", fmt.Errorf("make images: %w", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0))), ReadHeaderTimeout: time.Minute}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	go func() { _ = server.Serve(listener) }()
	address = listener.Addr().String()
	for full, img := range all {
		_, path, _ := strings.Cut(full, "/")
		ref, err := name.ParseReference(address+"/"+path, name.Insecure)
		if err != nil {
			return "", err
		}
		if err := remote.Write(ref, img); err != nil {
			return "", fmt.Errorf("push %s: %w", full, err)
		}
	}
	return address, nil
}
