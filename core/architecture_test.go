package core_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/core/api"
)

const module = "github.com/quaymaster/quaymaster/"

// confined lists what only some packages may import, and why.
var confined = []struct {
	imported string   // an import path, or the prefix of one
	allowed  []string // packages below the module, with what is below them
	reason   string
}{
	{"github.com/dgraph-io/badger", []string{"core/storage"},
		"the store is one package: with a real etcd in its place nothing else changes"},
	{"filippo.io/age", []string{"core/storage"},
		"backups are encrypted where they are written"},
	{"go.etcd.io/etcd/server", nil,
		"only tests start an etcd: the product is a client of it"},
	{"github.com/tetratelabs/wazero", []string{"policies/wasm", "runtime/cri/wasm"},
		"the sandbox has one door for policies and one for workloads"},
	{"github.com/open-policy-agent", []string{"policies/rego"},
		"a policy's engine is behind the decision interface"},
	{"github.com/hashicorp/go-plugin", []string{"runtime/plugin", "sdk/backend"},
		"one supervisor answers for every backend process, and one package serves in it"},
	{"github.com/containerd", []string{"runtime/cri/containerd", "runtime/cri/oci"},
		"containerd is one backend among others; the one without a daemon unpacks layers by its library"},
	{"github.com/google/go-containerregistry", []string{"runtime/cri/containerd/containerdtest", "runtime/cri/oci", "policies/bundle", "bench/critest"},
		"programs of policies, images of tests and those of the backend without a daemon are read and made by it; other nodes leave images to their runtime"},
	{"github.com/opencontainers/runtime-spec", []string{"runtime/cri/oci"},
		"what runc is to run is one backend's affair"},
	{"github.com/containernetworking", []string{"runtime/cni"},
		"libcni is one network backend among others"},
	{"github.com/coreos/go-systemd", []string{"runtime/agent/slice"},
		"units of systemd are made in one place; who else asks it does so by the bus"},
	{"github.com/miekg/dns", []string{"runtime/dns"},
		"names are answered in one place"},
	{"k8s.io/kubernetes/", []string{"core/apiserver", "core/controllers/upstream", "runtime/proxy", "runtime/agent/credentials"},
		"upstream's internals follow upstream's release: keep them where an upgrade is one place; what a pull secret is for, the kubelet decides"},
	{module + "policies/wasm", []string{"core", "cmd", "policies/wasm", "wasm-plugins", "sdk/conformance"},
		"who decides knows the decision interface, never an engine"},
	{module + "policies/rego", []string{"core", "cmd", "policies/rego"},
		"who decides knows the decision interface, never an engine"},
}

// oneWay lists folders and what they must not import from this module.
var oneWay = []struct {
	folder    string
	forbidden []string
	reason    string
}{
	{"runtime", []string{"core/storage", "core/apiserver", "core/scheduler", "core/controllers", "core/admission", "core/informer"},
		"a node agent talks to an API server, it has no store and decides nothing for the cluster"},
	{"policies", []string{"core/storage", "core/apiserver", "core/scheduler", "core/controllers", "core/admission", "runtime"},
		"a policy is a function of what it is handed"},
	{"core/scheduler", []string{"core/storage", "core/apiserver", "core/controllers", "core/admission", "runtime", "policies/wasm", "policies/rego"},
		"simulation, replay and tests run the scheduler without a server"},
	{"core/controllers", []string{"core/storage", "core/apiserver", "core/scheduler", "runtime"},
		"controllers see objects, not where they are kept"},
	{"core/storage", []string{"core/apiserver", "core/controllers", "core/scheduler", "core/admission", "core/api", "runtime", "policies"},
		"the store knows keys and values, not kinds"},
	{"sdk/backend", []string{"core", "runtime", "policies", "cmd"},
		"a backend of anybody's imports nothing of the agent"},
	{"sdk/go", []string{"core", "runtime", "policies", "cmd", "sdk/conformance"},
		"a guest imports nothing of its host"},
}

// composition are the packages that put the others together: the engine's own
// and the commands, not the folders below core.
func composition(path string) bool {
	return path == "core" || path == "core/coretest" || strings.HasPrefix(path, "cmd/") || strings.HasPrefix(path, "examples/")
}

type goPackage struct {
	ImportPath, Doc, Dir string
	Imports, GoFiles     []string
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Doc,Dir,Imports,GoFiles", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("decode go list: %v", err)
		}
		if len(p.GoFiles) > 0 && !strings.HasPrefix(p.ImportPath, module+"warm") {
			all = append(all, p)
		}
	}
	if len(all) < 10 {
		t.Fatalf("go list found %d packages: the check would mean nothing", len(all))
	}
	return all
}

func within(path string, folders []string) bool {
	return slices.ContainsFunc(folders, func(f string) bool { return path == f || strings.HasPrefix(path, f+"/") })
}

func TestDependenciesPointOneWay(t *testing.T) {
	for _, p := range packages(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		for _, imported := range p.Imports {
			for _, rule := range confined {
				if !strings.HasPrefix(imported, rule.imported) {
					continue
				}
				allowed := within(path, rule.allowed)
				if slices.Contains(rule.allowed, "core") && !composition(path) && !within(path, rule.allowed[1:]) {
					allowed = false // "core" means the composition root alone
				}
				if !allowed {
					t.Errorf("%s imports %s: %s", path, imported, rule.reason)
				}
			}
			ours, ok := strings.CutPrefix(imported, module)
			if !ok {
				continue
			}
			for _, rule := range oneWay {
				if within(path, []string{rule.folder}) && within(ours, rule.forbidden) && !within(ours, []string{rule.folder}) {
					t.Errorf("%s imports %s: %s", path, ours, rule.reason)
				}
			}
		}
	}
}

func TestEveryPackageIsDocumented(t *testing.T) {
	for _, p := range packages(t) {
		if strings.TrimSpace(p.Doc) == "" {
			t.Errorf("%s has no package comment", strings.TrimPrefix(p.ImportPath, module))
		}
	}
}

func TestKubernetesVersionIsTheModules(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes").Output()
	if err != nil {
		t.Fatal(err)
	}
	if version := strings.TrimSpace(string(out)); version != api.KubernetesVersion {
		t.Errorf("go.mod has k8s.io/kubernetes %s, the API says %s", version, api.KubernetesVersion)
	}
}
