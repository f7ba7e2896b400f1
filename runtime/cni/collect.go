package cni

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quaymaster/quaymaster/sdk/backend/network"
)

// GC takes back what attachments of the journal hold that are not among the valid ones, and tells plugins that
// collect by themselves (from CNI 1.1 on) of the valid ones.
func (s *Service) GC(ctx context.Context, in *network.GCRequest) (*network.GCResponse, error) {
	valid := map[string]bool{}
	args := &libcni.GCArgs{}
	for _, a := range in.Valid {
		k, err := key(a)
		if err != nil {
			return nil, err
		}
		valid[k] = true
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: a.ContainerId, IfName: a.Interface})
	}
	s.collecting.Lock()
	defer s.collecting.Unlock()
	entries, err := os.ReadDir(s.journalDir())
	if err != nil {
		return nil, status.Errorf(codes.Internal, "the network's journal: %v", err)
	}
	out := &network.GCResponse{}
	var errs []error
	for _, file := range entries {
		if valid[file.Name()] {
			continue
		}
		e, err := s.entry(file.Name())
		if err == nil {
			one, cancel := context.WithTimeout(ctx, s.opts.Timeout)
			if err = s.release(one, file.Name(), e); err == nil && runtimesNamespace(e.Attachment.Netns) {
				err = RemoveNamespace(e.Attachment.Netns) // its runtime has forgotten it
			}
			cancel()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("attachment %s: %w", file.Name(), err))
			continue
		}
		out.Collected = append(out.Collected, fmt.Sprintf("pod %s/%s, %s of %s", e.Attachment.PodNamespace, e.Attachment.PodName, e.Attachment.Interface, e.Attachment.ContainerId))
	}
	if list, _, err := s.current(); err == nil && len(s.missing(list)) == 0 {
		one, cancel := context.WithTimeout(ctx, s.opts.Timeout)
		defer cancel()
		if err := s.cni.GCNetworkList(one, list, args); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, status.Errorf(codes.Internal, "collect: %v", err)
	}
	return out, nil
}

