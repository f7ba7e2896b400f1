// Package cni gives a node's container runtime a network configuration where it
// has none: pods on a bridge with addresses of the node's range.
package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// File is the name of the configuration that Ensure writes: the first by name is a runtime's, so that
// one of a network add-on, whose names begin with lower numbers, comes before it.
const File = "90-quaymaster.conflist"

// Options of Ensure. PodCIDR is needed.
type Options struct {
	// PodCIDR is the range of the node's pods: IPv4 of at most 29 bits, or IPv6 of at most 125.
	PodCIDR netip.Prefix
	// ConfDir is where the runtime looks for configurations, BinDir where plugins are; "" = /etc/cni/net.d
	// and the first of /usr/lib/cni and /opt/cni/bin that is there.
	ConfDir, BinDir string
	// DataDir keeps which addresses are taken; "" = /var/lib/cni/networks.
	DataDir string
	// Bridge is the name of the interface; "" = qm0.
	Bridge string
}

// plugins are those that the configuration uses; loopback is the runtime's own need.
var plugins = []string{"bridge", "host-local", "portmap", "loopback"}

// BinDir returns the first of a distribution's folders of plugins that is there.
func BinDir() string {
	for _, dir := range []string{"/usr/lib/cni", "/opt/cni/bin"} {
		if _, err := os.Stat(filepath.Join(dir, "bridge")); err == nil {
			return dir
		}
	}
	return "/opt/cni/bin"
}

// Configurations returns the names of a folder's configurations, in the order in which runtimes take them.
func Configurations(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("network configurations: %w", err)
	}
	var out []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".conf" || ext == ".conflist" || ext == ".json") {
			out = append(out, e.Name())
		}
	}
	slices.Sort(out)
	return out, nil
}

// Conflist is the configuration of a bridge network.
func Conflist(opts Options) ([]byte, error) {
	p := opts.PodCIDR
	if !p.IsValid() || p != p.Masked() || p.Addr().BitLen()-p.Bits() < 3 {
		return nil, fmt.Errorf("pod range %s: want a network like 10.244.1.0/24, with room for a gateway and pods", p)
	}
	everywhere := "0.0.0.0/0"
	if p.Addr().Is6() {
		everywhere = "::/0"
	}
	type m = map[string]any
	return json.MarshalIndent(m{"cniVersion": "1.0.0", "name": "quaymaster", "plugins": []m{
		{
			"type": "bridge", "bridge": opts.Bridge, "isGateway": true, "hairpinMode": true, "ipMasq": true,
			"ipam": m{"type": "host-local", "dataDir": opts.DataDir, "ranges": [][]m{{{"subnet": p.String()}}}, "routes": []m{{"dst": everywhere}}},
		},
		{"type": "portmap", "capabilities": m{"portMappings": true}},
	}}, "", "  ")
}

// Ensure writes the configuration, unless the runtime has another, whose name it returns.
func Ensure(opts Options) (inForce string, err error) {
	for _, d := range []struct {
		field *string
		value string
	}{{&opts.ConfDir, "/etc/cni/net.d"}, {&opts.BinDir, BinDir()}, {&opts.DataDir, "/var/lib/cni/networks"}, {&opts.Bridge, "qm0"}} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	text, err := Conflist(opts)
	if err != nil {
		return "", err
	}
	names, err := Configurations(opts.ConfDir)
	if err != nil {
		return "", err
	}
	if len(names) > 0 && names[0] != File {
		return names[0], nil
	}
	var missing []string
	for _, p := range plugins {
		if _, err := os.Stat(filepath.Join(opts.BinDir, p)); err != nil {
			missing = append(missing, p)
		}
	}
	if len(missing) > 0 {
		return "", fmt.Errorf("the network plugins %s are not in %s: install containernetworking-plugins", strings.Join(missing, ", "), opts.BinDir)
	}
	if err := os.MkdirAll(opts.ConfDir, 0o755); err != nil {
		return "", fmt.Errorf("network configuration: %w", err)
	}
	f, err := os.CreateTemp(opts.ConfDir, ".quaymaster-*") // runtimes read whatever has the right ending
	if err != nil {
		return "", fmt.Errorf("network configuration: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(text, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(opts.ConfDir, File))
	}
	if err != nil {
		return "", fmt.Errorf("network configuration: %w", err)
	}
	return File, nil
}
