//go:build linux

package slice_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/bustest"
	"github.com/quaymaster/quaymaster/runtime/agent/cgroup"
	"github.com/quaymaster/quaymaster/runtime/agent/slice"
)

const (
	object = "/org/freedesktop/systemd1"
	face   = "org.freedesktop.systemd1.Manager"
)

// manager is as much of systemd as has slices: each is a folder below the mounts.
type manager struct {
	t      *testing.T
	conn   *dbus.Conn
	mounts []string

	mu    sync.Mutex
	units map[string]map[string]any
	job   uint32
}

type property struct {
	Name  string
	Value dbus.Variant
}

type auxiliary struct {
	Name       string
	Properties []property
}

func newManager(t *testing.T, address string, mounts ...string) *manager {
	t.Helper()
	m := &manager{t: t, conn: bustest.Connect(t, address), mounts: mounts, units: map[string]map[string]any{}}
	if err := m.conn.Export(m, object, face); err != nil {
		t.Fatal(err)
	}
	if _, err := prop.Export(m.conn, object, prop.Map{face: {"Version": {Value: "252"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.conn.RequestName("org.freedesktop.systemd1", dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	return m
}

// below is a slice's folder, by the rules of systemd.slice(5).
func below(name string) string {
	path, so := "/", ""
	for _, part := range strings.Split(strings.TrimSuffix(name, ".slice"), "-") {
		so = strings.TrimPrefix(so+"-"+part, "-")
		path = filepath.Join(path, so+".slice")
	}
	return path
}

func (m *manager) ends(unit, result string) dbus.ObjectPath {
	m.job++
	path := dbus.ObjectPath(fmt.Sprintf("%s/job/%d", object, m.job))
	if err := m.conn.Emit(object, face+".JobRemoved", m.job, path, unit, result); err != nil {
		m.t.Error(err)
	}
	return path
}

// StartTransientUnit is systemd's.
func (m *manager) StartTransientUnit(name, mode string, properties []property, _ []auxiliary) (dbus.ObjectPath, *dbus.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.units[name] != nil {
		return "", dbus.NewError("org.freedesktop.systemd1.UnitExists", []any{"Unit " + name + " was already loaded or has a fragment file."})
	}
	if strings.Contains(name, "bad") {
		return m.ends(name, "failed"), nil
	}
	m.units[name] = map[string]any{"mode": mode}
	for _, mount := range m.mounts {
		if err := os.MkdirAll(filepath.Join(mount, below(name)), 0o755); err != nil {
			m.t.Error(err)
		}
	}
	for _, p := range properties {
		m.units[name][p.Name] = p.Value.Value()
	}
	return m.ends(name, "done"), nil
}

// SetUnitProperties is systemd's.
func (m *manager) SetUnitProperties(name string, _ bool, properties []property) *dbus.Error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.units[name] == nil {
		return dbus.NewError("org.freedesktop.systemd1.NoSuchUnit", []any{"Unit " + name + " not found."})
	}
	for _, p := range properties {
		m.units[name][p.Name] = p.Value.Value()
	}
	return nil
}

// StopUnit is systemd's.
func (m *manager) StopUnit(name, _ string) (dbus.ObjectPath, *dbus.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.units[name] == nil {
		return "", dbus.NewError("org.freedesktop.systemd1.NoSuchUnit", []any{"Unit " + name + " not loaded."})
	}
	maps.DeleteFunc(m.units, func(unit string, _ map[string]any) bool {
		return unit == name || strings.HasPrefix(unit, strings.TrimSuffix(name, ".slice")+"-")
	})
	for _, mount := range m.mounts {
		if err := os.RemoveAll(filepath.Join(mount, below(name))); err != nil {
			m.t.Error(err)
		}
	}
	return m.ends(name, "done"), nil
}

// unit is a slice's properties.
func (m *manager) unit(name string) map[string]any {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.units[name])
}

func list(cpu, memory string) v1.ResourceList {
	return v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu), v1.ResourceMemory: resource.MustParse(memory)}
}

func connect(t *testing.T, address string) *slice.Manager {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	s, err := slice.Connect(ctx, slice.Options{Address: address})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestPodsHaveSlices makes the groups of a node and of a pod by systemd, on both versions of control groups.
func TestPodsHaveSlices(t *testing.T) {
	const burstable = "node_a-kubepods-burstable"
	const name = burstable + "-pod0a1b_2c.slice"
	parent := "/node_a.slice/node_a-kubepods.slice/" + burstable + ".slice/" + name
	for _, test := range []struct {
		name        string
		unified     bool
		set, widest map[string]any // the pod's properties with and without limits
		all, class  map[string]any // those of all pods, and of the Burstable ones
		files       map[string]string
	}{
		{"version 2", true,
			map[string]any{"CPUWeight": uint64(20), "CPUQuotaPerSecUSec": uint64(1510000), "MemoryMax": uint64(2 << 20), "TasksMax": uint64(100)},
			map[string]any{"CPUWeight": uint64(20), "CPUQuotaPerSecUSec": uint64(math.MaxUint64), "MemoryMax": uint64(math.MaxUint64), "TasksMax": uint64(100)},
			map[string]any{"CPUWeight": uint64(157), "MemoryMax": uint64(8 << 30)}, map[string]any{"CPUWeight": uint64(59)},
			map[string]string{parent + "/cpu.max": "150100 100000", parent + "/memory.max": "2097152", parent + "/pids.max": "100"}},
		{"version 1", false,
			map[string]any{"CPUShares": uint64(512), "CPUQuotaPerSecUSec": uint64(1510000), "MemoryLimit": uint64(2 << 20), "TasksMax": uint64(100)},
			map[string]any{"CPUShares": uint64(512), "CPUQuotaPerSecUSec": uint64(math.MaxUint64), "MemoryLimit": uint64(math.MaxUint64), "TasksMax": uint64(100)},
			map[string]any{"CPUShares": uint64(4096), "MemoryLimit": uint64(8 << 30)}, map[string]any{"CPUShares": uint64(1536)},
			map[string]string{"cpu" + parent + "/cpu.cfs_quota_us": "150100", "memory" + parent + "/memory.limit_in_bytes": "2097152", "pids" + parent + "/pids.max": "100"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			mount := t.TempDir()
			mounts := []string{mount}
			scopes := mount
			if test.unified {
				if err := os.WriteFile(filepath.Join(mount, "cgroup.controllers"), []byte("cpu memory pids io\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			} else {
				mounts = nil
				for _, c := range []string{"cpu", "memory", "pids", "systemd"} {
					mounts = append(mounts, filepath.Join(mount, c))
					if err := os.Mkdir(filepath.Join(mount, c), 0o700); err != nil {
						t.Fatal(err)
					}
				}
				scopes = filepath.Join(mount, "memory")
			}
			address := bustest.Start(t)
			systemd := newManager(t, address, mounts...)
			m, err := cgroup.New(cgroup.Options{Mount: mount, Root: "/node-a", PodPIDs: 100, Allocatable: list("4", "8Gi"), Slices: connect(t, address)})
			if err != nil {
				t.Fatal(err)
			}
			pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "0a1b-2c"}, Spec: v1.PodSpec{Containers: []v1.Container{{
				Name: "c", Resources: v1.ResourceRequirements{Requests: list("500m", "1Mi"), Limits: list("1501m", "2Mi")},
			}}}}
			if got := m.Parent(pod); got != parent {
				t.Fatalf("the pod's group is %s, want %s", got, parent)
			}
			has := func(unit string, want map[string]any) {
				t.Helper()
				got := systemd.unit(unit)
				for k, v := range want {
					if got[k] != v {
						t.Errorf("%s: %s is %v, want %v", unit, k, got[k], v)
					}
				}
			}
			for range 2 { // as after a restart of the agent
				if err := m.Ensure(pod); err != nil {
					t.Fatal(err)
				}
			}
			has(name, test.set)
			has(name, map[string]any{"mode": "replace", "DefaultDependencies": false, "CPUAccounting": true, "MemoryAccounting": true, "TasksAccounting": true, "IOAccounting": true})
			has("node_a-kubepods.slice", test.all)
			for file, want := range test.files {
				if got, err := os.ReadFile(filepath.Join(mount, file)); err != nil || string(got) != want {
					t.Errorf("%s is %q, %v; want %s", file, got, err, want)
				}
			}
			if err := m.SetBurstable(1500); err != nil {
				t.Fatal(err)
			}
			has(burstable+".slice", test.class)
			pod.Spec.Containers[0].Resources.Limits = nil
			if err := m.Ensure(pod); err != nil {
				t.Fatal(err)
			}
			has(name, test.widest)

			for id, scope := range map[string]string{"abc": "cri-containerd-abc.scope", "def": "crio-def.scope"} {
				if err := os.Mkdir(filepath.Join(scopes, parent, scope), 0o700); err != nil {
					t.Fatal(err)
				}
				if got := m.Container(pod, id); got != parent+"/"+scope {
					t.Errorf("the group of container %s is %s", id, got)
				}
			}
			if pods, err := m.Pods(); err != nil || len(pods) != 1 || pods[0] != "0a1b-2c" {
				t.Errorf("pods %v, %v", pods, err)
			}
			if err := m.Remove("0a1b-2c"); err != nil {
				t.Error(err)
			}
			if left := systemd.unit(name); left != nil {
				t.Errorf("the pod's slice is left: %v", left)
			}
			for range 2 {
				if err := m.Close(); err != nil {
					t.Error(err)
				}
			}
			for _, mount := range mounts {
				if _, err := os.Stat(filepath.Join(mount, "node_a.slice", "node_a-kubepods.slice")); !os.IsNotExist(err) {
					t.Errorf("groups are left in %s: %v", mount, err)
				}
			}
		})
	}
}

// TestManagerThatRefuses: what systemd says is in the error, with the slice.
func TestManagerThatRefuses(t *testing.T) {
	address := bustest.Start(t)
	newManager(t, address)
	s := connect(t, address)
	if err := s.Start("bad.slice"); err == nil || err.Error() != `start slice bad.slice: systemd's job ends as "failed"` {
		t.Errorf("a job that fails: %v", err)
	}
	if err := s.Set("none.slice", []cgroup.Property{{Name: "TasksMax", Value: 1}}); err == nil || !strings.Contains(err.Error(), "set slice none.slice: Unit none.slice not found") {
		t.Errorf("properties of what is not there: %v", err)
	}
	if err := s.Stop("none.slice"); err != nil {
		t.Errorf("the end of what is not there: %v", err)
	}
	if _, err := slice.Connect(t.Context(), slice.Options{Address: bustest.Start(t)}); err == nil || !strings.Contains(err.Error(), "ask systemd for its version") {
		t.Errorf("a bus without systemd: %v", err)
	}
	if _, err := slice.Connect(t.Context(), slice.Options{Address: "unix:path=" + filepath.Join(t.TempDir(), "none")}); err == nil || !strings.Contains(err.Error(), "connect to the bus of systemd") {
		t.Errorf("no bus: %v", err)
	}
}

// TestConnectionIsMadeAnew cuts the way to the bus between two calls.
func TestConnectionIsMadeAnew(t *testing.T) {
	address := bustest.Start(t)
	systemd := newManager(t, address)
	_, rest, _ := strings.Cut(address, "unix:path=")
	bus, _, _ := strings.Cut(rest, ",")
	way := filepath.Join(t.TempDir(), "way")
	l, err := net.Listen("unix", way)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var open []net.Conn
	cut := func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range open {
			_ = c.Close()
		}
		open = nil
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", bus)
			if err != nil {
				_ = near.Close()
				continue
			}
			mu.Lock()
			open = append(open, near, far)
			mu.Unlock()
			for _, ends := range [][2]net.Conn{{near, far}, {far, near}} {
				wg.Go(func() { _, _ = io.Copy(ends[0], ends[1]); _ = ends[0].Close() })
			}
		}
	})
	t.Cleanup(func() { _ = l.Close(); cut(); wg.Wait() })
	s := connect(t, "unix:path="+way)
	for _, unit := range []string{"a.slice", "b.slice", "c.slice"} {
		if err := s.Start(unit); err != nil {
			t.Fatal(err)
		}
		if systemd.unit(unit) == nil {
			t.Errorf("%s was not started", unit)
		}
		cut()
	}
}
