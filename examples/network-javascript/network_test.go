package networkjavascript_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/quaymaster/quaymaster/runtime/cni"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
	"github.com/quaymaster/quaymaster/runtime/plugin"
	"github.com/quaymaster/quaymaster/sdk/backend"
	"github.com/quaymaster/quaymaster/sdk/backend/verify"
)

func TestMain(m *testing.M) { os.Exit(containerdtest.Main(m)) }

// TestConformance runs the kit for networks on a backend in another language.
func TestConformance(t *testing.T) {
	why := containerdtest.Missing()
	for _, program := range []string{"node", "openssl", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			why = "this test needs " + program
		}
	}
	if _, err := os.Stat("node_modules/@grpc/grpc-js"); err != nil {
		why = "this test needs node_modules: npm ci --ignore-scripts"
	}
	if why != "" {
		if os.Getenv("QUAYMASTER_REQUIRE_TOOLCHAINS") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	program, err := filepath.Abs("network.js")
	if err != nil {
		t.Fatal(err)
	}
	s, err := plugin.Start(plugin.Options{Kind: backend.Network, Command: []string{program, t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	verify.Network(verify.Testing(t), verify.NetworkTarget{
		Network: s.Network(), NewNamespace: cni.NewNamespace, RemoveNamespace: cni.RemoveNamespace, Run: cni.RunInNamespace,
	})
}
