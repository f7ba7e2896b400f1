package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// process is a quaymaster command running as a child.
type process struct {
	name string
	log  string // path of its output
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how it ended; read after done
}

// start runs the binary with args and waits until it prints a line that starts
// with ready. What it prints is kept in a log file.
func start(ctx context.Context, binary, dir, name, ready string, args ...string) (*process, error) {
	logPath := filepath.Join(dir, name+".log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		log.Close()
		return nil, err
	}
	p := &process{name: name, log: logPath, cmd: exec.Command(binary, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = write, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = p.cmd.Start()
	write.Close()
	if err != nil {
		read.Close()
		log.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	seen := make(chan struct{})
	go func() {
		defer log.Close()
		lines, waiting := bufio.NewScanner(io.TeeReader(read, log)), true
		for lines.Scan() {
			if waiting && strings.HasPrefix(lines.Text(), ready) {
				close(seen)
				waiting = false
			}
		}
		read.Close()
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	select {
	case <-seen:
		return p, nil
	case <-p.done:
		return nil, fmt.Errorf("%s ended before it was ready (%v): %s", name, p.err, lastLine(logPath))
	case <-ctx.Done():
		p.kill()
		return nil, fmt.Errorf("%s was not ready in time: %w; see %s", name, context.Cause(ctx), logPath)
	}
}

// kill ends the process as a power cut would.
func (p *process) kill() {
	p.cmd.Process.Kill() //nolint:errcheck // it may have ended already
	<-p.done
}

// stop asks the process to end and waits for it; after five seconds it is killed.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		p.kill()
		return fmt.Errorf("%s did not end within 5 s; see %s", p.name, p.log)
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w; see %s", p.name, p.err, p.log)
	}
	return nil
}

func lastLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return lines[len(lines)-1]
}
