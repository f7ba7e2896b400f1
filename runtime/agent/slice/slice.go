//go:build linux

// Package slice makes control groups as systemd's slices, which is how a machine that systemd manages wants them: by its manager
// on the system's bus (https://www.freedesktop.org/wiki/Software/systemd/ControlGroupInterface/).
package slice

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"

	"github.com/quaymaster/quaymaster/runtime/agent/cgroup"
)

// callTime bounds a call and the job that it begins.
const callTime = 30 * time.Second

// Errors of the manager that say that a unit is as it is wanted.
const (
	unitExists = "org.freedesktop.systemd1.UnitExists"
	noSuchUnit = "org.freedesktop.systemd1.NoSuchUnit"
)

// Options of Connect.
type Options struct {
	Address string // of the bus; "" = the system's
}

// Manager is systemd's. It is cgroup's Slices.
type Manager struct {
	ctx  context.Context
	opts Options

	mu   sync.Mutex
	conn *systemd.Conn
}

// Connect reaches systemd's manager; the end of ctx gives the connection up. One that breaks is made anew.
func Connect(ctx context.Context, opts Options) (*Manager, error) {
	m := &Manager{ctx: ctx, opts: opts}
	conn, err := m.connection()
	if err != nil {
		return nil, err
	}
	if _, err := conn.GetManagerProperty("Version"); err != nil {
		conn.Close()
		return nil, fmt.Errorf("ask systemd for its version: %w", err)
	}
	context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.conn.Close()
	})
	return m, nil
}

// connection is one that is open.
func (m *Manager) connection() (*systemd.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ctx.Err(); err != nil {
		return nil, err
	}
	if m.conn != nil && m.conn.Connected() {
		return m.conn, nil
	}
	if m.conn != nil {
		m.conn.Close()
	}
	conn, err := systemd.NewConnection(func() (*dbus.Conn, error) {
		if m.opts.Address == "" {
			return dbus.ConnectSystemBus(dbus.WithContext(m.ctx))
		}
		return dbus.Connect(m.opts.Address, dbus.WithContext(m.ctx))
	})
	if err != nil {
		return nil, fmt.Errorf("connect to the bus of systemd: %w", err)
	}
	m.conn = conn
	return conn, nil
}

// call asks systemd once and, where the connection broke meanwhile, once more.
func (m *Manager) call(what, slice string, f func(context.Context, *systemd.Conn) error) error {
	ctx, cancel := context.WithTimeout(m.ctx, callTime)
	defer cancel()
	var err error
	for range 2 {
		var conn *systemd.Conn
		if conn, err = m.connection(); err != nil {
			break
		}
		var broken *net.OpError
		if err = f(ctx, conn); !errors.Is(err, dbus.ErrClosed) && !errors.As(err, &broken) {
			break
		}
		conn.Close() // the library may not have noticed yet
	}
	if err != nil {
		return fmt.Errorf("%s slice %s: %w", what, slice, err)
	}
	return nil
}

// wait waits for a job's end.
func wait(ctx context.Context, done <-chan string) error {
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("systemd's job ends as %q", result)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("systemd's job: %w", ctx.Err())
	}
}

func is(err error, name string) bool {
	var e dbus.Error
	return errors.As(err, &e) && e.Name == name
}

// Start implements cgroup.Slices. What is counted has a control group's controller, so all is.
func (m *Manager) Start(slice string) error {
	properties := []systemd.Property{systemd.PropDescription("control group of pods"), property("DefaultDependencies", false)}
	for _, what := range []string{"CPUAccounting", "MemoryAccounting", "TasksAccounting", "IOAccounting"} {
		properties = append(properties, property(what, true))
	}
	return m.call("start", slice, func(ctx context.Context, conn *systemd.Conn) error {
		done := make(chan string, 1)
		_, err := conn.StartTransientUnitContext(ctx, slice, "replace", properties, done)
		if is(err, unitExists) {
			return nil
		}
		if err != nil {
			return err
		}
		return wait(ctx, done)
	})
}

// Set implements cgroup.Slices, until the machine's end.
func (m *Manager) Set(slice string, properties []cgroup.Property) error {
	var out []systemd.Property
	for _, p := range properties {
		out = append(out, property(p.Name, p.Value))
	}
	if len(out) == 0 {
		return nil
	}
	return m.call("set", slice, func(ctx context.Context, conn *systemd.Conn) error {
		return conn.SetUnitPropertiesContext(ctx, slice, true, out...)
	})
}

// Stop implements cgroup.Slices.
func (m *Manager) Stop(slice string) error {
	return m.call("stop", slice, func(ctx context.Context, conn *systemd.Conn) error {
		done := make(chan string, 1)
		_, err := conn.StopUnitContext(ctx, slice, "replace", done)
		if is(err, noSuchUnit) {
			return nil
		}
		if err != nil {
			return err
		}
		return wait(ctx, done)
	})
}

func property(name string, value any) systemd.Property {
	return systemd.Property{Name: name, Value: dbus.MakeVariant(value)}
}
