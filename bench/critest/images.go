package main

import (
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
)

// images are what the tests run, of busybox and a program of our own, which are in a folder, by name.
func images(dir string) (map[string]v1.Image, error) {
	shell, err := containerdtest.BusyboxAt(filepath.Join(dir, "busybox"))
	if err != nil {
		return nil, err
	}
	for i, f := range shell {
		if f.Path == "bin/ls" { // is masked, and not all others with it
			shell[i] = containerdtest.File{Path: f.Path, Content: shell[0].Content}
		}
	}
	own, err := os.ReadFile(filepath.Join(dir, "program"))
	if err != nil {
		return nil, err
	}
	pause, err := containerdtest.PauseImage()
	if err != nil {
		return nil, err
	}
	make := func(config v1.Config, more ...containerdtest.File) (img v1.Image) {
		if err == nil {
			config.Env = []string{"PATH=/bin"}
			img, err = containerdtest.Image(config, append(slices.Clone(shell), more...)...)
		}
		return img
	}
	web := func(port int) v1.Image {
		return make(v1.Config{Cmd: []string{"/usr/sbin/nginx", "master process", fmt.Sprint(port)}},
			containerdtest.File{Path: "usr/sbin/nginx", Content: own}, containerdtest.File{Path: "var/run", Dir: true})
	}
	sh := v1.Config{Cmd: []string{"sh"}}
	users := []containerdtest.File{
		{Path: "etc/passwd", Content: []byte("root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/:/bin/false\ndefault-user:x:1000:1000::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"), Mode: 0o644},
		{Path: "etc/group", Content: []byte("root:x:0:\nwww-data:x:33:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\nnogroup:x:65534:\n"), Mode: 0o644},
	}
	same := make(sh, containerdtest.File{Path: "note", Content: []byte("tags"), Mode: 0o644})
	of := func(n string) v1.Image {
		return make(sh, containerdtest.File{Path: "note", Content: []byte(n), Mode: 0o644})
	}
	by := func(user string) v1.Image {
		return make(v1.Config{Cmd: []string{"sh"}, User: user}, users...)
	}
	if err != nil {
		return nil, err
	}
	other, err := containerdtest.Append(pause, containerdtest.File{Path: "note", Content: []byte("not that of sandboxes"), Mode: 0o644})
	all := map[string]v1.Image{
		"e2e-test-images/busybox:1.29-2": make(sh), "e2e-test-images/nginx:1.14-2": web(80), "e2e-test-images/httpd:2.4.39-4": web(80),
		"e2e-test-images/nonewprivs:1.3":                             make(v1.Config{Cmd: []string{"/bin/nnp"}}, containerdtest.File{Path: "bin/nnp", Content: own, Mode: 0o4755}),
		strings.TrimPrefix(containerdtest.Pause, "registry.k8s.io/"): pause, "pause:3.9": other,
	}
	for as, img := range map[string]v1.Image{
		"hostnet-nginx-" + runtime.GOARCH + ":latest": web(12003),
		"test-image-latest:latest":                    of("latest"), "test-image-tag:test": of("test"), "test-image-tag:all": of("all"),
		"test-image-1:latest": of("1"), "test-image-2:latest": of("2"), "test-image-3:latest": of("3"),
		"test-image-tags:1": same, "test-image-tags:2": same, "test-image-tags:3": same,
		"test-image-user-uid:latest": by("1002"), "test-image-user-uid-group:latest": by("1003:1003"),
		"test-image-user-username:latest": by("www-data"), "test-image-user-username-group:latest": by("www-data:www-data"),
		"test-image-predefined-group:latest": by("1000"),
	} {
		all["k8s-staging-cri-tools/"+as] = img
	}
	return all, err
}

// serveImages serves them on loopback, and returns the address to have all registries' images from.
func serveImages(dir string) (mirror string, end func(), err error) {
	all, err := images(dir)
	if err != nil {
		return "", nil, fmt.Errorf("make the images: %w", err)
	}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	for as, img := range all {
		ref, err := name.ParseReference(strings.TrimPrefix(server.URL, "http://")+"/"+as, name.Insecure)
		if err == nil {
			err = remote.Write(ref, img)
		}
		if err != nil {
			server.Close()
			return "", nil, fmt.Errorf("push %s: %w", as, err)
		}
	}
	return server.URL, server.Close, nil
}
