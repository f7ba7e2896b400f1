package storage

import (
	"context"
	"testing"

	"k8s.io/apimachinery/pkg/api/apitesting"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apiserver/pkg/apis/example"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
)

// TestDecorator runs a part of upstream's suite over what the API layer gets,
// and the test that only a watch cache passes over that.
func TestDecorator(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	for name, cached := range map[string]func(schema.GroupResource) bool{
		"bare":      nil,
		"not asked": func(r schema.GroupResource) bool { return r != pods },
		"cached":    func(r schema.GroupResource) bool { return r == pods },
	} {
		t.Run(name, func(t *testing.T) {
			scheme := runtime.NewScheme()
			metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
			utilruntime.Must(example.AddToScheme(scheme))
			utilruntime.Must(examplev1.AddToScheme(scheme))
			codec := apitesting.TestCodec(serializer.NewCodecFactory(scheme), examplev1.SchemeGroupVersion)
			s := open(t, Options{})
			config := storagebackend.NewDefaultConfig("/registry", codec)
			key := func(obj runtime.Object) (string, error) {
				pod := obj.(*example.Pod)
				return "/pods/" + pod.Namespace + "/" + pod.Name, nil
			}
			store, destroy, err := s.StorageDecorator(cached)(config.ForResource(pods), "/pods/", key,
				func() runtime.Object { return &example.Pod{} }, func() runtime.Object { return &example.PodList{} },
				storage.DefaultNamespaceScopedAttr, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				defer destroy()
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			delegator, isCached := store.(*cacher.CacheDelegator)
			if isCached != (name == "cached") {
				t.Fatalf("the store is a %T", store)
			}
			if isCached {
				if err := delegator.ReadinessCheck(); err != nil {
					pass(t, func() {}, func() bool { return delegator.ReadinessCheck() == nil })
				}
				storagetesting.RunTestOptionalWatchBookmarksWithCorrectResourceVersion(ctx, t, store)
			}
			storagetesting.RunTestCreate(ctx, t, store, func(context.Context, *testing.T, string) {})
			storagetesting.RunTestUnconditionalDelete(ctx, t, store)
			storagetesting.RunTestDeleteWithSuggestion(ctx, t, store)
			storagetesting.RunTestGuaranteedUpdateWithTTL(ctx, t, store)
			r, err := s.Etcd().KV.Get(ctx, "/registry/pods/test-ns/foo")
			if err != nil || r.Header.Revision < 2 {
				t.Fatal(r, err)
			}
		})
	}
}
