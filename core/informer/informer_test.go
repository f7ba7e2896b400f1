package informer_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/cache"

	"github.com/quaymaster/quaymaster/core/informer"
	"github.com/quaymaster/quaymaster/core/storage"
)

var configMaps = informer.Resource{
	GroupVersionResource: corev1.SchemeGroupVersion.WithResource("configmaps"),
	Kind:                 "ConfigMap", Namespaced: true, Prefix: "/registry/configmaps/",
}

// store is a store in memory with ConfigMaps as upstream stores them.
type store struct {
	*storage.Store
	t testing.TB
}

func (s store) put(name, text string, expect int64) int64 {
	s.t.Helper()
	var value strings.Builder
	object := &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Data:       map[string]string{"text": text},
	}
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(object, &value); err != nil {
		s.t.Fatal(err)
	}
	return s.write(storage.Write{Key: configMaps.Prefix + "default/" + name, Value: []byte(value.String()), Expect: expect})
}

func (s store) write(w storage.Write) int64 {
	s.t.Helper()
	result := s.Commit(context.Background(), []storage.Write{w})[0]
	if result.Err != nil {
		s.t.Fatal(result.Err)
	}
	return result.Revision
}

// change is what a handler is told.
type change struct{ kind, name, text, version string }

func describe(kind string, object any) change {
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	m := object.(*corev1.ConfigMap)
	return change{kind, m.Name, m.Data["text"], m.ResourceVersion}
}

