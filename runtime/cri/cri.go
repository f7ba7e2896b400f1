// Package cri is the seam between the node agent and whatever runs containers:
// the Container Runtime Interface v1 of Kubernetes, as Go interfaces. A backend
// that lives in the process and one behind a gRPC connection (a plugin process,
// a containerd socket) are the same type to the agent.
package cri

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Backend is a container runtime: CRI v1's runtime service and image service.
// Implementations embed the two Unimplemented servers of the CRI package, so
// that calls they do not have answer codes.Unimplemented. Errors are gRPC status
// errors; the agent looks at their codes only. A request belongs to the caller
// and a response to the backend: neither side changes what it was handed, and
// both may keep it.
type Backend interface {
	runtimeapi.RuntimeServiceServer
	runtimeapi.ImageServiceServer
}

// Register adds both services of a backend to a gRPC server.
func Register(r grpc.ServiceRegistrar, b Backend) {
	runtimeapi.RegisterRuntimeServiceServer(r, b)
	runtimeapi.RegisterImageServiceServer(r, b)
}

// Events calls fn with every container event of a backend until ctx ends or
// the backend ends the stream; ready, if not nil, runs once events are being
// collected. The error is nil only after the backend closed the stream itself;
// codes.Unimplemented says that it offers no events.
func Events(ctx context.Context, b Backend, ready func(), fn func(*runtimeapi.ContainerEventResponse)) error {
	return b.GetContainerEvents(&runtimeapi.GetEventsRequest{}, &eventStream{ctx: ctx, ready: ready, fn: fn})
}

// eventStream is the server's end of an event stream that hands the events to
// a function.
type eventStream struct {
	ctx   context.Context
	ready func()
	fn    func(*runtimeapi.ContainerEventResponse)
}

func (s *eventStream) Send(e *runtimeapi.ContainerEventResponse) error { s.fn(e); return s.ctx.Err() }
func (s *eventStream) Context() context.Context                        { return s.ctx }
func (s *eventStream) SetHeader(metadata.MD) error                     { return nil }
func (s *eventStream) SetTrailer(metadata.MD)                          {}
func (s *eventStream) RecvMsg(any) error                               { return io.EOF }

// SendHeader is how a backend says that it collects events from here on.
func (s *eventStream) SendHeader(metadata.MD) error {
	if s.ready != nil {
		s.ready()
		s.ready = nil
	}
	return nil
}

func (s *eventStream) SendMsg(m any) error {
	e, ok := m.(*runtimeapi.ContainerEventResponse)
	if !ok {
		return errors.New("not a container event")
	}
	return s.Send(e)
}
