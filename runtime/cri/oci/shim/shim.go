// Package shim is the small process beside each container of the oci backend: it
// starts the container by runc, writes its log, lets others attach to it, and
// writes down how it ended. It outlives the backend. As there is one a container,
// it imports the standard library alone, and so takes little memory (see
// cmd/quaymaster/early).
//
// Files in the container's folder: config.json is runc's, run.json what the
// shim is to do, shim.json which process the shim is, init.json which the
// container's, exit.json how it ended, attach.sock where the shim listens.
package shim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/runtime/cri/logfile"
	"github.com/quaymaster/quaymaster/runtime/cri/process"
)

// Names of files in a container's folder.
const (
	RunFile  = "run.json"
	SelfFile = "shim.json"
	InitFile = "init.json"
	ExitFile = "exit.json"
	socket   = "attach.sock"
)

// Spec is what a shim is to do.
type Spec struct {
	Runtime string `json:"runtime"` // runc, or a program with its commands
	Root    string `json:"root"`    // of the runtime's state
	ID      string `json:"id"`
	Log     string `json:"log,omitempty"` // path; "" = no log
	Stdin   bool   `json:"stdin,omitempty"`
	// StdinOnce ends standard input with the first that attaches to it.
	StdinOnce bool `json:"stdinOnce,omitempty"`
	TTY       bool `json:"tty,omitempty"`
	// OOM is a file whose line "oom_kill N" tells how many processes the kernel ended for lack of memory.
	OOM string `json:"oom,omitempty"`
}

// Exit is how a container ended.
type Exit struct {
	Code     int32     `json:"code"` // 128 and more: by signal
	OOM      bool      `json:"oom,omitempty"`
	Finished time.Time `json:"finished"`
}

// subreaper is prctl's PR_SET_CHILD_SUBREAPER.
const subreaper = 36

// shim is one at work.
type shim struct {
	spec   Spec
	log    *logfile.File
	listen net.Listener
	pumps  sync.WaitGroup

	input *os.File // the container's standard input or terminal; nil = none

	mu      sync.Mutex
	clients map[net.Conn]attached
	ended   bool
}

// Run runs the container of a folder and returns when it has ended. It prints
// "running" once the container runs, or why it does not. A second process for
// the same container is refused.
func Run(dir string) error {
	debug.SetGCPercent(25)
	if err := os.Chdir(dir); err != nil {
		return err
	}
	s := &shim{clients: map[net.Conn]attached{}}
	if err := process.ReadFile(RunFile, &s.spec); err != nil {
		return fmt.Errorf("run a container: %w", err)
	}
	if err := process.Claim(SelfFile); err != nil {
		return fmt.Errorf("take a container: %w", err)
	}
	// What ends the backend must not end the container. A signal that is ignored would be so in the container.
	heeded := make(chan os.Signal, 1)
	signal.Notify(heeded, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, subreaper, 1, 0); errno != 0 {
		return fmt.Errorf("become the parent of the container's processes: %w", errno)
	}
	var err error
	if s.log, err = logfile.Open(s.spec.Log, time.Now); err != nil {
		return err
	}
	defer s.log.Close()
	_ = os.Remove(socket)
	if s.listen, err = net.Listen("unix", socket); err != nil {
		return err
	}
	// What the container is must be told even if it fills the disk at once, and so must its end.
	for _, name := range []string{InitFile, ExitFile} {
		if err := process.Reserve(name); err != nil {
			return err
		}
	}
	pid, err := s.start()
	if err != nil {
		return err
	}
	if err := process.WriteReserved(InitFile, process.Of(pid)); err != nil {
		return errors.Join(err, s.runtime("delete", "--force", s.spec.ID))
	}
	fmt.Println("running")
	go s.serve()
	exit := wait(pid)
	exit.OOM = s.oomKilled()
	_ = s.runtime("delete", "--force", s.spec.ID) // with what may still run of it; the backend tries again
	s.drain()
	return process.WriteReserved(ExitFile, exit)
}

