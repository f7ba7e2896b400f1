package cgroup

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Usage is what a group has used.
type Usage struct {
	CPU                         uint64 // nanoseconds, since the group was made
	Memory                      uint64 // bytes charged, with the page cache
	WorkingSet                  uint64 // bytes, without the page cache that can be dropped
	RSS                         uint64 // bytes of anonymous memory
	PageFaults, MajorPageFaults uint64
	Limit                       uint64 // bytes of memory; 0 = none
	PIDs                        uint64
}

// unlimited is above any limit that somebody sets: version 1 says "none" with 2⁶³ less a page.
const unlimited = 1 << 62

// Usage reads a group's usage; its path is as Parent gives it, or a container's below one.
func (m *Manager) Usage(path string) (Usage, error) {
	if m.unified {
		return m.usage2(filepath.Join(m.opts.Mount, path))
	}
	return m.usage1(path)
}

// OOMFile is the file whose line "oom_kill N" says how many processes of a group the kernel ended for lack of memory.
func (m *Manager) OOMFile(path string) string {
	if m.unified {
		return filepath.Join(m.opts.Mount, path, "memory.events")
	}
	return filepath.Join(m.opts.Mount, "memory", path, "memory.oom_control")
}

func (m *Manager) usage1(path string) (u Usage, err error) {
	at := func(controller, file string) string { return filepath.Join(m.opts.Mount, controller, path, file) }
	if u.Memory, err = number(at("memory", "memory.usage_in_bytes")); err != nil {
		return u, err
	}
	stat, err := table(at("memory", "memory.stat"))
	if err != nil {
		return u, err
	}
	u.WorkingSet = u.Memory - min(u.Memory, stat["total_inactive_file"])
	u.RSS, u.PageFaults, u.MajorPageFaults = stat["total_rss"], stat["total_pgfault"], stat["total_pgmajfault"]
	if u.Limit = stat["hierarchical_memory_limit"]; u.Limit >= unlimited {
		u.Limit = 0
	}
	// A container without a group of its own in a hierarchy counts as none.
	u.CPU, _ = number(at("cpuacct", "cpuacct.usage"))
	u.PIDs, _ = number(at("pids", "pids.current"))
	return u, nil
}

func (m *Manager) usage2(dir string) (u Usage, err error) {
	if u.Memory, err = number(filepath.Join(dir, "memory.current")); err != nil {
		return u, err
	}
	stat, err := table(filepath.Join(dir, "memory.stat"))
	if err != nil {
		return u, err
	}
	u.WorkingSet = u.Memory - min(u.Memory, stat["inactive_file"])
	u.RSS, u.PageFaults, u.MajorPageFaults = stat["anon"], stat["pgfault"], stat["pgmajfault"]
	u.Limit, _ = number(filepath.Join(dir, "memory.max")) // "max" is none
	cpu, err := table(filepath.Join(dir, "cpu.stat"))
	if err != nil {
		return u, err
	}
	u.CPU = cpu["usage_usec"] * 1000
	u.PIDs, _ = number(filepath.Join(dir, "pids.current"))
	return u, nil
}

func number(path string) (uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("usage of a control group: %w", err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("usage of a control group: %s: %w", path, err)
	}
	return n, nil
}

// table reads lines of a name and a number.
func table(path string) (map[string]uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("usage of a control group: %w", err)
	}
	defer f.Close()
	out := map[string]uint64{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			out[name] = n
		}
	}
	return out, lines.Err()
}
