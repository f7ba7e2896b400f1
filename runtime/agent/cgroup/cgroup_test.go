package cgroup_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/cgroup"
)

func list(cpu, memory string) v1.ResourceList {
	out := v1.ResourceList{}
	if cpu != "" {
		out[v1.ResourceCPU] = resource.MustParse(cpu)
	}
	if memory != "" {
		out[v1.ResourceMemory] = resource.MustParse(memory)
	}
	return out
}

func pod(containers ...v1.ResourceRequirements) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u1"}}
	for _, r := range containers {
		p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: "c", Resources: r})
	}
	return p
}

func TestPodLimits(t *testing.T) {
	for name, test := range map[string]struct {
		pod  *v1.Pod
		want cgroup.Limits
	}{
		"nothing":   {pod(v1.ResourceRequirements{}), cgroup.Limits{Shares: 2}},
		"requests":  {pod(v1.ResourceRequirements{Requests: list("1", "1Gi")}), cgroup.Limits{Shares: 1024}},
		"small":     {pod(v1.ResourceRequirements{Requests: list("1m", "")}), cgroup.Limits{Shares: 2}},
		"limits":    {pod(v1.ResourceRequirements{Requests: list("100m", "1Mi"), Limits: list("250m", "2Mi")}), cgroup.Limits{Shares: 102, Quota: 25000, Memory: 2 << 20}},
		"least":     {pod(v1.ResourceRequirements{Requests: list("1m", ""), Limits: list("1m", "")}), cgroup.Limits{Shares: 2, Quota: 1000}},
		"one open":  {pod(v1.ResourceRequirements{Requests: list("1", "1Mi"), Limits: list("1", "2Mi")}, v1.ResourceRequirements{}), cgroup.Limits{Shares: 1024}},
		"two":       {pod(v1.ResourceRequirements{Limits: list("1", "2Mi"), Requests: list("1", "2Mi")}, v1.ResourceRequirements{Limits: list("2", "3Mi"), Requests: list("2", "3Mi")}), cgroup.Limits{Shares: 3072, Quota: 300000, Memory: 5 << 20}},
		"the whole": {&v1.Pod{Spec: v1.PodSpec{Resources: &v1.ResourceRequirements{Requests: list("1", ""), Limits: list("2", "")}, Containers: []v1.Container{{}}}}, cgroup.Limits{Shares: 1024, Quota: 200000}},
	} {
		if got := cgroup.PodLimits(test.pod); got != test.want {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}

// TestUnified writes to a folder that looks like version 2's file system.
func TestUnified(t *testing.T) {
	mount := t.TempDir()
	if err := os.WriteFile(filepath.Join(mount, "cgroup.controllers"), []byte("cpu memory pids io\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := cgroup.New(cgroup.Options{Mount: mount, Root: "/q", PodPIDs: 100, Allocatable: list("4", "8Gi")})
	if err != nil {
		t.Fatal(err)
	}
	p := pod(v1.ResourceRequirements{Requests: list("500m", "1Mi"), Limits: list("1500m", "2Mi")})
	if err := m.Ensure(p); err != nil {
		t.Fatal(err)
	}
	if got := m.Parent(p); !m.Unified() || got != "/q/kubepods/burstable/podu1" {
		t.Errorf("unified %v, parent %s", m.Unified(), got)
	}
	for file, want := range map[string]string{
		"q/kubepods/cpu.weight": "157", "q/kubepods/memory.max": "8589934592", "q/kubepods/besteffort/cpu.weight": "1",
		"q/kubepods/burstable/podu1/cpu.weight": "20", "q/kubepods/burstable/podu1/cpu.max": "150000 100000",
		"q/kubepods/burstable/podu1/memory.max": "2097152", "q/kubepods/burstable/podu1/pids.max": "100",
	} {
		if got, err := os.ReadFile(filepath.Join(mount, file)); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v; want %s", file, got, err, want)
		}
	}
	for file, content := range map[string]string{"memory.current": "1000\n", "memory.stat": "anon 300\ninactive_file 200\npgfault 7\n", "cpu.stat": "usage_usec 5\n", "memory.max": "max\n", "pids.current": "3\n"} {
		if err := os.WriteFile(filepath.Join(mount, m.Parent(p), file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if u, err := m.Usage(m.Parent(p)); err != nil || u != (cgroup.Usage{CPU: 5000, Memory: 1000, WorkingSet: 800, RSS: 300, PageFaults: 7, PIDs: 3}) {
		t.Errorf("usage %+v, %v", u, err)
	}
	if pods, err := m.Pods(); err != nil || len(pods) != 1 || pods[0] != "u1" {
		t.Errorf("pods %v, %v", pods, err)
	}
	for _, test := range []struct {
		milli int64
		want  string
	}{{0, "1"}, {1500, "59"}, {1500, "59"}} {
		if err := m.SetBurstable(test.milli); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(mount, "q/kubepods/burstable/cpu.weight")); err != nil || string(got) != test.want {
			t.Errorf("Burstable pods that request %d have the weight %q, %v; want %s", test.milli, got, err, test.want)
		}
	}
	if got := m.OOMFile(m.Parent(p)); got != filepath.Join(mount, m.Parent(p), "memory.events") {
		t.Errorf("the file of what the kernel ended: %s", got)
	}
	if u, err := m.Usage("/q/none"); err == nil {
		t.Errorf("usage of no group: %+v", u)
	}
}

// TestWiden changes a pod's resources on files as version 2 has them: what is more comes at once, what is less with Ensure.
func TestWiden(t *testing.T) {
	for name, test := range map[string]struct{ from, to, cpu, memory, cpuAfter, memoryAfter string }{
		"more":         {"1 2Mi", "2 4Mi", "200000 100000", "4194304", "200000 100000", "4194304"},
		"less":         {"2 4Mi", "1 2Mi", "200000 100000", "4194304", "100000 100000", "2097152"},
		"each its way": {"1 4Mi", "2 2Mi", "200000 100000", "4194304", "200000 100000", "2097152"},
		"no more":      {"1 2Mi", "", "max 100000", "max", "max 100000", "max"},
	} {
		t.Run(name, func(t *testing.T) {
			mount := t.TempDir()
			if err := os.WriteFile(filepath.Join(mount, "cgroup.controllers"), []byte("cpu memory pids\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			m, err := cgroup.New(cgroup.Options{Mount: mount})
			if err != nil {
				t.Fatal(err)
			}
			limits := func(text string) *v1.Pod {
				r := v1.ResourceRequirements{Requests: list("100m", "1Mi")}
				if cpu, memory, ok := strings.Cut(text, " "); ok {
					r.Limits = list(cpu, memory)
				}
				p := pod(r)
				p.Status.QOSClass = v1.PodQOSBurstable
				return p
			}
			has := func(when, cpu, memory string) {
				t.Helper()
				for file, want := range map[string]string{"cpu.max": cpu, "memory.max": memory} {
					if got, err := os.ReadFile(filepath.Join(mount, "kubepods/burstable/podu1", file)); err != nil || string(got) != want {
						t.Errorf("%s: %s is %q, %v; want %s", when, file, got, err, want)
					}
				}
			}
			if err := m.Ensure(limits(test.from)); err != nil {
				t.Fatal(err)
			}
			if err := m.Widen(limits(test.to)); err != nil {
				t.Fatal(err)
			}
			has("widened", test.cpu, test.memory)
			if err := m.Ensure(limits(test.to)); err != nil {
				t.Fatal(err)
			}
			has("after", test.cpuAfter, test.memoryAfter)
		})
	}
}

func TestNoControlGroups(t *testing.T) {
	if m, err := cgroup.New(cgroup.Options{Mount: t.TempDir()}); err == nil {
		t.Errorf("a manager without control groups: %+v", m)
	}
}