// start has the runtime make the container, and returns its first process.
func (s *shim) start() (int, error) {
	args := []string{"run", "--detach", "--bundle", ".", "--pid-file", "pid"}
	cmd := exec.Command(s.spec.Runtime)
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			_ = f.Close()
		}
	}()
	var consoles *net.UnixListener
	var said bytes.Buffer
	readers := map[string]*os.File{}
	if s.spec.TTY {
		var err error
		if consoles, err = net.ListenUnix("unix", &net.UnixAddr{Name: "console.sock", Net: "unix"}); err != nil {
			return 0, err
		}
		defer consoles.Close()
		args = append(args, "--console-socket", "console.sock")
		cmd.Stdout, cmd.Stderr = &said, &said
	} else {
		if s.spec.Stdin {
			r, w, err := os.Pipe()
			if err != nil {
				return 0, err
			}
			theirs, cmd.Stdin, s.input = append(theirs, r), r, w
		}
		for _, stream := range []string{logfile.Stdout, logfile.Stderr} {
			r, w, err := os.Pipe()
			if err != nil {
				return 0, err
			}
			theirs, readers[stream] = append(theirs, w), r
			if stream == logfile.Stdout {
				cmd.Stdout = w
			} else {
				cmd.Stderr = w
			}
		}
	}
	cmd.Args = append(append(cmd.Args, s.global()...), append(args, s.spec.ID)...)
	if err := cmd.Run(); err != nil {
		for _, f := range theirs {
			_ = f.Close()
		}
		if r := readers[logfile.Stderr]; r != nil {
			_, _ = io.Copy(&said, r)
		}
		return 0, fmt.Errorf("%s: %w", strings.TrimSpace(lastLine(said.String())), err)
	}
	data, err := os.ReadFile("pid")
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(string(data))
	if err != nil {
		return 0, fmt.Errorf("the container's process: %w", err)
	}
	if consoles != nil {
		if s.input, err = receive(consoles); err != nil {
			return 0, errors.Join(fmt.Errorf("take the container's terminal: %w", err), s.runtime("delete", "--force", s.spec.ID))
		}
		s.pump(logfile.Stdout, s.input)
	}
	for stream, r := range readers {
		s.pump(stream, r)
	}
	return pid, nil
}

func (s *shim) global() []string {
	return []string{"--root", s.spec.Root, "--log", "runc.log", "--log-format", "json"}
}

func (s *shim) runtime(args ...string) error {
	out, err := exec.Command(s.spec.Runtime, append(s.global(), args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %s: %w", filepath.Base(s.spec.Runtime), args[0], lastLine(string(out)), err)
	}
	return nil
}

// lastLine is what a runtime says of a failure: the last line of it.
func lastLine(text string) string {
	text = strings.TrimSpace(text)
	line := text[strings.LastIndexByte(text, '\n')+1:]
	var entry struct {
		Message string `json:"msg"`
	}
	if json.Unmarshal([]byte(line), &entry) == nil && entry.Message != "" {
		return entry.Message
	}
	return line
}

// receive takes a terminal that the runtime sends.
func receive(l *net.UnixListener) (*os.File, error) {
	if err := l.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	name, oob := make([]byte, 4096), make([]byte, syscall.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(name, oob)
	if err != nil {
		return nil, err
	}
	messages, err := syscall.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("%d messages: %w", len(messages), err)
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("%d descriptors: %w", len(fds), err)
	}
	syscall.CloseOnExec(fds[0])
	if err := syscall.SetNonblock(fds[0], true); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

// wait reaps whatever ends until the container's first process has.
func wait(pid int) Exit {
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return Exit{Code: 255, Finished: time.Now()}
		case got != pid:
		case status.Signaled():
			return Exit{Code: 128 + int32(status.Signal()), Finished: time.Now()}
		case status.Exited():
			return Exit{Code: int32(status.ExitStatus()), Finished: time.Now()}
		}
	}
}

// oomKilled tells whether the kernel ended a process of the container for lack of memory.
func (s *shim) oomKilled() bool {
	data, err := os.ReadFile(s.spec.OOM)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok && n != "0" {
			return true
		}
	}
	return false
}

// Pause holds a pod's process namespace, and reaps what ends there, until it is killed.
func Pause() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGCHLD)
	debug.SetGCPercent(25)
	for range signals {
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != syscall.EINTR && (err != nil || pid <= 0) {
				break
			}
		}
	}
}
