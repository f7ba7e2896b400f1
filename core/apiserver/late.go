package apiserver

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"k8s.io/apiserver/pkg/admission"
	"k8s.io/client-go/tools/cache"
)

// latePlugin stands in for one of upstream's plugins that polls and holds memory
// from the moment it is made. It is made when one of the objects that it obeys is
// there: before that it has nothing to say.
type latePlugin struct {
	*admission.Handler
	obeys []cache.SharedIndexInformer
	make  func() (admission.Interface, error) // once
	made  atomic.Bool
}

func newLatePlugin(obeys []cache.SharedIndexInformer, newPlugin func() (admission.Interface, error)) *latePlugin {
	p := &latePlugin{
		Handler: admission.NewHandler(admission.Create, admission.Update, admission.Delete, admission.Connect),
		obeys:   obeys,
		make:    sync.OnceValues(newPlugin),
	}
	p.SetReadyFunc(p.synced)
	return p
}

func (p *latePlugin) synced() bool {
	return !slices.ContainsFunc(p.obeys, func(i cache.SharedIndexInformer) bool { return !i.HasSynced() })
}

// plugin is nil when there is nothing to obey, or not for this operation.
func (p *latePlugin) plugin(a admission.Attributes) (admission.Interface, error) {
	if !p.made.Load() {
		if !p.synced() && !p.WaitForReady() {
			return nil, admission.NewForbidden(a, errors.New("not yet ready to handle request"))
		}
		if len(p.obeys[0].GetStore().ListKeys()) == 0 {
			return nil, nil
		}
	}
	plugin, err := p.make()
	if err != nil {
		return nil, admission.NewForbidden(a, err)
	}
	p.made.Store(true)
	if !plugin.Handles(a.GetOperation()) {
		return nil, nil
	}
	return plugin, nil
}

// lateMutation and lateValidation are what plugins are by their interface.
type lateMutation struct{ *latePlugin }

func (p lateMutation) Admit(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	plugin, err := p.plugin(a)
	if plugin == nil || err != nil {
		return err
	}
	return plugin.(admission.MutationInterface).Admit(ctx, a, o)
}

type lateValidation struct{ *latePlugin }

func (p lateValidation) Validate(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	plugin, err := p.plugin(a)
	if plugin == nil || err != nil {
		return err
	}
	return plugin.(admission.ValidationInterface).Validate(ctx, a, o)
}
