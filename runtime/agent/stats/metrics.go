package stats

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/quaymaster/quaymaster/runtime/agent/cgroup"
)

// exposition writes Prometheus' text format: a family's head, and a value of it.
func exposition(out io.Writer) (family func(name, kind, help string), value func(name, labels string, v float64)) {
	return func(name, kind, help string) {
			fmt.Fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
		}, func(name, labels string, v float64) {
			if labels != "" {
				labels = "{" + labels + "}"
			}
			fmt.Fprintf(out, "%s%s %s\n", name, labels, strconv.FormatFloat(v, 'g', -1, 64))
		}
}

func seconds(s *statsapi.CPUStats) float64 { return float64(*s.UsageCoreNanoSeconds) / 1e9 }

// Containers writes what running containers use under cAdvisor's names and labels, as upstream's
// /metrics/cadvisor has them: CPU, memory and its limit, and processes.
func (c *Collector) Containers(w io.Writer) error {
	type one struct {
		labels string
		usage  cgroup.Usage
	}
	var all []one
	for _, pod := range c.opts.Pods() {
		if c.opts.Cgroups == nil {
			break // nobody else tells so much
		}
		parent := c.opts.Cgroups.Parent(&pod)
		add := func(path, container, image, id string) {
			if u, err := c.opts.Cgroups.Usage(path); err == nil {
				all = append(all, one{fmt.Sprintf("container=%q,id=%q,image=%q,name=%q,namespace=%q,pod=%q", container, path, image, id, pod.Namespace, pod.Name), u})
			}
		}
		add(parent, "", "", "")
		for _, list := range [][]v1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
			for _, st := range list {
				if _, id, ok := strings.Cut(st.ContainerID, "://"); ok && st.State.Running != nil {
					add(c.opts.Cgroups.Container(&pod, id), st.Name, st.Image, id)
				}
			}
		}
	}
	out := bufio.NewWriter(w)
	family, value := exposition(out)
	for _, m := range []struct {
		name, kind, help string
		of               func(cgroup.Usage) float64
	}{
		{"container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.", func(u cgroup.Usage) float64 { return float64(u.CPU) / 1e9 }},
		{"container_memory_usage_bytes", "gauge", "Current memory usage in bytes, including all memory regardless of when it was accessed", func(u cgroup.Usage) float64 { return float64(u.Memory) }},
		{"container_memory_working_set_bytes", "gauge", "Current working set in bytes.", func(u cgroup.Usage) float64 { return float64(u.WorkingSet) }},
		{"container_memory_rss", "gauge", "Size of RSS in bytes.", func(u cgroup.Usage) float64 { return float64(u.RSS) }},
		{"container_spec_memory_limit_bytes", "gauge", "Memory limit for the container.", func(u cgroup.Usage) float64 { return float64(u.Limit) }},
		{"container_processes", "gauge", "Number of processes running inside the container.", func(u cgroup.Usage) float64 { return float64(u.PIDs) }},
	} {
		family(m.name, m.kind, m.help)
		for _, o := range all {
			value(m.name, o.labels, m.of(o.usage))
		}
	}
	return out.Flush()
}

// Agent is what an agent counts of its own work.
type Agent struct {
	Pods, Running, Containers int    // pods of the node, those that run, and running containers
	Started, Failed           uint64 // containers and sandboxes, since the agent began
	Healthy                   bool   // the runtime
}

// WriteAgent writes an agent's own metrics.
func WriteAgent(w io.Writer, a Agent) error {
	out := bufio.NewWriter(w)
	family, value := exposition(out)
	for _, m := range []struct {
		name, kind, help string
		v                float64
	}{
		{"quaymaster_agent_pods", "gauge", "Pods that the node has.", float64(a.Pods)},
		{"quaymaster_agent_pods_running", "gauge", "Pods with a running container.", float64(a.Running)},
		{"quaymaster_agent_containers_running", "gauge", "Running containers.", float64(a.Containers)},
		{"quaymaster_agent_starts_total", "counter", "Containers that were started.", float64(a.Started)},
		{"quaymaster_agent_start_errors_total", "counter", "Sandboxes and containers that the node failed to start.", float64(a.Failed)},
	} {
		family(m.name, m.kind, m.help)
		value(m.name, "", m.v)
	}
	healthy := 0.0
	if a.Healthy {
		healthy = 1
	}
	family("quaymaster_agent_runtime_healthy", "gauge", "1 while the container runtime answers and is ready.")
	value("quaymaster_agent_runtime_healthy", "", healthy)
	return out.Flush()
}
