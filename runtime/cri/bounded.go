package cri

import (
	"context"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RequestTimeout bounds a call to a backend behind a connection, as the
// kubelet's --runtime-request-timeout does: one that hangs must not hold a
// pod's worker for ever.
const RequestTimeout = 2 * time.Minute

// bounded is a connection whose calls end in time.
type bounded struct {
	grpc.ClientConnInterface
	limit time.Duration
}

func (b bounded) Invoke(ctx context.Context, method string, in, out any, opts ...grpc.CallOption) error {
	limit := b.limit
	switch in := in.(type) {
	case *runtimeapi.PullImageRequest: // takes what the network takes
		return b.ClientConnInterface.Invoke(ctx, method, in, out, opts...)
	case *runtimeapi.RunPodSandboxRequest: // it may wait for the network of pods
		limit *= 2
	case *runtimeapi.StopContainerRequest:
		limit += time.Duration(max(in.Timeout, 0)) * time.Second
	case *runtimeapi.ExecSyncRequest:
		if in.Timeout <= 0 { // as long as the program runs
			return b.ClientConnInterface.Invoke(ctx, method, in, out, opts...)
		}
		limit += time.Duration(in.Timeout) * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return b.ClientConnInterface.Invoke(ctx, method, in, out, opts...)
}