// sweep removes what standard plugins leave of an attachment: addresses of host-local, rules and chains of
// bridge, portmap and firewall, in iptables or nftables, the device of bandwidth, and the network namespace.
func (s *Service) sweep(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf, addresses []address) error {
	var errs []error
	var ips []net.IP
	for _, a := range addresses {
		ips = append(ips, a.ip)
		if err := os.Remove(a.file); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	for _, tables := range []string{"iptables", "ip6tables"} {
		errs = append(errs, sweepRules(ctx, tables, rt.ContainerID, ips))
	}
	if usesNFT(list) {
		errs = append(errs, sweepNFT(ctx, rt.ContainerID))
	}
	// The name is the bandwidth plugin's: 15 characters of a hash.
	ifb := fmt.Sprintf("bwp%x", sha512.Sum512([]byte(list.Name+rt.ContainerID)))[:15]
	if link, err := netlink.LinkByName(ifb); err == nil {
		errs = append(errs, netlink.LinkDel(link))
	}
	return errors.Join(errs...)
}

// address is one that host-local gave away.
type address struct {
	ip   net.IP
	file string
}

// addressesOf finds an attachment's addresses in host-local's folders: a file named after the address holds the
// container's ID and, on a line of its own, the interface.
func addressesOf(list *libcni.NetworkConfigList, id, ifname string) []address {
	var out []address
	for _, p := range list.Plugins {
		var conf struct {
			IPAM struct{ Type, DataDir string }
		}
		if json.Unmarshal(p.Bytes, &conf) != nil || conf.IPAM.Type != "host-local" {
			continue
		}
		dir := conf.IPAM.DataDir
		if dir == "" {
			dir = "/var/lib/cni/networks"
		}
		dir = filepath.Join(dir, list.Name)
		files, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, f := range files {
			ip := net.ParseIP(strings.ReplaceAll(f.Name(), "_", ":"))
			if ip == nil {
				continue
			}
			data, err := os.ReadFile(filepath.Join(dir, f.Name()))
			if fields := strings.Fields(string(data)); err == nil && len(fields) > 0 && fields[0] == id && (len(fields) == 1 || fields[1] == ifname) {
				out = append(out, address{ip, filepath.Join(dir, f.Name())})
			}
		}
	}
	return out
}

// sweepRules removes an attachment's rules and chains by one restore, which changes all or nothing.
func sweepRules(ctx context.Context, tables, id string, ips []net.IP) error {
	if _, err := exec.LookPath(tables); err != nil {
		return nil // then no plugin has made any
	}
	saved, err := run(ctx, nil, tables+"-save")
	if err != nil {
		return err
	}
	drop := dropRules(saved, id, ips)
	if drop == "" {
		return nil
	}
	_, err = run(ctx, []byte(drop), tables+"-restore", "--noflush", "--wait")
	return err
}

func run(ctx context.Context, stdin []byte, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// ownChain is the name of a chain that a plugin makes for one attachment.
var ownChain = regexp.MustCompile(`^CNI-([A-Z]{2}-)?[0-9a-f]{16,}$`)

// dropRules turns what iptables-save printed into what iptables-restore must read to be rid of the rules whose comment
// has the container's ID, the chains that they lead to, and the firewall plugin's rules for the addresses. "" = there are none.
func dropRules(saved, id string, ips []net.IP) string {
	var out strings.Builder
	var lines []string
	name := ""
	flush := func() {
		if text := dropFrom(lines, id, ips); text != "" {
			fmt.Fprintf(&out, "*%s\n%sCOMMIT\n", name, text)
		}
		lines = nil
	}
	for line := range strings.Lines(saved) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			name = line[1:]
		case line == "COMMIT":
			flush()
		case strings.HasPrefix(line, "-A "):
			lines = append(lines, line)
		}
	}
	return out.String()
}

// dropFrom is dropRules for the rules of one table.
func dropFrom(lines []string, id string, ips []net.IP) string {
	var chains []string
	ours := make([]bool, len(lines))
	target := func(line string) string {
		fields := strings.Fields(line)
		if i := slices.Index(fields, "-j"); i >= 0 && i+1 < len(fields) && ownChain.MatchString(fields[i+1]) {
			return fields[i+1]
		}
		return ""
	}
	for i, line := range lines {
		ours[i] = strings.Contains(line, `id: \"`+id+`\"`)
		if chain := target(line); ours[i] && chain != "" && !slices.Contains(chains, chain) {
			chains = append(chains, chain)
		}
		if strings.HasPrefix(line, "-A CNI-FORWARD ") {
			for _, ip := range ips {
				bits := "/32"
				if ip.To4() == nil {
					bits = "/128"
				}
				fields := strings.Fields(line)
				for k, f := range fields[:len(fields)-1] {
					ours[i] = ours[i] || (f == "-s" || f == "-d") && fields[k+1] == ip.String()+bits
				}
			}
		}
	}
	var b strings.Builder
	for i, line := range lines {
		chain := strings.Fields(line)[1]
		if slices.Contains(chains, chain) {
			continue // goes with its chain
		}
		if ours[i] || slices.Contains(chains, target(line)) {
			fmt.Fprintf(&b, "-D %s\n", strings.TrimPrefix(line, "-A "))
		}
	}
	for _, c := range chains {
		fmt.Fprintf(&b, "-F %s\n", c)
	}
	for _, c := range chains {
		fmt.Fprintf(&b, "-X %s\n", c)
	}
	return b.String()
}

// runtimesNamespace tells whether a path is where runtimes bind the namespaces of pods.
func runtimesNamespace(path string) bool {
	dir, name := filepath.Split(path)
	return (dir == "/run/netns/" || dir == "/var/run/netns/") && strings.HasPrefix(name, "cni-")
}
