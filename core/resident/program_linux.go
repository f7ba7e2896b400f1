package resident

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// dropProgram unmaps the pages of the program's file from the process: they stay
// in the kernel's cache, and whichever is used again is mapped again. Parts that
// may be written, or that a loader or a debugger has written, are left alone. Small says
// that they come back in small pages, which are fewer bytes and slower code: a kernel that has
// the file in pieces of 2 MiB would map each of them whole.
func dropProgram(small bool) {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return
	}
	for _, m := range unwritten(string(maps), program) {
		if small {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.begin, m.end-m.begin, unix.MADV_NOHUGEPAGE) // a kernel without large pages refuses
		}
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.begin, m.end-m.begin, unix.MADV_DONTNEED) // all goes on without
	}
}

// mappedFiles is how many bytes of files the process has mapped and touched, 0 where nobody tells.
func mappedFiles() uint64 {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, resident, shared uint64
	if _, err := fmt.Sscan(string(statm), &size, &resident, &shared); err != nil {
		return 0
	}
	return shared * uint64(os.Getpagesize())
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
