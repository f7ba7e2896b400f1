//go:build !linux

package main

import (
	"context"
	"errors"

	"github.com/quaymaster/quaymaster/runtime/agent/cgroup"
)

// systemdSlices is Linux' alone.
func systemdSlices(context.Context) (cgroup.Slices, error) {
	return nil, errors.New("systemd manages machines with Linux")
}
