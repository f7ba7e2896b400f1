package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/agent"
	"github.com/quaymaster/quaymaster/runtime/cri"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd"
	"github.com/quaymaster/quaymaster/runtime/cri/oci"
	"github.com/quaymaster/quaymaster/runtime/cri/socket"
)

// Names of --runtime.
const (
	runtimeAuto       = "auto"
	runtimeContainerd = "containerd"
	runtimeCRI        = "cri"
	runtimeOCI        = "oci"
	runtimeWasm       = "wasm"
	runtimeSim        = "sim"
)

// sockets are where auto looks, in this order.
var sockets = []struct{ runtime, address string }{
	{runtimeContainerd, containerd.DefaultAddress},
	{runtimeCRI, "unix:///run/crio/crio.sock"},
	{runtimeCRI, "unix:///run/cri-dockerd.sock"},
}

// nodeRuntime is what an agent runs containers with.
type nodeRuntime struct {
	name    string
	asked   string   // with its address, as a Node's annotation names it
	command []string // of the backend's process
	taken   string   // what auto took and why, for people; "" if it was asked for
	// containers tells that the machine's own kernel runs the containers.
	containers bool
	labels     map[string]string
	capacity   corev1.ResourceList
}

// chooseRuntime resolves --runtime and --runtime-address for a node whose data is in dir.
func chooseRuntime(ctx context.Context, executable, name, address, dir string) (r nodeRuntime, err error) {
	if name == runtimeAuto {
		if address != "" {
			return r, fmt.Errorf("--runtime-address is for --runtime %s or %s", runtimeContainerd, runtimeCRI)
		}
		name, address, r.taken = detectRuntime(ctx)
	}
	r.name, r.labels, r.asked = name, map[string]string{}, name
	if address != "" && !(name == runtimeContainerd && address == containerd.DefaultAddress) {
		r.asked += "@" + address
	}
	if r.capacity, err = agent.MachineCapacity(); err != nil {
		return r, err
	}
	switch name {
	case runtimeContainerd, runtimeCRI:
		if address == "" && name == runtimeContainerd {
			address = containerd.DefaultAddress
		}
		if _, err := cri.SocketPath(address); err != nil {
			return r, fmt.Errorf("--runtime-address: %w", err)
		}
		r.containers, r.command = true, []string{executable, "backend", name, address}
	case runtimeOCI:
		if err := oci.Missing(""); err != nil {
			return r, fmt.Errorf("--runtime %s: %w", name, err)
		}
		r.containers, r.command = true, []string{executable, "backend", name, ociDir(dir)}
	case runtimeWasm:
		r.command = []string{executable, "backend", "wasm", filepath.Join(dir, "wasm"), "--", executable, "backend", "wasm-shim"}
		r.labels = map[string]string{corev1.LabelArchStable: "wasm", corev1.LabelOSStable: "wasi"}
	case runtimeSim:
		r.command, r.capacity = []string{executable, "backend", "sim"}, agent.DefaultCapacity()
	default:
		if !filepath.IsAbs(name) {
			return r, fmt.Errorf("--runtime %q: it is auto, containerd, cri, oci, wasm, sim or the absolute path of a backend's program", name)
		}
		r.containers, r.command = true, []string{name}
	}
	return r, nil
}

// runtimeFile is where a node keeps the runtime that its Node object had it change to: it comes before --runtime.
func runtimeFile(data string) string { return filepath.Join(data, "runtime") }

func saveRuntime(data, runtime string) error {
	path := runtimeFile(data)
	if err := os.WriteFile(path+".new", []byte(runtime+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// savedRuntime returns the runtime that was changed to, or else the flags'.
func savedRuntime(data, name, address string) (string, string, error) {
	text, err := os.ReadFile(runtimeFile(data))
	if errors.Is(err, os.ErrNotExist) {
		return name, address, nil
	}
	if err == nil {
		name, address, err = parseRuntime(strings.TrimSpace(string(text)))
	}
	if err != nil {
		return "", "", fmt.Errorf("%s: %w; without this file the node has the runtime of --runtime", runtimeFile(data), err)
	}
	return name, address, nil
}

// parseRuntime reads a runtime as a Node's annotation names it: one of ours, as an object of the API must not start programs.
func parseRuntime(text string) (name, address string, err error) {
	name, address, _ = strings.Cut(text, "@")
	switch name {
	case runtimeContainerd, runtimeCRI:
	case runtimeOCI, runtimeWasm, runtimeSim:
		if address != "" {
			return "", "", fmt.Errorf("runtime %q has no address", name)
		}
	default:
		return "", "", fmt.Errorf("runtime %q: it is containerd, cri, oci, wasm or sim; an address follows after @", text)
	}
	return name, address, nil
}

// ociDir is where the oci backend of a node keeps its images and containers.
func ociDir(data string) string { return filepath.Join(data, "oci") }

// detectRuntime takes the first container runtime that answers, else runc, else WebAssembly.
func detectRuntime(ctx context.Context) (name, address, taken string) {
	var missed []string
	for _, s := range sockets {
		if !cri.IsSocket(s.address) {
			continue
		}
		version, err := runtimeVersion(ctx, s.address)
		if err != nil {
			missed = append(missed, fmt.Sprintf("; %s does not serve CRI: %v", s.address, err))
			continue
		}
		return s.runtime, s.address, fmt.Sprintf("%s at %s", version, s.address)
	}
	none := "there is no containerd or other CRI runtime" + strings.Join(missed, "")
	if err := oci.Missing(""); err != nil {
		return runtimeWasm, "", fmt.Sprintf("WebAssembly only: %s; %v", none, err)
	}
	return runtimeOCI, "", "runc, without a daemon: " + none
}

func runtimeVersion(ctx context.Context, address string) (string, error) {
	b, err := socket.New(address)
	if err != nil {
		return "", err
	}
	defer b.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	v, err := b.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return "", err
	}
	return v.RuntimeName + " " + v.RuntimeVersion, nil
}

// withLabels returns the runtime's labels and, over them, those that were asked for.
func (r nodeRuntime) withLabels(more map[string]string) map[string]string {
	labels := maps.Clone(r.labels)
	maps.Copy(labels, more)
	return labels
}
