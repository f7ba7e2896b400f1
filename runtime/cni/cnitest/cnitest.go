// Package cnitest is what tests of pods' networks share: a test binary that is also the process of a network backend,
// and a look at what pods left of their networks.
package cnitest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/quaymaster/quaymaster/runtime/cni"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
	"github.com/quaymaster/quaymaster/sdk/backend"
)

const childEnv = "QUAYMASTER_TEST_NETWORK"

// Env makes a process of the test's binary a network backend: with the folders of its state and of configurations.
func Env(state, conf string) string { return childEnv + "=" + state + ":" + conf }

// Main runs a package's tests as containerdtest.Main does, or is the network backend that Env asks for.
func Main(m *testing.M, options func(state, conf string) cni.Options) {
	dirs := os.Getenv(childEnv)
	if dirs == "" {
		os.Exit(containerdtest.Main(m))
	}
	state, conf, _ := strings.Cut(dirs, ":")
	s, err := cni.New(options(state, conf))
	if err == nil {
		err = backend.ServeNetwork(s)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Left tells what is there of pods' networks, a line each: files of a backend's state, interfaces, and rules of
// iptables that name a pod or one of the addresses, which are told by how they begin (10.77.0.). Chains that all
// pods share are not a pod's.
func Left(state string, addresses ...string) (string, error) {
	var out []string
	patterns := []string{"attachments/*", "cache/results/*"}
	for _, a := range addresses {
		patterns = append(patterns, "addresses/*/"+a+"*")
	}
	for _, pattern := range patterns {
		names, err := filepath.Glob(filepath.Join(state, pattern))
		if err != nil {
			return "", err
		}
		out = append(out, names...)
	}
	links, err := netlink.LinkList()
	if err != nil {
		return "", err
	}
	for _, l := range links {
		if l.Type() == "veth" || l.Type() == "ifb" {
			out = append(out, "interface "+l.Attrs().Name)
		}
	}
	for _, save := range []string{"iptables-save", "ip6tables-save"} {
		rules, err := exec.Command(save).Output()
		if err != nil {
			return "", fmt.Errorf("%s: %w", save, err)
		}
		for line := range strings.Lines(string(rules)) {
			if ofPod(line, addresses) {
				out = append(out, save+" "+strings.TrimSpace(line))
			}
		}
	}
	return strings.Join(out, "\n"), nil
}

// ofPod tells a rule that names a pod's container, as the plugins' comments do, or an address; and a chain that is a pod's.
func ofPod(line string, addresses []string) bool {
	for _, a := range append([]string{`id: \"`, ":CNI-DN-", ":CNI-SN-"}, addresses...) {
		if strings.Contains(line, a) {
			return true
		}
	}
	return false
}
