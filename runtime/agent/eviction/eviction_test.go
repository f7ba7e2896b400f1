package eviction_test

import (
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/eviction"
)

func TestParse(t *testing.T) {
	got, err := eviction.Parse("memory.available<100Mi, nodefs.available<12.5%,pid.available<100")
	if err != nil || len(got) != 3 || got[0].Value.Quantity != 100<<20 || got[1].Value.Percent != 12.5 || got[2].Signal != eviction.PIDs {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := eviction.Parse(" none "); err != nil || len(got) != 0 {
		t.Errorf("none: %v, %v", got, err)
	}
	if got, err := eviction.Parse(""); err != nil || len(got) != 0 {
		t.Errorf("nothing: %+v, %v", got, err)
	}
	for _, bad := range []string{"memory", "memory.available<", "memory.available<x", "memory.available<-1", "memory.available<0%", "memory.available<100%", "cpu.available<1", "nodefs.available<NaN%"} {
		if got, err := eviction.Parse(bad); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("memory.available<100Mi,nodefs.available<10%")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := eviction.Parse(text)
		for _, g := range got {
			if err == nil && g.Value.Quantity <= 0 && !(g.Value.Percent > 0 && g.Value.Percent < 100) {
				t.Errorf("%q: %+v", text, got)
			}
		}
	})
}

func TestLook(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	thresholds := []eviction.Threshold{
		{Signal: eviction.NodeFs, Value: eviction.Value{Percent: 10}},
		{Signal: eviction.Memory, Value: eviction.Value{Quantity: 100}},
		{Signal: eviction.PIDs, Value: eviction.Value{Quantity: 10}, Grace: time.Minute},
	}
	var s eviction.State
	for i, step := range []struct {
		after             time.Duration
		memory, disk, pid int64
		conditions        string
		crossed           string
	}{
		{0, 500, 50, 50, "", ""},
		{0, 99, 50, 50, "MemoryPressure", "memory.available"},
		{time.Minute, 500, 50, 50, "MemoryPressure", ""},                            // it stays for a while
		{time.Second, 500, 9, 9, "MemoryPressure DiskPressure", "nodefs.available"}, // the soft one waits
		{time.Minute, 50, 9, 9, "MemoryPressure DiskPressure PIDPressure", "memory.available pid.available nodefs.available"},
		{10 * time.Minute, 500, 50, 9, "PIDPressure", "pid.available"},
		{10 * time.Minute, 500, 50, 50, "", ""},
		{0, 500, 50, 9, "", ""}, // its grace period begins anew
	} {
		now = now.Add(step.after)
		holding, crossed := s.Look(thresholds, map[eviction.Signal]eviction.Observation{
			eviction.Memory: {1000, step.memory}, eviction.NodeFs: {100, step.disk}, eviction.PIDs: {1000, step.pid},
		}, now)
		var conditions, signals []string
		for _, c := range []v1.NodeConditionType{v1.NodeMemoryPressure, v1.NodeDiskPressure, v1.NodePIDPressure} {
			if holding[c] {
				conditions = append(conditions, string(c))
			}
		}
		for _, c := range crossed {
			signals = append(signals, string(c.Signal))
		}
		if strings.Join(conditions, " ") != step.conditions || strings.Join(signals, " ") != step.crossed {
			t.Errorf("step %d: %v, %v; want %s, %s", i, conditions, signals, step.conditions, step.crossed)
		}
	}
}

func pod(name string, priority int32, request string, memory int64) eviction.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1.PodSpec{Priority: &priority, Containers: []v1.Container{{Name: "c"}}}}
	if request != "" {
		p.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceMemory: resource.MustParse(request)}
	}
	u := eviction.Usage{Memory: memory}
	return eviction.Pod{Pod: p, Usage: u, Containers: map[string]eviction.Usage{"c": u}}
}

func TestRank(t *testing.T) {
	static := pod("static", 0, "", 1<<30)
	static.Pod.Annotations = map[string]string{"kubernetes.io/config.source": "file"}
	var names []string
	for _, p := range eviction.Rank([]eviction.Pod{
		pod("within", 0, "1Gi", 1<<20), pod("important", 100, "", 1<<29), pod("little-above", 0, "1Mi", 2<<20), pod("far-above", 0, "1Mi", 100<<20),
		pod("system", 2000000000, "", 1<<30), static,
	}, eviction.Memory) {
		names = append(names, p.Pod.Name)
	}
	if got := strings.Join(names, " "); got != "far-above little-above important within" {
		t.Error(got)
	}
}

func TestTexts(t *testing.T) {
	c := eviction.Crossed{Threshold: eviction.Threshold{Signal: eviction.Memory, Value: eviction.Value{Quantity: 100 << 20}}, Observation: eviction.Observation{Capacity: 1 << 30, Available: 50 << 20}}
	want := "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container c was using 10Mi, request is 0, has larger consumption of memory. "
	if got := eviction.Message(c, pod("p", 0, "", 10<<20)); got != want {
		t.Errorf("%q", got)
	}
	p := pod("p", 0, "", 0)
	limit := resource.MustParse("1Mi")
	p.Pod.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{SizeLimit: &limit}}}}
	if got := eviction.Storage(p, map[string]int64{"v": 1 << 20}); got != "" {
		t.Errorf("within its limit: %q", got)
	}
	if got := eviction.Storage(p, map[string]int64{"v": 1<<20 + 1}); got != `Usage of EmptyDir volume "v" exceeds the limit "1Mi". ` {
		t.Errorf("%q", got)
	}
	p.Pod.Spec.Containers[0].Resources.Limits = v1.ResourceList{v1.ResourceEphemeralStorage: resource.MustParse("2Mi")}
	p.Usage.Disk = 3 << 20
	if got := eviction.Storage(p, nil); got != "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. " {
		t.Errorf("%q", got)
	}
}
