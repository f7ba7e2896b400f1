package core

import (
	"context"
	"errors"

	"github.com/quaymaster/quaymaster/core/scheduler"
	"github.com/quaymaster/quaymaster/core/storage"
)

// binder commits the scheduler's binds in the store's batches.
type binder struct{ store store }

func (b binder) Commit(ctx context.Context, writes []scheduler.Write) []scheduler.Result {
	in := make([]storage.Write, len(writes))
	for i, write := range writes {
		in[i] = storage.Write{Key: write.Key, Value: write.Value, Expect: write.Expect}
	}
	out := make([]scheduler.Result, len(writes))
	for i, result := range b.store.Commit(ctx, in) {
		var conflict *storage.ConflictError
		if errors.As(result.Err, &conflict) {
			out[i] = scheduler.Result{Revision: conflict.Current, Conflict: true}
		} else {
			out[i] = scheduler.Result{Revision: result.Revision, Err: result.Err}
		}
	}
	return out
}

// CommitAll commits the binds of a gang, all or none.
func (b binder) CommitAll(ctx context.Context, writes []scheduler.Write) scheduler.Result {
	in := make([]storage.Write, len(writes))
	for i, write := range writes {
		in[i] = storage.Write{Key: write.Key, Value: write.Value, Expect: write.Expect}
	}
	revisions, err := b.store.CommitAll(ctx, in)
	var conflict *storage.ConflictError
	switch {
	case errors.As(err, &conflict):
		return scheduler.Result{Revision: conflict.Current, Conflict: true}
	case err != nil || len(revisions) == 0:
		return scheduler.Result{Err: err}
	}
	return scheduler.Result{Revision: revisions[len(revisions)-1]}
}
