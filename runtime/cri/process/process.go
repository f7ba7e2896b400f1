// Package process is what backends know of processes that outlive them: which
// one it was, whether it still is, and when it is gone; and the small files by
// which they tell each other. It imports nothing outside the standard library but
// the system's calls: the small process beside each container has it.
package process

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Identity names a process beyond doubt: an ID is given again, but not with the
// same start time.
type Identity struct {
	PID   int    `json:"pid"`
	Start string `json:"start"` // in the kernel's clock ticks since boot
}

// Of is the identity of the process that has an ID now.
func Of(pid int) Identity { return Identity{PID: pid, Start: startTime(pid)} }

// Self is the identity of this process.
func Self() Identity { return Of(os.Getpid()) }

// startTime returns field 22 of /proc/PID/stat; "" where there is no such process, or it is a zombie.
func startTime(pid int) string {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	_, rest, ok := strings.Cut(string(data), ") ") // the name before it may hold anything
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return fields[19]
}

// Alive tells whether the process has not ended.
func (i Identity) Alive() bool {
	switch {
	case i.PID <= 0:
		return false
	case i.Start == "": // no /proc here
		return syscall.Kill(i.PID, 0) == nil
	}
	return startTime(i.PID) == i.Start
}

// Signal sends one to the process; one that is gone is no error.
func (i Identity) Signal(s syscall.Signal) error {
	if !i.Alive() {
		return nil
	}
	if err := syscall.Kill(i.PID, s); err != nil && err != syscall.ESRCH {
		return fmt.Errorf("send %s to process %d: %w", s, i.PID, err)
	}
	return nil
}

// poll is how often a process that is not our child is looked at where the
// kernel does not tell.
const poll = 200 * time.Millisecond

// WriteFile replaces a file of JSON as a whole; it is for its owner only, as a
// container's environment may hold secrets.
func WriteFile(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := name + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}

// room is what Reserve keeps, in bytes: more than a shim has to tell.
const room = 4096

// Reserve keeps a place on the disk for a file that WriteReserved is to make when the disk may be full.
func Reserve(name string) error {
	return os.WriteFile(name+".tmp", bytes.Repeat([]byte(" "), room), 0o600)
}

// WriteReserved is WriteFile where Reserve was before: it takes no more of the disk.
func WriteReserved(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(name+".tmp", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data) // spaces are left, which JSON may end with
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(name+".tmp", name)
}

// Claim writes this process's identity to a file that no process has written
// yet: it is made whole or not at all, and once only.
func Claim(name string) error {
	tmp := name + "." + strconv.Itoa(os.Getpid())
	if err := WriteFile(tmp, Self()); err != nil {
		return err
	}
	err := os.Link(tmp, name)
	_ = os.Remove(tmp)
	if err != nil {
		return fmt.Errorf("another process has it: %w", err)
	}
	return nil
}

// ReadFile reads a file of JSON. The error is os.ErrNotExist where there is none.
func ReadFile(name string, v any) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(name), err)
	}
	return nil
}
