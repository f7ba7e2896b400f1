package kinds

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	metadatafake "k8s.io/client-go/metadata/fake"
	"k8s.io/client-go/tools/cache"
	fcache "k8s.io/client-go/tools/cache/testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

// remoteServers answer what they serve, by group and version.
type remoteServers struct {
	discovery.ServerResourcesInterface
	mu     sync.Mutex
	served map[string][]metav1.APIResource
}

var errSilent = errors.New("no answer")

func (r *remoteServers) ServerResourcesForGroupVersion(gv string) (*metav1.APIResourceList, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all, ok := r.served[gv]
	if !ok {
		return nil, errSilent
	}
	return &metav1.APIResourceList{GroupVersion: gv, APIResources: all}, nil
}

func (r *remoteServers) serve(gv string, all ...metav1.APIResource) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.served[gv] = all
}

func (r *remoteServers) silence(gv string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.served, gv)
}

func serviceOf(group, version string, priority int32, up bool) *apiregistrationv1.APIService {
	status := apiregistrationv1.ConditionFalse
	if up {
		status = apiregistrationv1.ConditionTrue
	}
	return &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: version + "." + group, Generation: 1},
		Spec:       apiregistrationv1.APIServiceSpec{Group: group, Version: version, VersionPriority: priority, Service: &apiregistrationv1.ServiceReference{Name: "s", Namespace: "default"}},
		Status:     apiregistrationv1.APIServiceStatus{Conditions: []apiregistrationv1.APIServiceCondition{{Type: apiregistrationv1.Available, Status: status}}},
	}
}

// TestElsewhere walks through what becomes of servers under this one.
func TestElsewhere(t *testing.T) {
	everything := metav1.Verbs{"list", "watch", "delete"}
	flunders := metav1.APIResource{Name: "flunders", Kind: "Flunder", Namespaced: true, Verbs: everything}
	fischers := metav1.APIResource{Name: "fischers", Kind: "Fischer", Verbs: everything}
	servers := &remoteServers{served: map[string][]metav1.APIResource{}}
	servers.serve("wardle.example.com/v1", flunders,
		metav1.APIResource{Name: "flunders/status", Kind: "Flunder", Verbs: everything}, // subresources, and what cannot be deleted, are nobody's to collect
		metav1.APIResource{Name: "reviews", Kind: "Review", Verbs: metav1.Verbs{"create"}})
	servers.serve("wardle.example.com/v2", flunders, fischers)

	source := fcache.NewFakeControllerSource()
	services := cache.NewSharedIndexInformer(source, &apiregistrationv1.APIService{}, 0, nil)
	definitions := cache.NewSharedIndexInformer(fcache.NewFakeControllerSource(), &apiextensionsv1.CustomResourceDefinition{}, 0, nil)
	scheme := runtime.NewScheme()
	metav1.AddMetaToScheme(scheme)
	d := NewDynamic(nil, definitions, metadatafake.NewSimpleMetadataClient(scheme))
	d.Elsewhere(services, servers)

	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	all.Go(func() { services.RunWithContext(ctx) })
	all.Go(func() { definitions.RunWithContext(ctx) })
	all.Go(func() {
		if err := d.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	expect := func(what string, incomplete bool, want ...string) {
		t.Helper()
		var got []string
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			got = nil
			for _, k := range d.Kinds() {
				got = append(got, fmt.Sprintf("%s/%s %s", k.Group, k.Version, k.Resource))
				if k.Informer == nil {
					t.Fatalf("%s: %s has no informer", what, k.Resource)
				}
			}
			slices.Sort(got)
			if slices.Equal(got, want) && (d.Incomplete() != nil) == incomplete {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %v, %v; want %v, incomplete %t", what, got, d.Incomplete(), want, incomplete)
			}
		}
	}
	const v1, v2 = "wardle.example.com/v1 ", "wardle.example.com/v2 "
	source.Add(&apiregistrationv1.APIService{ObjectMeta: metav1.ObjectMeta{Name: "v1.apps"}, Spec: apiregistrationv1.APIServiceSpec{Group: "apps", Version: "v1"}})
	expect("a group that is served here", false)
	source.Add(serviceOf("wardle.example.com", "v1", 1, true))
	expect("one version", false, v1+"flunders")
	changed := d.Changed()
	source.Add(serviceOf("wardle.example.com", "v2", 9, false))
	expect("a version that is not available", true, v1+"flunders")
	var failed *discovery.ErrGroupDiscoveryFailed
	if !errors.As(d.Incomplete(), &failed) || len(failed.Groups) != 1 {
		t.Errorf("incomplete: %v", d.Incomplete())
	}
	source.Modify(serviceOf("wardle.example.com", "v2", 9, true))
	expect("the version that is preferred", false, v2+"fischers", v2+"flunders")
	select {
	case <-changed:
	case <-time.After(time.Minute):
		t.Error("nobody is told")
	}
	// A server that does not answer keeps its kinds: their objects are not gone.
	servers.silence("wardle.example.com/v2")
	silent := serviceOf("wardle.example.com", "v2", 9, true)
	silent.Generation = 2
	source.Modify(silent)
	expect("a server that does not answer", true, v2+"fischers", v2+"flunders")
	servers.serve("wardle.example.com/v2", flunders)
	expect("it answers again, unasked, and serves less", false, v2+"flunders")
	source.Delete(silent)
	expect("a version that is gone", false, v1+"flunders")
}
