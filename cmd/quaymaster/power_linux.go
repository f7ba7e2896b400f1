package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// powerFails tells of SIGPWR once, until ctx ends; nil if it is not wanted.
func powerFails(ctx context.Context, wanted bool) <-chan struct{} {
	if !wanted {
		return nil
	}
	going, power := make(chan struct{}), make(chan os.Signal, 1)
	signal.Notify(power, syscall.SIGPWR)
	go func() {
		defer signal.Stop(power)
		select {
		case <-power:
			close(going)
		case <-ctx.Done():
		}
	}()
	return going
}
