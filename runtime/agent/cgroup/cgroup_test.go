package cgroup_test

import (
	"os"
	"path/filepath"
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
	if u, err := m.Usage("/q/none"); err == nil {
		t.Errorf("usage of no group: %+v", u)
	}
}

func TestNoControlGroups(t *testing.T) {
	if m, err := cgroup.New(cgroup.Options{Mount: t.TempDir()}); err == nil {
		t.Errorf("a manager without control groups: %+v", m)
	}
}
