//go:build !linux

package main

import (
	"context"
	"log/slog"
	"time"
)

// powerFails is Linux' signal, and systemd's, alone.
func powerFails(context.Context, time.Duration, *slog.Logger) (going <-chan struct{}, mayGo func()) {
	return nil, func() {}
}
