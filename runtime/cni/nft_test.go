package cni

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
)

// TestSweepNFT has rules as portmap and bridge write them with nftables, of two containers, one ID the beginning of the other.
func TestSweepNFT(t *testing.T) {
	containerdtest.Need(t)
	if _, err := exec.LookPath("nft"); err != nil {
		const hint = "this test needs nft: apt-get install nftables"
		if os.Getenv(containerdtest.Required) != "" { // whoever wants containers has it
			t.Fatal(hint)
		}
		t.Skip(hint)
	}
	rules := `
table ip cni_hostport {
	chain hostports {
		tcp dport 8080 dnat to 10.1.0.2:80 comment "aa"
		tcp dport 8081 dnat to 10.1.0.3:80 comment "aab"
	}
}
table inet cni_plugins_masquerade {
	chain masq_checks {
		ip saddr 10.1.0.2 ip daddr != 10.1.0.0/24 masquerade comment "0123456789abcdef-1, net: net, if: eth0, id: aa"
		ip saddr 10.1.0.3 ip daddr != 10.1.0.0/24 masquerade comment "0123456789abcdef-2, net: net, if: eth0, id: aab"
	}
	chain postrouting {
		type nat hook postrouting priority srcnat;
		goto masq_checks
	}
}
`
	if _, err := run(t.Context(), []byte(rules), "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, table := range []string{"ip cni_hostport", "inet cni_plugins_masquerade"} {
			if out, err := exec.Command("nft", append([]string{"delete", "table"}, strings.Fields(table)...)...).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		}
	})
	for range 2 { // the second time there is nothing to do
		if err := sweepNFT(t.Context(), "aa"); err != nil {
			t.Fatal(err)
		}
	}
	left, err := run(t.Context(), nil, "nft", "list", "ruleset")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(left, "10.1.0.2") || strings.Count(left, "10.1.0.3") != 2 {
		t.Errorf("left are\n%s", left)
	}
}

// FuzzDropNFT holds to it that nothing but rules goes, whatever nft prints.
func FuzzDropNFT(f *testing.F) {
	f.Add([]byte(`{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"rule": {"family": "ip", "table": "cni_hostport", "chain": "hostports", "handle": 2, "comment": "aa"}}]}`), "aa")
	f.Fuzz(func(t *testing.T, listed []byte, id string) {
		drop, err := dropNFT(listed, id)
		if err == nil && drop != "" && (id == "" || !strings.HasPrefix(drop, "delete rule ")) {
			t.Errorf("%q", drop)
		}
	})
}
