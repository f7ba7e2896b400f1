package cri

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hanging is a connection whose calls last as long as they may.
type hanging struct {
	grpc.ClientConnInterface
	limit time.Duration // that the last call had; 0 = none
}

func (h *hanging) Invoke(ctx context.Context, _ string, _, _ any, _ ...grpc.CallOption) error {
	h.limit = 0
	deadline, ok := ctx.Deadline()
	if !ok {
		return nil
	}
	h.limit = time.Until(deadline)
	if h.limit > time.Second {
		return nil
	}
	<-ctx.Done()
	return status.FromContextError(ctx.Err()).Err()
}

func TestCallsAreBounded(t *testing.T) {
	for _, test := range []struct {
		name string
		in   any
		want time.Duration // 0 = unbounded
	}{
		{"start", &runtimeapi.StartContainerRequest{}, time.Hour},
		{"sandbox", &runtimeapi.RunPodSandboxRequest{}, 2 * time.Hour},
		{"pull", &runtimeapi.PullImageRequest{}, 0},
		{"stop", &runtimeapi.StopContainerRequest{Timeout: 7200}, 3 * time.Hour},
		{"stop at once", &runtimeapi.StopContainerRequest{Timeout: -1}, time.Hour},
		{"exec", &runtimeapi.ExecSyncRequest{Timeout: 3600}, 2 * time.Hour},
		{"exec without end", &runtimeapi.ExecSyncRequest{}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn := &hanging{}
			if err := (bounded{conn, time.Hour}).Invoke(t.Context(), "", test.in, nil); err != nil {
				t.Fatal(err)
			}
			if less := test.want - conn.limit; less < 0 || less > 10*time.Minute {
				t.Errorf("bounded by %s, want %s", conn.limit, test.want)
			}
		})
	}
}

func TestHangingCallEnds(t *testing.T) {
	backend := remoteOver(bounded{&hanging{}, time.Millisecond})
	if _, err := backend.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("want DeadlineExceeded, have %v", err)
	}
}
