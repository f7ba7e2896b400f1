package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/quaymaster/quaymaster/bench/race/work"
)

const sideTimeout = 30 * time.Minute

// result of one side in one round.
type result struct {
	elapsed time.Duration
	cpu     time.Duration // of the side's process, while the clock ran
	client  time.Duration // the same of the client's, which runs beside it on the same cores
	memory  float64       // MiB, peak resident
	anon    float64       // MiB at the end, not mapped from files
	pods    int
}

func (r result) String() string {
	return fmt.Sprintf("%8.1f pods/s  %8.3f ms CPU/pod (client %.3f)  %6.0f MiB peak  %6.0f MiB anonymous",
		r.rate(), r.perPod(), r.perClient(), r.memory, r.anon)
}

func (r result) rate() float64 { return float64(r.pods) / r.elapsed.Seconds() }
func (r result) perClient() float64 {
	return r.client.Seconds() * 1e3 / float64(r.pods)
}
func (r result) perPod() float64 { return r.cpu.Seconds() * 1e3 / float64(r.pods) }

// runSide starts a side as a process of its own, in a directory of its own, and
// times one scenario.
func runSide(ctx context.Context, program string, s *work.Scenario, mode string, o *options) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, sideTimeout)
	defer cancel()
	if mode == work.ModeDeployment && s.Needs != "" {
		return result{}, fmt.Errorf("a Deployment cannot be this scenario: it needs %s", s.Needs)
	}
	dir, err := os.MkdirTemp("", "race-")
	if err != nil {
		return result{}, err
	}
	defer os.RemoveAll(dir)
	side, err := startSide(ctx, program, dir, o.profile)
	if err != nil {
		return result{}, err
	}
	defer side.stop()
	w := &work.Work{Client: side.client, Clients: o.clients}
	if err := w.Prepare(ctx, s); err != nil {
		return result{}, side.because(err)
	}
	if o.profile != "" && strings.HasSuffix(program, ourSide) {
		if err := json.NewEncoder(side.in).Encode(work.Request{Profile: true}); err != nil {
			return result{}, err
		}
	}
	client := ownCPU()
	before, err := side.cpu()
	if err != nil {
		return result{}, err
	}
	r := result{pods: s.Pods}
	if mode == work.ModeGo {
		r.elapsed, err = side.ask(work.Request{Scenario: s.Name, Nodes: s.Nodes, Before: s.Before, Pods: s.Pods, Clients: o.clients})
	} else {
		r.elapsed, err = w.Run(ctx, s, mode)
	}
	if err != nil {
		return result{}, side.because(err)
	}
	after, err := side.cpu()
	if err != nil {
		return result{}, err
	}
	r.cpu, r.client = after-before, ownCPU()-client
	r.memory, r.anon, err = side.memory()
	return r, err
}

type side struct {
	command *exec.Cmd
	client  kubernetes.Interface
	in      io.WriteCloser
	out     *bufio.Reader
	log     string
}

func startSide(ctx context.Context, program, dir, profile string) (_ *side, err error) {
	s := &side{command: exec.CommandContext(ctx, program, "-dir", dir, "-profile", profile), log: dir + "/log"}
	s.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.command.Cancel = func() error { return s.command.Process.Signal(syscall.SIGTERM) }
	s.command.WaitDelay = time.Minute
	log, err := os.Create(s.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s.command.Stderr = log
	if s.in, err = s.command.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.out = bufio.NewReader(out)
	if err := s.command.Start(); err != nil {
		return nil, err
	}
	kubeconfig, err := s.out.ReadString('\n') // when it is ready
	if err != nil {
		s.stop()
		return nil, s.because(fmt.Errorf("%s did not start: %w", program, err))
	}
	config, err := clientcmd.BuildConfigFromFlags("", strings.TrimSpace(kubeconfig))
	if err != nil {
		s.stop()
		return nil, err
	}
	config.QPS = -1
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = config.ContentType + ",application/json"
	if s.client, err = kubernetes.NewForConfig(config); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// because adds the end of the side's log to an error.
func (s *side) because(err error) error {
	data, failed := os.ReadFile(s.log)
	if failed != nil || len(data) == 0 {
		return err
	}
	return fmt.Errorf("%w; its log ends: %s", err, data[max(0, len(data)-2000):])
}

func (s *side) ask(r work.Request) (time.Duration, error) {
	if err := json.NewEncoder(s.in).Encode(r); err != nil {
		return 0, err
	}
	line, err := s.out.ReadBytes('\n')
	if err != nil {
		return 0, err
	}
	var a work.Answer
	if err := json.Unmarshal(line, &a); err != nil {
		return 0, err
	}
	if a.Error != "" {
		return 0, errors.New(a.Error)
	}
	return time.Duration(a.Seconds * float64(time.Second)), nil
}

// stop closes the side's input, at which it ends.
func (s *side) stop() {
	_ = s.in.Close()     // it ends all the same
	_ = s.command.Wait() // what it did is known by now
}

// ticks a second of /proc/PID/stat, on every Linux of note.
const ticks = 100

// ownCPU is the CPU time that this process has used.
func ownCPU() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err) // it knows no error for this process
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func (s *side) cpu() (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.command.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	list := strings.Fields(rest)
	if len(list) < 13 {
		return 0, fmt.Errorf("no times in %q", data)
	}
	user, err1 := strconv.Atoi(list[11])
	system, err2 := strconv.Atoi(list[12])
	return time.Duration(user+system) * time.Second / ticks, errors.Join(err1, err2)
}

func (s *side) memory() (peak, anonymous float64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.command.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(data)) {
		var kilobytes float64
		if _, err := fmt.Sscanf(line, "VmHWM: %f kB", &kilobytes); err == nil {
			peak = kilobytes / 1024
		}
		if _, err := fmt.Sscanf(line, "RssAnon: %f kB", &kilobytes); err == nil {
			anonymous = kilobytes / 1024
		}
	}
	return peak, anonymous, nil
}
