package main

import (
	"context"

	"github.com/quaymaster/quaymaster/runtime/agent/cgroup"
	"github.com/quaymaster/quaymaster/runtime/agent/slice"
)

// systemdSlices is this machine's systemd, until ctx ends.
func systemdSlices(ctx context.Context) (cgroup.Slices, error) {
	m, err := slice.Connect(ctx, slice.Options{})
	if err != nil {
		return nil, err
	}
	return m, nil
}
