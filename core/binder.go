package core

import (
	"github.com/quaymaster/quaymaster/core/storage"
)

// binder commits the scheduler's binds in the store's batches.
type binder struct{ store *storage.Store }
