package cni_test

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/runtime/cni"
)

func TestEnsure(t *testing.T) {
	bin, conf := t.TempDir(), filepath.Join(t.TempDir(), "net.d")
	opts := cni.Options{PodCIDR: netip.MustParsePrefix("10.244.1.0/24"), ConfDir: conf, BinDir: bin, DataDir: "/data"}
	if _, err := cni.Ensure(opts); err == nil || !strings.Contains(err.Error(), "bridge, host-local, portmap, loopback are not in "+bin) {
		t.Errorf("without plugins: %v", err)
	}
	for _, p := range []string{"bridge", "host-local", "portmap", "loopback"} {
		if err := os.WriteFile(filepath.Join(bin, p), nil, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // again: it is ours
		if name, err := cni.Ensure(opts); err != nil || name != cni.File {
			t.Fatalf("%s, %v", name, err)
		}
	}
	data, err := os.ReadFile(filepath.Join(conf, cni.File))
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		Name    string
		Plugins []struct {
			Type string
			IPAM struct{ Ranges [][]struct{ Subnet string } }
		}
	}
	if err := json.Unmarshal(data, &list); err != nil || len(list.Plugins) != 2 || list.Plugins[0].IPAM.Ranges[0][0].Subnet != "10.244.1.0/24" {
		t.Errorf("%s, %v", data, err)
	}
	if err := os.WriteFile(filepath.Join(conf, "10-other.conflist"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if name, err := cni.Ensure(opts); err != nil || name != "10-other.conflist" {
		t.Errorf("beside another: %s, %v", name, err)
	}
	for _, bad := range []string{"10.244.1.1/24", "10.244.1.0/30", "10.244.1.0/31", "fd00::/126"} {
		opts.PodCIDR = netip.MustParsePrefix(bad)
		if text, err := cni.Conflist(opts); err == nil {
			t.Errorf("%s: %s", bad, text)
		}
	}
	if _, err := cni.Conflist(cni.Options{}); err == nil {
		t.Error("no range at all")
	}
}
