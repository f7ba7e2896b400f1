package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// dropProgram unmaps the pages of the program's file from the process: they stay
// in the kernel's cache, and whichever is used again is mapped again. Parts that
// may be written, or that a loader or a debugger has written, are left alone.
func dropProgram() {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return
	}
	for _, m := range unwritten(string(maps), program) {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.begin, m.end-m.begin, unix.MADV_DONTNEED) // all goes on without
	}
}

type mapping struct{ begin, end uintptr }

// unwritten are the mappings of a file that hold what the file holds, by the
// text of /proc/PID/smaps.
func unwritten(smaps, file string) (found []mapping) {
	var m mapping
	ours := false
	for line := range strings.Lines(smaps) {
		fields := strings.Fields(line)
		switch {
		case len(fields) < 2:
		case !strings.HasSuffix(fields[0], ":"): // BEGIN-END PERMISSIONS OFFSET DEVICE INODE FILE
			_, err := fmt.Sscanf(fields[0], "%x-%x", &m.begin, &m.end)
			ours = err == nil && len(fields) == 6 && fields[5] == file && strings.HasPrefix(fields[1], "r-") && strings.HasSuffix(fields[1], "p")
		case fields[0] == "Anonymous:" && fields[1] == "0" && ours:
			found = append(found, m)
		}
	}
	return found
}
