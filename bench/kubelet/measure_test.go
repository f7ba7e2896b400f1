package kubelet

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// atRest watches the node's processes while nothing happens.
func (n *node) atRest(add func(string, float64), pods int) {
	n.b.Helper()
	before, begun := n.used(), time.Now()
	time.Sleep(*rest) // what happens meanwhile is the measurement
	add(fmt.Sprintf("%%core/%dpods", pods), 100*float64(n.used()-before)/float64(time.Since(begun)))
	alone := n.side.command.Process.Pid
	for _, field := range []string{"VmRSS", "RssAnon"} {
		all := 0.0
		for _, pid := range n.processes() {
			all += n.memory(pid, field)
		}
		add(fmt.Sprintf("MiB-%s/%dpods", field, pods), n.memory(alone, field))
		add(fmt.Sprintf("MiB-%s-all/%dpods", field, pods), all)
	}
}

// processes are the side's own and those that it started and that live.
func (n *node) processes() []int {
	n.b.Helper()
	pids := []int{n.side.command.Process.Pid}
	for i := 0; i < len(pids); i++ {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pids[i]))
		if err != nil {
			n.b.Fatalf("%v\n%s", err, n.side.told())
		}
		for _, task := range tasks { // a thread's children are the process's
			children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pids[i], task.Name())) // it may have ended
			for _, text := range strings.Fields(string(children)) {
				pid, err := strconv.Atoi(text)
				if err != nil {
					n.b.Fatal(err)
				}
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// used is the processor time of the side's processes.
func (n *node) used() time.Duration {
	n.b.Helper()
	var ticks int64
	for _, pid := range n.processes() {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			n.b.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(data), ") ")
		for _, text := range strings.Fields(rest)[11:13] { // user and system time
			t, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				n.b.Fatal(err)
			}
			ticks += t
		}
	}
	return time.Duration(ticks) * time.Second / 100
}

// memory is a field of a process's status, in MiB.
func (n *node) memory(pid int, field string) float64 {
	n.b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		n.b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if name, value, _ := strings.Cut(line, ":"); name == field {
			var kilobytes float64
			if _, err := fmt.Sscanf(value, "%f kB", &kilobytes); err != nil {
				n.b.Fatalf("%s: %v", line, err)
			}
			return kilobytes / 1024
		}
	}
	n.b.Fatalf("/proc does not tell %s of process %d", field, pid)
	return 0
}
