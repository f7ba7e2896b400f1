package core

import (
	"github.com/quaymaster/quaymaster/core/informer"
	"github.com/quaymaster/quaymaster/policies"
)

// reads is the store as policies see it: at the revision of a decision, past
// the informers, which have only the newest states.
type reads struct {
	*informer.Factory
	store store
}

var _ policies.Reader = reads{}

func (r reads) Revision() int64 { return r.store.Revision() }
