package garbage

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/core/controllers/kinds"
	"github.com/quaymaster/quaymaster/core/controllers/loop"
	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

// source can be told of another kind.
type source struct {
	mu      sync.Mutex
	served  []kinds.Kind
	changed chan struct{}
}

func (s *source) Kinds() []kinds.Kind {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.served
}

func (s *source) Incomplete() error { return nil }

func (s *source) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *source) add(k kinds.Kind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.served = append(s.served[:len(s.served):len(s.served)], k)
	close(s.changed)
	s.changed = make(chan struct{})
}

// TestLaterKind has an object whose owner is of a kind that is served only
// later: it is left alone until then.
func TestLaterKind(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	object := func(name string, owner string) *corev1.ConfigMap {
		return &corev1.ConfigMap{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: "later", ResourceVersion: "1",
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: owner, Name: "gone", UID: "gone"}}},
		}
	}
	later, first := object("later", "Secret"), object("first", "ConfigMap")
	first.UID = "first"
	client := fake.NewSimpleClientset(later, first)
	partial := func(o *corev1.ConfigMap) runtime.Object {
		return &metav1.PartialObjectMetadata{TypeMeta: o.TypeMeta, ObjectMeta: o.ObjectMeta}
	}
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	metadata := metadatafake.NewSimpleMetadataClient(scheme, partial(later), partial(first))
	factory := informers.NewSharedInformerFactory(client, 0)
	kind := func(resource, name string) kinds.Kind {
		gvr := corev1.SchemeGroupVersion.WithResource(resource)
		generic, err := factory.ForResource(gvr)
		if err != nil {
			t.Fatal(err)
		}
		return kinds.Kind{GroupVersionResource: gvr, Kind: name, Namespaced: true, Informer: generic.Informer()}
	}
	s := &source{served: []kinds.Kind{kind("configmaps", "ConfigMap")}, changed: make(chan struct{})}
	env := loop.Env{
		Client: client, Informers: factory, Clock: clock.RealClock{}, Logger: slog.New(slog.DiscardHandler),
		Recorder: func(string) record.EventRecorder { return record.NewFakeRecorder(10) },
	}
	c, err := New(env, s, metadata, pods.Through(client))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer func() {
		cancel()
		running.Wait()
		factory.Shutdown()
	}()
	factory.Start(ctx.Done())
	stranded := func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.stranded) == 1
	}
	deleted := func(name string) func() bool {
		return func() bool {
			for _, a := range metadata.Actions() {
				if d, ok := a.(interface{ GetName() string }); ok && a.GetVerb() == "delete" && d.GetName() == name {
					return true
				}
			}
			return false
		}
	}
	until := func(what string, is func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: not after 10 s", what)
			}
		}
	}
	until("the object with a served kind of owner is deleted", deleted("first"))
	until("the other waits", stranded)
	if deleted("later")() {
		t.Fatal("deleted for an owner of a kind that is not served")
	}
	secrets := kind("secrets", "Secret")
	factory.Start(ctx.Done())
	s.add(secrets)
	until("it is deleted when its owner's kind is served", deleted("later"))
}
