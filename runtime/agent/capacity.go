package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// MachineCapacity is what the process's own machine has: CPUs and memory, and
// room for 110 pods. Where there is no /proc, memory is DefaultCapacity's.
func MachineCapacity() (v1.ResourceList, error) {
	out := DefaultCapacity()
	out[v1.ResourceCPU] = *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI)
	f, err := os.Open("/proc/meminfo")
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the machine's memory: %w", err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "MemTotal:"); ok {
			var kib int64
			if _, err := fmt.Sscanf(text, "%d kB", &kib); err != nil {
				return nil, fmt.Errorf("read the machine's memory: %q: %w", text, err)
			}
			out[v1.ResourceMemory] = *resource.NewQuantity(kib<<10, resource.BinarySI)
			return out, nil
		}
	}
	return nil, errors.New("read the machine's memory: no line MemTotal in /proc/meminfo")
}
