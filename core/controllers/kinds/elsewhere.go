package kinds

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/tools/cache"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

const (
	// lookAgain is how often servers elsewhere are asked what they serve: nothing
	// tells when that changes. It is upstream's interval.
	lookAgain = 30 * time.Second
	// lookSoon is how soon one is asked again that is available and does not answer:
	// the way to it is made a moment after its condition.
	lookSoon = time.Second
)

// elsewhere are the kinds that other servers serve under this API.
type elsewhere struct {
	services cache.SharedIndexInformer
	client   discovery.ServerResourcesInterface
	look     chan struct{} // an APIService has changed

	// Under the lock of Dynamic:
	kinds  map[schema.GroupVersionResource]defined
	failed map[schema.GroupVersion]error // what could not be asked, or has not been yet
}

// Elsewhere makes d know what other servers serve as well: those that the
// APIServices of the informer name. Call it before Run.
func (d *Dynamic) Elsewhere(services cache.SharedIndexInformer, client discovery.ServerResourcesInterface) {
	d.elsewhere = &elsewhere{
		services: services, client: client, look: make(chan struct{}, 1),
		kinds: make(map[schema.GroupVersionResource]defined), failed: make(map[schema.GroupVersion]error),
	}
}

// Incomplete tells which groups cannot be asked now, as upstream's discovery does.
func (d *Dynamic) Incomplete() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.elsewhere == nil || len(d.elsewhere.failed) == 0 {
		return nil
	}
	return &discovery.ErrGroupDiscoveryFailed{Groups: maps.Clone(d.elsewhere.failed)}
}

// follow keeps up with the APIServices, and with what their servers serve, until
// the context ends.
func (d *Dynamic) follow(ctx context.Context) error {
	e := d.elsewhere
	registration, err := e.services.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { d.serviceChanged(nil, object) },
		UpdateFunc: d.serviceChanged,
		DeleteFunc: func(object any) { d.serviceChanged(object, nil) },
	})
	if err != nil {
		return fmt.Errorf("follow the API services: %w", err)
	}
	timer := time.NewTimer(lookAgain)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			if err := e.services.RemoveEventHandler(registration); err != nil {
				return fmt.Errorf("leave the API services: %w", err)
			}
			return nil
		case <-timer.C:
		case <-e.look:
		}
		timer.Reset(d.discover(ctx))
	}
}

// serviceChanged notes that a server has to be asked again. What is served here
// is known without.
func (d *Dynamic) serviceChanged(before, after any) {
	old, _ := before.(*apiregistrationv1.APIService)
	s, _ := after.(*apiregistrationv1.APIService)
	if gone, ok := before.(cache.DeletedFinalStateUnknown); ok {
		old, _ = gone.Obj.(*apiregistrationv1.APIService)
	}
	was, is := old != nil && old.Spec.Service != nil, s != nil && s.Spec.Service != nil
	if !was && !is || was && is && old.Generation == s.Generation && available(old) == available(s) {
		return
	}
	if is {
		d.mu.Lock()
		d.elsewhere.failed[groupVersion(s)] = apierrors.NewServiceUnavailable("it has not been asked yet")
		d.mu.Unlock()
	}
	select {
	case d.elsewhere.look <- struct{}{}:
	default:
	}
}

func available(s *apiregistrationv1.APIService) bool {
	return slices.ContainsFunc(s.Status.Conditions, func(c apiregistrationv1.APIServiceCondition) bool {
		return c.Type == apiregistrationv1.Available && c.Status == apiregistrationv1.ConditionTrue
	})
}

func groupVersion(s *apiregistrationv1.APIService) schema.GroupVersion {
	return schema.GroupVersion{Group: s.Spec.Group, Version: s.Spec.Version}
}

// services that name another server, those of a group in the order in which
// their versions are preferred.
func (e *elsewhere) remote() []*apiregistrationv1.APIService {
	var out []*apiregistrationv1.APIService
	for _, object := range e.services.GetStore().List() {
		if s, ok := object.(*apiregistrationv1.APIService); ok && s.Spec.Service != nil {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b *apiregistrationv1.APIService) int {
		return cmp.Or(strings.Compare(a.Spec.Group, b.Spec.Group), cmp.Compare(b.Spec.VersionPriority, a.Spec.VersionPriority),
			version.CompareKubeAwareVersionStrings(b.Spec.Version, a.Spec.Version))
	})
	return out
}

// discover asks each server, and tells when to do so again. The kinds of one that
// does not answer stay as they were.
func (d *Dynamic) discover(ctx context.Context) (next time.Duration) {
	e := d.elsewhere
	next = lookAgain
	served := map[schema.GroupResource]Kind{} // each in the version that is preferred
	failed := map[schema.GroupVersion]error{}
	for _, s := range e.remote() {
		gv := groupVersion(s)
		found, err := e.ask(s)
		if ctx.Err() != nil {
			return next
		}
		if err != nil {
			failed[gv] = err
			if available(s) {
				next = lookSoon
			}
			d.mu.Lock()
			for gvr, k := range e.kinds {
				if gvr.GroupVersion() == gv {
					found = append(found, k.plain())
				}
			}
			d.mu.Unlock()
		}
		for _, k := range found {
			if _, known := served[k.GroupResource()]; !known {
				served[k.GroupResource()] = k
			}
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	e.failed = failed
	if d.ctx == nil {
		return next
	}
	changed := false
	for gvr, old := range e.kinds {
		if served[gvr.GroupResource()] != old.plain() {
			old.stop()
			delete(e.kinds, gvr)
			changed = true
		}
	}
	for _, k := range served {
		if _, known := e.kinds[k.GroupVersionResource]; !known {
			e.kinds[k.GroupVersionResource] = d.start(k)
			changed = true
		}
	}
	if changed {
		d.tell()
	}
	return next
}

// ask returns the kinds whose objects can be found and deleted.
func (e *elsewhere) ask(s *apiregistrationv1.APIService) ([]Kind, error) {
	if !available(s) {
		return nil, apierrors.NewServiceUnavailable("the server is currently unable to handle the request")
	}
	gv := groupVersion(s)
	list, err := e.client.ServerResourcesForGroupVersion(gv.String())
	if err != nil {
		return nil, err
	}
	var out []Kind
	for _, r := range list.APIResources {
		if !strings.Contains(r.Name, "/") && can(r, "list") && can(r, "watch") && can(r, "delete") {
			out = append(out, Kind{GroupVersionResource: gv.WithResource(r.Name), Kind: r.Kind, Namespaced: r.Namespaced})
		}
	}
	return out, nil
}

func can(r metav1.APIResource, verb string) bool { return slices.Contains(r.Verbs, verb) }
