//go:build linux

package logind_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"

	"github.com/quaymaster/quaymaster/runtime/agent/bustest"
	"github.com/quaymaster/quaymaster/runtime/agent/logind"
)

// manager is a login manager, and what of systemd reloads it.
type manager struct {
	t       *testing.T
	conn    *dbus.Conn
	read    *os.File    // ends when nobody has the lock
	mu      sync.Mutex  // which the bus knows nothing of
	lock    *os.File    // which is given away
	asked   chan string // which locks
	reloads chan string // units that were told to read their settings
	props   *prop.Properties
	settled time.Duration // how long it waits after that
}

func newManager(t *testing.T, address string, waits, after time.Duration) *manager {
	t.Helper()
	conn := bustest.Connect(t, address)
	var err error
	m := &manager{t: t, conn: conn, asked: make(chan string, 1), reloads: make(chan string, 1), settled: after}
	if m.read, m.lock, err = os.Pipe(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = m.read.Close(), m.lock.Close() })
	const path = "/org/freedesktop/login1"
	if m.props, err = prop.Export(conn, path, prop.Map{"org.freedesktop.login1.Manager": {"InhibitDelayMaxUSec": {Value: uint64(waits / time.Microsecond)}}}); err != nil {
		t.Fatal(err)
	}
	if err := conn.Export(m, path, "org.freedesktop.login1.Manager"); err != nil {
		t.Fatal(err)
	}
	if err := conn.Export(units{m}, "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"org.freedesktop.login1", "org.freedesktop.systemd1"} {
		if reply, err := conn.RequestName(name, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
			t.Fatalf("name %s: %v, %v", name, reply, err)
		}
	}
	return m
}

// Inhibit is logind's.
func (m *manager) Inhibit(what, who, _, mode string) (dbus.UnixFD, *dbus.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked <- what + " " + who + " " + mode
	return dbus.UnixFD(m.lock.Fd()), nil
}

// released gives up the manager's own end of the lock; what it returns is closed when nobody else has it either.
func (m *manager) released() <-chan struct{} {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.lock.Close(); err != nil {
		m.t.Fatal(err)
	}
	out := make(chan struct{})
	go func() {
		_, _ = m.read.Read(make([]byte, 1))
		close(out)
	}()
	return out
}

type units struct{ m *manager }

// KillUnit is systemd's.
func (u units) KillUnit(unit, _ string, _ int32) *dbus.Error {
	u.m.props.SetMust("org.freedesktop.login1.Manager", "InhibitDelayMaxUSec", uint64(u.m.settled/time.Microsecond))
	u.m.reloads <- unit
	return nil
}

func (m *manager) tell(going bool) {
	m.t.Helper()
	if err := m.conn.Emit("/org/freedesktop/login1", "org.freedesktop.login1.Manager.PrepareForShutdown", going); err != nil {
		m.t.Fatal(err)
	}
}

func soon(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(time.Minute):
		t.Fatal(what)
	}
}

// TestMachineWaitsForPods has the machine go: it is heard of, and held up until the lock is released.
func TestMachineWaitsForPods(t *testing.T) {
	address := bustest.Start(t)
	m := newManager(t, address, time.Minute, 0)
	settings := filepath.Join(t.TempDir(), "none")
	l, err := logind.Hold(t.Context(), logind.Options{Address: address, Delay: 30 * time.Second, Settings: settings})
	if err != nil {
		t.Fatal(err)
	}
	if asked := <-m.asked; asked != "shutdown quaymaster delay" {
		t.Errorf("the lock is of %q", asked)
	}
	if _, err := os.Stat(settings); !os.IsNotExist(err) {
		t.Errorf("settings were written though the machine waits long enough: %v", err)
	}
	released := m.released()
	m.tell(false)
	m.tell(true)
	soon(t, "the machine's end is not heard of", l.Going())
	select {
	case <-released:
		t.Error("the lock is released before pods have ended")
	default:
	}
	l.Release()
	l.Release()
	soon(t, "the lock is not released", released)
}

// TestMachineIsToldToWaitLonger has a manager that would wait for 5 s only.
func TestMachineIsToldToWaitLonger(t *testing.T) {
	address := bustest.Start(t)
	m := newManager(t, address, 5*time.Second, time.Minute)
	settings := filepath.Join(t.TempDir(), "logind.conf.d")
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := logind.Hold(ctx, logind.Options{Address: address, Delay: time.Minute, Settings: settings}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(settings, "99-quaymaster.conf"))
	if err != nil || !strings.HasSuffix(string(data), "[Login]\nInhibitDelayMaxSec=60\n") {
		t.Errorf("%q, %v", data, err)
	}
	if unit := <-m.reloads; unit != "systemd-logind.service" {
		t.Errorf("%s was told", unit)
	}
	released := m.released()
	cancel() // the agent's end
	soon(t, "the lock outlives its holder", released)
}

func TestHoldFails(t *testing.T) {
	address := bustest.Start(t)
	if _, err := logind.Hold(t.Context(), logind.Options{Address: address, Delay: time.Minute}); err == nil || !strings.Contains(err.Error(), "ask the login manager") {
		t.Errorf("without a manager: %v", err)
	}
	if _, err := logind.Hold(t.Context(), logind.Options{Address: "unix:path=" + filepath.Join(t.TempDir(), "none"), Delay: time.Minute}); err == nil || !strings.Contains(err.Error(), "connect to the bus") {
		t.Errorf("without a bus: %v", err)
	}
}
