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

	"github.com/containernetworking/cni/libcni"
)

// RelayType is the type of the plugin through which a container runtime that calls
// plugins itself reaches the node's network. A configuration of it is never ours to run.
const RelayType = "quaymaster-cni"

// BinDirs returns a distribution's folders of plugins that are there.
func BinDirs() []string {
	var out []string
	for _, dir := range []string{"/opt/cni/bin", "/usr/lib/cni"} {
		if _, err := os.Stat(dir); err == nil {
			out = append(out, dir)
		}
	}
	return out
}

// configurations returns the names of a folder's configurations, in the order in which runtimes take them.
func configurations(dir string) ([]string, error) {
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

// parse reads a list, or the configuration of one plugin.
func parse(data []byte) (*libcni.NetworkConfigList, error) {
	var kind struct{ Plugins json.RawMessage }
	if err := json.Unmarshal(data, &kind); err != nil {
		return nil, err
	}
	if kind.Plugins != nil {
		return libcni.NetworkConfFromBytes(data)
	}
	one, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	return libcni.ConfListFromConf(one)
}

// errNone says that there is no network at all.
var errNone = errors.New("no network configuration")

// current is the network that new pods get: the first by name of the folder's
// configurations, else the built-in one.
func (s *Service) current() (list *libcni.NetworkConfigList, origin string, err error) {
	names, err := configurations(s.opts.ConfDir)
	if err != nil {
		return nil, "", err
	}
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(s.opts.ConfDir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			list, err = parse(data)
		}
		switch {
		case err != nil:
			return nil, "", fmt.Errorf("network configuration %s: %w", filepath.Join(s.opts.ConfDir, name), err)
		case len(list.Plugins) > 0 && list.Plugins[0].Network.Type == RelayType:
			continue
		case len(list.Plugins) == 0:
			return nil, "", fmt.Errorf("network configuration %s: it has no plugins", filepath.Join(s.opts.ConfDir, name))
		}
		return list, name, nil
	}
	builtIn := s.builtIn
	if builtIn == nil && s.opts.PodCIDRFile != "" {
		ranges, err := ReadRanges(s.opts.PodCIDRFile)
		if err != nil {
			return nil, "", err
		}
		if len(ranges) > 0 {
			if builtIn, err = s.conflist(ranges); err != nil {
				return nil, "", fmt.Errorf("the node's pod addresses: %w", err)
			}
		}
	}
	if builtIn == nil {
		return nil, "", fmt.Errorf("%w in %s, and no range for pods: put one there, or give the node --pod-cidr, or the server --cluster-cidr", errNone, s.opts.ConfDir)
	}
	list, err = parse(builtIn)
	return list, "built-in", err
}

// conflist is the built-in network of ranges.
func (s *Service) conflist(ranges []netip.Prefix) ([]byte, error) {
	return Conflist(ranges, s.opts.Bridge, filepath.Join(s.opts.StateDir, "addresses"))
}

// ReadRanges reads a node's ranges of pod addresses; none, if there is no such file.
func ReadRanges(path string) ([]netip.Prefix, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the node's pod addresses: %w", err)
	}
	var out []netip.Prefix
	for _, text := range strings.Fields(string(data)) {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("the node's pod addresses: %s: %w", path, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// WriteRanges writes the file that ReadRanges reads, in one step.
func WriteRanges(path string, ranges []string) error {
	for _, text := range ranges {
		if _, err := netip.ParsePrefix(text); err != nil {
			return fmt.Errorf("the node's pod addresses: %w", err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("the node's pod addresses: %w", err)
	}
	if err := os.WriteFile(path+".new", []byte(strings.Join(ranges, "\n")+"\n"), 0o600); err != nil {
		return fmt.Errorf("the node's pod addresses: %w", err)
	}
	return os.Rename(path+".new", path)
}

// missing returns the plugins of a list that are in none of the folders, those for addresses as well.
func (s *Service) missing(list *libcni.NetworkConfigList) []string {
	var out []string
	look := func(plugin string) {
		if _, err := s.exec.FindInPath(plugin, s.opts.BinDirs); err != nil && !slices.Contains(out, plugin) {
			out = append(out, plugin)
		}
	}
	for _, p := range list.Plugins {
		look(p.Network.Type)
		if p.Network.IPAM.Type != "" {
			look(p.Network.IPAM.Type)
		}
	}
	return out
}

// Conflist is the built-in network: a bridge whose pods have addresses of the ranges, host
// ports, limits of bandwidth, and a way through a firewall that forwards nothing else.
func Conflist(ranges []netip.Prefix, bridge, dataDir string) ([]byte, error) {
	type m = map[string]any
	var sets [][]m
	var routes []m
	for _, p := range ranges {
		if !p.IsValid() || p != p.Masked() || p.Addr().BitLen()-p.Bits() < 3 {
			return nil, fmt.Errorf("pod range %s: want a network like 10.244.1.0/24, with room for a gateway and pods", p)
		}
		everywhere := "0.0.0.0/0"
		if p.Addr().Is6() {
			everywhere = "::/0"
		}
		if slices.ContainsFunc(routes, func(r m) bool { return r["dst"] == everywhere }) {
			return nil, fmt.Errorf("pod range %s: one of each IP family at most", p)
		}
		sets = append(sets, []m{{"subnet": p.String()}})
		routes = append(routes, m{"dst": everywhere})
	}
	if len(sets) == 0 {
		return nil, errors.New("the built-in network needs a range for pods")
	}
	return json.MarshalIndent(m{"cniVersion": "1.0.0", "name": "quaymaster", "plugins": []m{
		{
			"type": "bridge", "bridge": bridge, "isGateway": true, "hairpinMode": true, "ipMasq": true,
			"ipam": m{"type": "host-local", "dataDir": dataDir, "ranges": sets, "routes": routes},
		},
		{"type": "portmap", "capabilities": m{"portMappings": true}},
		{"type": "firewall"},
		{"type": "bandwidth", "capabilities": m{"bandwidth": true}},
	}}, "", "  ")
}

// describe names a network for people.
func (s *Service) describe(list *libcni.NetworkConfigList, origin string) string {
	var types []string
	for _, p := range list.Plugins {
		types = append(types, p.Network.Type)
	}
	if origin == "built-in" {
		var ranges []string
		for _, r := range s.opts.PodCIDRs {
			ranges = append(ranges, r.String())
		}
		origin += " for " + strings.Join(ranges, ", ")
	}
	return fmt.Sprintf("%s: %s (%s)", list.Name, strings.Join(types, ", "), origin)
}
