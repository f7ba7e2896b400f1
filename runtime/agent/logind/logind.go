//go:build linux

// Package logind holds up the end of a machine until its pods have ended, where systemd's login manager runs: by a delaying
// inhibitor lock, as upstream's kubelet does (https://www.freedesktop.org/wiki/Software/systemd/inhibit/).
package logind

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	service  = "org.freedesktop.login1"
	object   = dbus.ObjectPath("/org/freedesktop/login1")
	manager  = service + ".Manager"
	systemd  = "org.freedesktop.systemd1"
	settings = "/etc/systemd/logind.conf.d"
	ours     = "99-quaymaster.conf"
)

// reloadTime bounds how long the manager may take to heed its settings.
const reloadTime = 10 * time.Second

// Options of Hold. Delay is needed.
type Options struct {
	Address  string        // of the bus; "" = the system's
	Delay    time.Duration // how long the machine is to wait
	Settings string        // folder of the manager's settings; "" = systemd's
	Logger   *slog.Logger  // nil = discard
}

// Lock is one that is held.
type Lock struct {
	conn  *dbus.Conn
	going chan struct{}
	log   *slog.Logger

	mu sync.Mutex
	fd int // -1 = not held
}

// Running tells whether systemd manages this machine, as sd_booted does.
func Running() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// Hold takes the lock and listens for the machine's end. Where the manager would not wait as long as Delay, it is told to by a
// file of settings. The end of ctx gives it back.
func Hold(ctx context.Context, opts Options) (_ *Lock, err error) {
	if opts.Settings == "" {
		opts.Settings = settings
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	// The connection outlives a call's context, but not ctx.
	var conn *dbus.Conn
	if opts.Address == "" {
		conn, err = dbus.ConnectSystemBus(dbus.WithContext(ctx))
	} else {
		conn, err = dbus.Connect(opts.Address, dbus.WithContext(ctx))
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the bus of systemd: %w", err)
	}
	l := &Lock{conn: conn, going: make(chan struct{}), log: opts.Logger, fd: -1}
	defer func() {
		if err != nil {
			l.Release()
		}
	}()
	if err := l.wait(ctx, opts); err != nil {
		return nil, err
	}
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	if err := conn.AddMatchSignalContext(ctx, dbus.WithMatchInterface(manager), dbus.WithMatchMember("PrepareForShutdown"), dbus.WithMatchObjectPath(object)); err != nil {
		return nil, fmt.Errorf("listen for the machine's end: %w", err)
	}
	var fd dbus.UnixFD
	if err := conn.Object(service, object).CallWithContext(ctx, manager+".Inhibit", 0, "shutdown", "quaymaster", "Pods are to end before the machine does", "delay").Store(&fd); err != nil {
		return nil, fmt.Errorf("hold up the machine's end: %w", err)
	}
	l.fd = int(fd)
	go l.listen(signals)
	context.AfterFunc(ctx, l.Release)
	return l, nil
}

// wait makes sure that the manager waits long enough.
func (l *Lock) wait(ctx context.Context, opts Options) error {
	delay, err := l.delay()
	if err != nil || delay >= opts.Delay {
		return err
	}
	text := fmt.Sprintf("# Of a node's agent: pods have this long to end before the machine does.\n[Login]\nInhibitDelayMaxSec=%.0f\n", opts.Delay.Seconds())
	if err = os.MkdirAll(opts.Settings, 0o755); err == nil {
		err = os.WriteFile(filepath.Join(opts.Settings, ours), []byte(text), 0o644)
	}
	if err != nil {
		return fmt.Errorf("have the machine wait %v for pods: %w", opts.Delay, err)
	}
	hangup := int32(syscall.SIGHUP)
	call := l.conn.Object(systemd, "/org/freedesktop/systemd1").CallWithContext(ctx, systemd+".Manager.KillUnit", 0, "systemd-logind.service", "all", hangup)
	if call.Err != nil {
		return fmt.Errorf("have the login manager read its settings: %w", call.Err)
	}
	for deadline := time.Now().Add(reloadTime); ; {
		if delay, err = l.delay(); err != nil || delay >= opts.Delay {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the login manager waits %v at most, not %v, whatever %s says", delay, opts.Delay, filepath.Join(opts.Settings, ours))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond): // it tells nobody
		}
	}
}

// delay is how long the manager waits at most.
func (l *Lock) delay() (time.Duration, error) {
	v, err := l.conn.Object(service, object).GetProperty(manager + ".InhibitDelayMaxUSec")
	if err != nil {
		return 0, fmt.Errorf("ask the login manager how long it waits: %w", err)
	}
	microseconds, ok := v.Value().(uint64)
	if !ok {
		return 0, fmt.Errorf("ask the login manager how long it waits: it says %v", v)
	}
	return time.Duration(microseconds) * time.Microsecond, nil
}

// listen waits for the machine's end. The connection's end closes signals.
func (l *Lock) listen(signals <-chan *dbus.Signal) {
	told := false
	for s := range signals {
		if s.Name != manager+".PrepareForShutdown" || len(s.Body) == 0 {
			continue
		}
		if going, _ := s.Body[0].(bool); going && !told {
			told = true
			close(l.going)
		}
	}
}

// Going is closed when the machine is about to go.
func (l *Lock) Going() <-chan struct{} { return l.going }

// Release lets the machine go. It may be called more than once.
func (l *Lock) Release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd >= 0 {
		if err := syscall.Close(l.fd); err != nil {
			l.log.Warn("let the machine go", "err", err)
		}
		l.fd = -1
	}
	if err := l.conn.Close(); err != nil && !errors.Is(err, dbus.ErrClosed) {
		l.log.Warn("close the connection to the bus of systemd", "err", err)
	}
}