func TestInformersShowWhatIsCommitted(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent(), goleak.IgnoreAnyFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
	opened, err := storage.Open(storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	s := store{opened, t}
	before := s.put("before", "one", 0)

	factory, err := informer.New(s.Etcd(), fake.NewClientset(), []informer.Resource{configMaps})
	if err != nil {
		t.Fatal(err)
	}
	shared := factory.Core().V1().ConfigMaps().Informer()
	if again := factory.InformerFor(&corev1.ConfigMap{}, nil); again != shared {
		t.Error("two informers of one kind")
	}
	changes := make(chan change, 16)
	if _, err := shared.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { changes <- describe("add", o) },
		UpdateFunc: func(_, o any) { changes <- describe("update", o) },
		DeleteFunc: func(o any) { changes <- describe("delete", o) },
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer factory.Shutdown()
	defer cancel()
	factory.StartWithContext(ctx)

	expect := func(want change) {
		t.Helper()
		select {
		case got := <-changes:
			if got != want {
				t.Errorf("told of %+v, want %+v", got, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("not told of %+v", want)
		}
	}
	expect(change{"add", "before", "one", fmt.Sprint(before)})
	after := s.put("after", "two", 0)
	expect(change{"add", "after", "two", fmt.Sprint(after)})
	changed := s.put("before", "three", before)
	expect(change{"update", "before", "three", fmt.Sprint(changed)})
	gone := s.write(storage.Write{Key: configMaps.Prefix + "default/before", Expect: changed})
	expect(change{"delete", "before", "three", fmt.Sprint(gone)})
	listed, err := factory.Core().V1().ConfigMaps().Lister().ConfigMaps("default").Get("after")
	if err != nil || listed.Data["text"] != "two" {
		t.Errorf("lister: %v, %v", listed, err)
	}
}

// Get reads the past and the present, and tells what is not there from what
// cannot be known.
func TestGet(t *testing.T) {
	opened, err := storage.Open(storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	s := store{opened, t}
	first := s.put("m", "one", 0)
	second := s.put("m", "two", first)
	deleted := s.write(storage.Write{Key: configMaps.Prefix + "default/m", Expect: second})
	factory, err := informer.New(s.Etcd(), fake.NewClientset(), []informer.Resource{configMaps})
	if err != nil {
		t.Fatal(err)
	}
	resource := configMaps.GroupResource()
	for revision, want := range map[int64]string{first: "one", second: "two"} {
		object, err := factory.Get(t.Context(), revision, resource, "default", "m")
		if err != nil {
			t.Fatal(err)
		}
		m := object.(*corev1.ConfigMap)
		if m.Data["text"] != want || m.Kind != "ConfigMap" || m.APIVersion != "v1" || m.ResourceVersion != fmt.Sprint(revision) {
			t.Errorf("at %d: %+v, want %q", revision, m, want)
		}
	}
	for _, tt := range []struct {
		revision        int64
		namespace, name string
	}{{deleted, "default", "m"}, {0, "default", "m"}, {first, "default", "n"}, {first, "", "m"}, {first, "default", ""}} {
		if _, err := factory.Get(t.Context(), tt.revision, resource, tt.namespace, tt.name); !apierrors.IsNotFound(err) {
			t.Errorf("%+v: error %v, want not found", tt, err)
		}
	}
	if _, err := factory.Get(t.Context(), 0, schema.GroupResource{Resource: "pods"}, "default", "m"); err == nil || apierrors.IsNotFound(err) {
		t.Errorf("a resource that is not stored: %v", err)
	}
	if _, err := factory.Get(t.Context(), deleted+100, resource, "default", "m"); err == nil || apierrors.IsNotFound(err) {
		t.Errorf("a revision to come: %v", err)
	}
}

func TestUnknownKindIsAnError(t *testing.T) {
	opened, err := storage.Open(storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	_, err = informer.New(opened.Etcd(), fake.NewClientset(), []informer.Resource{{
		GroupVersionResource: schema.GroupVersionResource{Group: "nobody", Version: "v1", Resource: "things"}, Kind: "Thing"}})
	if !runtime.IsNotRegisteredError(err) && (err == nil || !strings.Contains(err.Error(), "nobody/v1")) {
		t.Errorf("informers of an unknown kind: %v", err)
	}
}

// Many objects are read page by page at one revision, whatever happens meanwhile.
func TestListsOfManyPages(t *testing.T) {
	opened, err := storage.Open(storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	s := store{opened, t}
	const count = 10_000
	for i := range count {
		s.put(fmt.Sprintf("m-%05d", i), fmt.Sprint("text ", i), 0)
	}
	factory, err := informer.New(s.Etcd(), fake.NewClientset(), []informer.Resource{configMaps})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer factory.Shutdown()
	defer cancel()
	lister := factory.Core().V1().ConfigMaps().Lister()
	changed := make(chan struct{})
	go func() {
		defer close(changed)
		for i := range 100 {
			s.put(fmt.Sprintf("n-%05d", i), "new", 0)
		}
	}()
	factory.StartWithContext(ctx)
	if result := factory.WaitForCacheSyncWithContext(ctx); result.Err != nil {
		t.Fatal(result.Err)
	}
	<-changed
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		all, err := lister.List(labels.Everything())
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == count+100 {
			break
		}
		if len(all) < count || time.Now().After(deadline) {
			t.Fatalf("%d of %d", len(all), count+100)
		}
	}
	for i := range count {
		if m, err := lister.ConfigMaps("default").Get(fmt.Sprintf("m-%05d", i)); err != nil || m.Data["text"] != fmt.Sprint("text ", i) {
			t.Fatalf("%v, %v", m, err)
		}
	}
}

// A resource that is to be listed later is listed then.
func TestLater(t *testing.T) {
	opened, err := storage.Open(storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	s := store{opened, t}
	s.put("m", "one", 0)
	factory, err := informer.New(s.Etcd(), fake.NewClientset(), []informer.Resource{configMaps})
	if err != nil {
		t.Fatal(err)
	}
	when := make(chan struct{})
	factory.Later(configMaps.GroupResource(), when)
	ctx, cancel := context.WithCancel(t.Context())
	defer factory.Shutdown()
	defer cancel()
	shared := factory.Core().V1().ConfigMaps().Informer()
	factory.StartWithContext(ctx)
	s.put("n", "two", 0)
	if shared.HasSynced() || len(shared.GetStore().ListKeys()) > 0 {
		t.Error("listed before its time")
	}
	close(when)
	if err := informer.WaitTold(ctx, factory.Made()...); err != nil {
		t.Fatal(err)
	}
	if n := len(shared.GetStore().ListKeys()); n != 2 {
		t.Errorf("%d objects, not 2", n)
	}
}

// BenchmarkList is what an informer reads at its start.
func BenchmarkList(b *testing.B) {
	opened, err := storage.Open(storage.Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer opened.Close()
	s := store{opened, b}
	for i := range 20_000 {
		s.put(fmt.Sprintf("m-%05d", i), fmt.Sprint("text ", i), 0)
	}
	b.ReportAllocs()
	for b.Loop() {
		factory, err := informer.New(s.Etcd(), fake.NewClientset(), []informer.Resource{configMaps})
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(b.Context())
		factory.Core().V1().ConfigMaps().Informer()
		factory.StartWithContext(ctx)
		if result := factory.WaitForCacheSyncWithContext(ctx); result.Err != nil {
			b.Fatal(result.Err)
		}
		cancel()
		factory.Shutdown()
	}
}

// TestLeaveOut: nothing runs for a resource that is left out, whatever is stored, and
// those who ask for it are not kept waiting.
func TestLeaveOut(t *testing.T) {
	opened, err := storage.Open(storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	store{opened, t}.put("there", "one", 0)
	factory, err := informer.New(opened.Etcd(), fake.NewClientset(), []informer.Resource{configMaps})
	if err != nil {
		t.Fatal(err)
	}
	factory.LeaveOut(configMaps.GroupResource())
	empty := factory.Core().V1().ConfigMaps().Informer()
	told := func(object any) { t.Errorf("told of %v", object) }
	current := goleak.IgnoreCurrent()
	before, err := empty.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: told})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer factory.Shutdown()
	defer cancel()
	factory.StartWithContext(ctx)
	after, err := empty.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: told})
	if err != nil {
		t.Fatal(err)
	}
	for resource, synced := range factory.WaitForCacheSync(ctx.Done()) {
		if !synced {
			t.Errorf("%v is not synced", resource)
		}
	}
	if !empty.HasSynced() || !before.HasSynced() || !after.HasSynced() || !informer.LeftOut(empty) {
		t.Error("somebody waits for what is left out")
	}
	if err := empty.RemoveEventHandler(before); err != nil {
		t.Error(err)
	}
	if got := empty.GetStore().ListKeys(); len(got) > 0 || len(factory.Made()) > 0 {
		t.Errorf("%v in the cache, %d informers run", got, len(factory.Made()))
	}
	goleak.VerifyNone(t, current)
}
