package main

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/quaymaster/quaymaster/runtime/dns"
	"github.com/quaymaster/quaymaster/runtime/proxy"
)

// Names of --service-proxy.
const (
	proxyNone     = "none"
	proxyNFTables = "nftables"
)

// services checks the flags of services and names, and makes the proxy.
func (f *agentFlags) services(log *slog.Logger) error {
	if f.dnsListen != "" {
		at, err := netip.ParseAddrPort(f.dnsListen)
		if err != nil || at.Addr().IsUnspecified() {
			return fmt.Errorf("--dns-listen %q: say an address of this machine that pods reach, with a port, like 10.0.0.2:53", f.dnsListen)
		}
		if len(f.clusterDNS) == 0 {
			if at.Port() != 53 {
				return fmt.Errorf("--dns-listen %q: pods ask at port 53; say --cluster-dns with the server that they are to ask", f.dnsListen)
			}
			f.clusterDNS = []string{at.Addr().String()}
		}
		if len(f.dnsForward) == 0 {
			if f.dnsForward, err = machineServers("/etc/resolv.conf"); err != nil {
				return err
			}
		}
		for i, server := range f.dnsForward {
			if address, err := netip.ParseAddr(server); err == nil {
				f.dnsForward[i] = netip.AddrPortFrom(address, 53).String()
			} else if _, err := netip.ParseAddrPort(server); err != nil {
				return fmt.Errorf("--dns-forward %q: say an address, like 1.1.1.1 or 1.1.1.1:53", server)
			}
		}
	} else if len(f.dnsForward) > 0 {
		return errors.New("--dns-forward is of the server at --dns-listen")
	}
	switch f.serviceProxy {
	case proxyNone, "":
		return nil
	case proxyNFTables:
	default:
		return fmt.Errorf("--service-proxy %q: it is nftables or none", f.serviceProxy)
	}
	host, _, err := net.SplitHostPort(f.listen)
	if err != nil {
		return fmt.Errorf("--listen %q: %w", f.listen, err)
	}
	address := net.ParseIP(host)
	if address == nil || address.IsUnspecified() || address.IsLoopback() {
		return fmt.Errorf("--service-proxy: node ports are served at the address of --listen, which %q is none for: say the machine's own", f.listen)
	}
	f.proxy, err = proxy.New(proxy.Options{NodeName: f.name, Address: address, Logger: log.With("part", "proxy")})
	return err
}

// names is the server of names, nil for none.
func (f *agentFlags) names(log *slog.Logger) *dns.Options {
	if f.dnsListen == "" {
		return nil
	}
	return &dns.Options{Listen: f.dnsListen, Domain: f.clusterDomain, Forward: f.dnsForward, Logger: log.With("part", "dns")}
}

// machineServers are the name servers of a resolv.conf; without the file there is none.
func machineServers(path string) ([]string, error) {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("the machine's name servers: %w", err)
	}
	defer file.Close()
	var servers []string
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 1 && fields[0] == "nameserver" {
			servers = append(servers, fields[1])
		}
	}
	return servers, lines.Err()
}
