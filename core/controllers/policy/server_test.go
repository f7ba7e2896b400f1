package policy

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/quaymaster/quaymaster/core/api"
	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
)

// server keeps policies and profiles as the API server does, as far as the
// client and the informers here can tell.
type server struct {
	mu       sync.Mutex
	revision int
	objects  map[string]object // resource/name
	watchers *watch.Broadcaster
	writes   int

	informers sync.WaitGroup
}

func newServer(t *testing.T) (*server, *api.Client) {
	s := &server{objects: map[string]object{}, watchers: watch.NewBroadcaster(1000, watch.WaitIfChannelFull)}
	t.Cleanup(s.watchers.Shutdown)
	client, err := api.NewClient(&rest.Config{Host: "http://server", QPS: -1, Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		return w.Result(), nil
	})})
	if err != nil {
		t.Fatal(err)
	}
	return s, client
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/") // apis, group, version, resource, name, subresource
	parts = append(parts, "", "")
	out, err := s.serve(r, parts[3], parts[4], parts[5])
	if err != nil {
		status := err.(apierrors.APIStatus).Status()
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(int(status.Code))
		_ = json.NewEncoder(w).Encode(status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out)
}

func (s *server) serve(r *http.Request, resource, name, subresource string) (any, error) {
	gr := schema.GroupResource{Resource: resource}
	newObject := func() object {
		if resource == policyv1alpha1.Resource {
			return &policyv1alpha1.Policy{}
		}
		return &schedulingv1alpha1.SchedulerProfile{}
	}
	if r.Method == http.MethodGet && name == "" {
		selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
		if err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		items := []object{}
		for key, o := range s.objects {
			if strings.HasPrefix(key, resource+"/") && selector.Matches(labels.Set(o.GetLabels())) {
				items = append(items, o)
			}
		}
		return map[string]any{"metadata": metav1.ListMeta{ResourceVersion: fmt.Sprint(s.revision)}, "items": items}, nil
	}
	body := newObject()
	if r.Method == http.MethodPost || r.Method == http.MethodPut {
		if err := json.NewDecoder(r.Body).Decode(body); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		name = body.GetName()
	}
	old := s.objects[resource+"/"+name]
	if old == nil && r.Method != http.MethodPost {
		return nil, apierrors.NewNotFound(gr, name)
	}
	switch r.Method {
	case http.MethodGet:
		return old, nil
	case http.MethodDelete:
		delete(s.objects, resource+"/"+name)
		s.writes++
		s.publish(watch.Deleted, old)
		return metav1.Status{Status: metav1.StatusSuccess}, nil
	case http.MethodPost:
		if old != nil {
			return nil, apierrors.NewAlreadyExists(gr, name)
		}
		body.SetUID(types.UID(fmt.Sprint("uid-", s.revision)))
		body.SetGeneration(1)
		return body, s.store(resource, watch.Added, body)
	default:
		if body.GetResourceVersion() != old.GetResourceVersion() {
			return nil, apierrors.NewConflict(gr, name, fmt.Errorf("it has been modified"))
		}
		if p, ok := body.(*policyv1alpha1.Policy); ok {
			was := old.(*policyv1alpha1.Policy)
			if subresource == "status" {
				status := p.Status
				was.DeepCopyInto(p)
				p.Status = status
			} else {
				p.Status = was.Status
				if !reflect.DeepEqual(p.Spec, was.Spec) {
					p.Generation++
				}
			}
		}
		return body, s.store(resource, watch.Modified, body)
	}
}

func (s *server) store(resource string, kind watch.EventType, o object) error {
	s.revision++
	s.writes++
	o.SetResourceVersion(fmt.Sprint(s.revision))
	s.objects[resource+"/"+o.GetName()] = o
	s.publish(kind, o)
	return nil
}

func (s *server) publish(kind watch.EventType, o object) {
	if _, ok := o.(*policyv1alpha1.Policy); ok {
		_ = s.watchers.Action(kind, o.DeepCopyObject())
	}
}

// informer of policies; it runs until the context ends.
func (s *server) informer(ctx context.Context) cache.SharedIndexInformer {
	informer := cache.NewSharedIndexInformer(&cache.ListWatch{
		ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			list := &policyv1alpha1.PolicyList{ListMeta: metav1.ListMeta{ResourceVersion: fmt.Sprint(s.revision)}}
			for _, o := range s.objects {
				if p, ok := o.(*policyv1alpha1.Policy); ok {
					list.Items = append(list.Items, *p.DeepCopy())
				}
			}
			return list, nil
		},
		WatchFuncWithContext: func(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if o.SendInitialEvents != nil {
				return nil, apierrors.NewInvalid(schema.GroupKind{Kind: "ListOptions"}, "", nil) // list, then watch
			}
			if o.ResourceVersion != fmt.Sprint(s.revision) {
				return nil, apierrors.NewResourceExpired("list again")
			}
			return s.watchers.Watch()
		},
	}, &policyv1alpha1.Policy{}, 0, cache.Indexers{})
	s.informers.Go(func() { informer.RunWithContext(ctx) })
	return informer
}

// policy returns a copy of a policy, nil when there is none.
func (s *server) policy(name string) *policyv1alpha1.Policy {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.objects[policyv1alpha1.Resource+"/"+name].(*policyv1alpha1.Policy)
	if !ok {
		return nil
	}
	return p.DeepCopy()
}
