package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestServiceFlags(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for _, c := range []struct {
		flags agentFlags
		want  string // in the error; "" is none
	}{
		{agentFlags{}, ""},
		{agentFlags{dnsListen: "10.0.0.2:53", dnsForward: []string{"1.1.1.1", "[2001:db8::1]:54", "2001:db8::2"}}, ""},
		{agentFlags{dnsListen: "10.0.0.2:5353", clusterDNS: []string{"10.0.0.3"}, dnsForward: []string{"1.1.1.1"}}, ""},
		{agentFlags{dnsListen: "10.0.0.2:5353"}, "say --cluster-dns"},
		{agentFlags{dnsListen: "0.0.0.0:53"}, "say an address of this machine"},
		{agentFlags{dnsListen: "node1:53"}, "say an address of this machine"},
		{agentFlags{dnsListen: "10.0.0.2:53", dnsForward: []string{"example.org"}}, `--dns-forward "example.org"`},
		{agentFlags{dnsForward: []string{"1.1.1.1"}}, "of the server at --dns-listen"},
		{agentFlags{serviceProxy: "ipvs", listen: "10.0.0.2:10250"}, "it is nftables or none"},
		{agentFlags{serviceProxy: proxyNFTables, listen: "127.0.0.1:0"}, "say the machine's own"},
		{agentFlags{serviceProxy: proxyNFTables, listen: ":10250"}, "say the machine's own"},
		{agentFlags{serviceProxy: proxyNFTables, listen: "10.0.0.2"}, "--listen"},
	} {
		f := c.flags
		err := f.services(log)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v, want %q", c.flags, err, c.want)
		}
	}
	f := agentFlags{dnsListen: "10.0.0.2:53", dnsForward: []string{"1.1.1.1", "[2001:db8::1]:54", "2001:db8::2"}, clusterDomain: "x"}
	if err := f.services(log); err != nil {
		t.Fatal(err)
	}
	if want := []string{"1.1.1.1:53", "[2001:db8::1]:54", "[2001:db8::2]:53"}; !slices.Equal(f.dnsForward, want) || !slices.Equal(f.clusterDNS, []string{"10.0.0.2"}) {
		t.Errorf("forward %q, cluster %q", f.dnsForward, f.clusterDNS)
	}
	if o := f.names(log); o == nil || o.Domain != "x" || o.Listen != "10.0.0.2:53" {
		t.Errorf("%+v", o)
	}
}

func TestMachineServers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if servers, err := machineServers(path); err != nil || servers != nil {
		t.Errorf("without the file: %q, %v", servers, err)
	}
	if err := os.WriteFile(path, []byte("# nameserver 9.9.9.9\nsearch a b\nnameserver 10.0.0.1\nnameserver\nnameserver fe80::1 x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if servers, err := machineServers(path); err != nil || !slices.Equal(servers, []string{"10.0.0.1", "fe80::1"}) {
		t.Errorf("%q, %v", servers, err)
	}
}
