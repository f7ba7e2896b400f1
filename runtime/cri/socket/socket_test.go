package socket

import (
	"context"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/cri"
)

// answers is a runtime that answers with codes.
type answers struct {
	cri.Backend
	stop, sandbox codes.Code
}

func (a answers) StopPodSandbox(context.Context, *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return &runtimeapi.StopPodSandboxResponse{}, status.Error(a.stop, "stop")
}

func (a answers) StopContainer(context.Context, *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	return &runtimeapi.StopContainerResponse{}, status.Error(a.stop, "stop")
}

func (a answers) PodSandboxStatus(context.Context, *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	return &runtimeapi.PodSandboxStatusResponse{}, status.Error(a.sandbox, "status")
}

// TestStopsAreRepeatable: what is not there is stopped; what could not be stopped is an error, also where that is because something
// else was not found.
func TestStopsAreRepeatable(t *testing.T) {
	for name, test := range map[string]struct {
		runtime            answers
		sandbox, container codes.Code
	}{
		"it stops":                    {answers{}, codes.OK, codes.OK},
		"it is not there":             {answers{stop: codes.NotFound, sandbox: codes.NotFound}, codes.OK, codes.OK},
		"something else is not there": {answers{stop: codes.NotFound}, codes.NotFound, codes.OK},
		"the runtime goes meanwhile":  {answers{stop: codes.NotFound, sandbox: codes.Unavailable}, codes.NotFound, codes.OK},
		"it cannot be stopped":        {answers{stop: codes.DeadlineExceeded, sandbox: codes.NotFound}, codes.DeadlineExceeded, codes.DeadlineExceeded},
	} {
		b := &Backend{Backend: test.runtime}
		if _, err := b.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: "s"}); status.Code(err) != test.sandbox {
			t.Errorf("%s: stop of the sandbox: %v, want %s", name, err, test.sandbox)
		}
		if _, err := b.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: "c"}); status.Code(err) != test.container {
			t.Errorf("%s: stop of the container: %v, want %s", name, err, test.container)
		}
	}
}
