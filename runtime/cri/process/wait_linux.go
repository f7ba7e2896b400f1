package process

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Wait returns when a process has ended: a descriptor of it becomes
// readable then, and waits in the runtime's poller without a thread.
func (i Identity) Wait() {
	fd, err := unix.PidfdOpen(i.PID, unix.PIDFD_NONBLOCK)
	if err == nil {
		f := os.NewFile(uintptr(fd), "pidfd")
		defer f.Close()
		if !i.Alive() {
			return // the descriptor is another process's
		}
		if raw, err := f.SyscallConn(); err == nil {
			_ = raw.Read(func(fd uintptr) bool {
				ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				n, err := unix.Poll(ready, 0)
				return n > 0 || err != nil && err != unix.EINTR
			})
		}
	}
	for i.Alive() {
		time.Sleep(poll)
	}
}
