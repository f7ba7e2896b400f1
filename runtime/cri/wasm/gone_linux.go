package wasm

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// waitGone returns when a process has ended: a descriptor of it becomes
// readable then, and waits in the runtime's poller without a thread.
func waitGone(id identity) {
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	if err == nil {
		f := os.NewFile(uintptr(fd), "pidfd")
		defer f.Close()
		if !id.alive() {
			return // the descriptor is another process's
		}
		if raw, err := f.SyscallConn(); err == nil {
			_ = raw.Read(func(fd uintptr) bool {
				poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				n, err := unix.Poll(poll, 0)
				return n > 0 || err != nil && err != unix.EINTR
			})
		}
	}
	for id.alive() {
		time.Sleep(pollGone)
	}
}
