// Package oom tells of processes that the kernel ended because the machine, and not a control group,
// ran out of memory. It reads the kernel's log.
package oom

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Log is the kernel's log: a record a read.
const Log = "/dev/kmsg"

// Victim is a process that was ended.
type Victim struct {
	Process string
	PID     int
}

func (v Victim) String() string {
	return fmt.Sprintf("System OOM encountered, victim process: %s, pid: %d", v.Process, v.PID)
}

// maxRecord is the kernel's own bound of a record, in bytes.
const maxRecord = 8192

// Watch calls found with each victim from now on, until ctx ends, and returns nil then.
func Watch(ctx context.Context, path string, found func(Victim)) error {
	return watch(ctx, path, func(record string) {
		if v, ok := parse(record); ok {
			found(v)
		}
	})
}

func watch(ctx context.Context, path string, took func(record string)) error {
	// Non-blocking, so that closing the file ends a read.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("watch the kernel's log: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.Close() })
	defer func() {
		if stop() {
			_ = f.Close()
		}
	}()
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		return fmt.Errorf("watch the kernel's log: %w", err)
	}
	record := make([]byte, maxRecord)
	for {
		n, err := f.Read(record)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, syscall.EPIPE): // records were overwritten before they were read
		case err != nil:
			return fmt.Errorf("watch the kernel's log: %w", err)
		default:
			took(string(record[:n]))
		}
	}
}

// parse reads a record of the form "priority,number,time,flags;text" whose text is the kernel's line
// "oom-kill:constraint=…,task=NAME,pid=N,uid=N". Victims of a control group's limit are not ok, nor is what
// a program wrote and not the kernel.
func parse(record string) (v Victim, ok bool) {
	head, text, _ := strings.Cut(record, ";")
	priority, _, _ := strings.Cut(head, ",")
	if n, err := strconv.Atoi(priority); err != nil || n < 0 || n > 7 { // above are facilities of programs
		return v, false
	}
	text, _, _ = strings.Cut(text, "\n")
	fields, ok := strings.CutPrefix(text, "oom-kill:")
	if !ok || strings.Contains(fields, "constraint=CONSTRAINT_MEMCG") {
		return v, false
	}
	// A process' name may hold commas: it lies between task= and the last pid=.
	at, end := strings.Index(fields, ",task="), strings.LastIndex(fields, ",pid=")
	if at < 0 || end < at {
		return v, false
	}
	number, _, _ := strings.Cut(fields[end+len(",pid="):], ",")
	pid, err := strconv.Atoi(number)
	if err != nil || pid <= 0 {
		return v, false
	}
	return Victim{Process: fields[at+len(",task=") : end], PID: pid}, true
}
