package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/runtime/agent/logind"
)

// powerFails tells once that the machine is about to go, until ctx ends: of SIGPWR and, where systemd runs, by its login
// manager, which waits as long as it is told to, until the machine may go. nil if grace is 0.
func powerFails(ctx context.Context, grace time.Duration, log *slog.Logger) (going <-chan struct{}, mayGo func()) {
	mayGo = func() {}
	if grace <= 0 {
		return nil, mayGo
	}
	told, power := make(chan struct{}), make(chan os.Signal, 1)
	signal.Notify(power, syscall.SIGPWR)
	var manager <-chan struct{}
	if logind.Running() {
		lock, err := logind.Hold(ctx, logind.Options{Delay: grace, Logger: log})
		if err != nil {
			log.Warn("systemd does not wait for pods when the machine goes down; SIGPWR still tells", "err", err)
		} else {
			manager, mayGo = lock.Going(), lock.Release
		}
	}
	go func() {
		defer signal.Stop(power)
		select {
		case <-power:
		case <-manager:
		case <-ctx.Done():
			return
		}
		close(told)
	}()
	return told, mayGo
}
