package wasm

import (
	"context"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/quaymaster/quaymaster/policies"
)

// read is the answer to one get, kept for the guest that asks again with a
// buffer of the right size.
type read struct {
	resource, namespace, name string
	data                      []byte
	code                      int32
}

// get reads an object at the decision's revision. What it panics with is the
// failure of the call.
func (in *instance) get(resource, namespace, name string) (data []byte, code int32) {
	if last := &in.read; last.resource == resource && last.namespace == namespace && last.name == name && resource != "" {
		return last.data, last.code
	}
	in.read = read{resource: resource, namespace: namespace, name: name}
	in.read.data, in.read.code = in.fetch(resource, namespace, name)
	return in.read.data, in.read.code
}

func (in *instance) fetch(resource, namespace, name string) (data []byte, code int32) {
	if !slices.Contains(in.program.manifest.Reads, resource) {
		return nil, getNotGranted
	}
	reader := in.cycle.Reads
	if reader == nil {
		return nil, getNotFound // a self-test runs on an empty store
	}
	if in.reads++; in.reads > maxReads {
		panic(fmt.Errorf("%w: more than %d reads in a call", policies.ErrTrap, maxReads))
	}
	ctx, cancel := context.WithDeadline(in.meter.ctx, in.meter.began.Add(in.meter.deadline))
	defer cancel()
	object, err := reader.Get(ctx, in.cycle.Revision, schema.ParseGroupResource(resource), namespace, name)
	switch {
	case apierrors.IsNotFound(err):
		return nil, getNotFound
	case in.meter.ctx.Err() != nil:
		panic(in.meter.ctx.Err())
	case ctx.Err() != nil:
		panic(fmt.Errorf("%w: %v", policies.ErrDeadline, in.meter.deadline))
	case err != nil:
		panic(fmt.Errorf("%w: %s %s/%s at revision %d: %w", policies.ErrRead, resource, namespace, name, in.cycle.Revision, err))
	}
	if data, err = in.program.encode(object); err != nil {
		panic(fmt.Errorf("%w: encode %s %s/%s: %w", policies.ErrRead, resource, namespace, name, err))
	}
	if len(data) > maxResult {
		panic(fmt.Errorf("%w: %s %s/%s has %d bytes, at most %d can be read", policies.ErrRead, resource, namespace, name, len(data), maxResult))
	}
	in.meter.chargeBytes(len(data))
	return data, 0
}
