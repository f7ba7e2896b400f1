package agent

import (
	"bufio"
	"fmt"
	"os"
	"runtime"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// MachineCapacity is what this machine has: its CPUs, its memory as the kernel
// tells it, and upstream's default of 110 pods. Read from /proc/meminfo.
func MachineCapacity() (v1.ResourceList, error) {
	file, err := os.Open("/proc/meminfo")
	if err != nil {
		return nil, fmt.Errorf("capacity of the machine: %w", err)
	}
	defer file.Close()
	var kilobytes int64
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if _, err := fmt.Sscanf(lines.Text(), "MemTotal: %d kB", &kilobytes); err == nil {
			return v1.ResourceList{
				v1.ResourceCPU:    *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI),
				v1.ResourceMemory: *resource.NewQuantity(kilobytes<<10, resource.BinarySI),
				v1.ResourcePods:   resource.MustParse("110"),
			}, nil
		}
	}
	return nil, fmt.Errorf("capacity of the machine: %s has no MemTotal", file.Name())
}
