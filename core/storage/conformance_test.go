package storage

import (
	"context"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	goruntime "runtime"

	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apimachinery/pkg/api/apitesting"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apiserver/pkg/apis/example"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/etcd3"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
	"k8s.io/apiserver/pkg/storage/value"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/featuregate"
	featuregatetesting "k8s.io/component-base/featuregate/testing"
)

// Upstream's conformance suite, all of it over one configuration: upstream's
// store, our client, recorders for its calls, and a flush for each batch.

const conformancePrefix = "conformance!"

// upstream is upstream's store with what its suite wants to look at or bend.
type upstream struct {
	storage.Interface
	s           *Store
	codec       runtime.Codec
	transformer *switchable
	prefix      *storagetesting.PrefixTransformer
	kv          *storagetesting.KVRecorder
	kubernetes  *storagetesting.KubernetesRecorder
}

// switchable lets a test replace the transformer of a running store.
type switchable struct {
	now atomic.Pointer[value.Transformer]
}

func (s *switchable) swap(t value.Transformer) (undo func()) {
	old := s.now.Swap(&t)
	return func() { s.now.Store(old) }
}

func (s *switchable) TransformFromStorage(ctx context.Context, data []byte, about value.Context) ([]byte, bool, error) {
	return (*s.now.Load()).TransformFromStorage(ctx, data, about)
}

func (s *switchable) TransformToStorage(ctx context.Context, data []byte, about value.Context) ([]byte, error) {
	return (*s.now.Load()).TransformToStorage(ctx, data, about)
}

func (u *upstream) UpdatePrefixTransformer(modify storagetesting.PrefixTransformerModifier) func() {
	bent := *u.prefix
	return u.transformer.swap(modify(&bent))
}

// unreadable fails as a damaged value does.
type unreadable struct{ value.Transformer }

func (unreadable) TransformFromStorage(context.Context, []byte, value.Context) ([]byte, bool, error) {
	return nil, true, errors.New("bits flipped")
}

func (u *upstream) CorruptTransformer() func() {
	return u.transformer.swap(etcd3.WithCorruptObjErrorHandlingTransformer(unreadable{u.prefix}))
}

func newUpstream(t testing.TB, opts Options) (context.Context, *upstream) {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
	utilruntime.Must(example.AddToScheme(scheme))
	utilruntime.Must(examplev1.AddToScheme(scheme))
	codec := apitesting.TestCodec(serializer.NewCodecFactory(scheme), examplev1.SchemeGroupVersion)

	s := open(t, opts)
	client := s.Etcd()
	u := &upstream{
		s: s, codec: codec,
		prefix:      storagetesting.NewPrefixTransformer([]byte(conformancePrefix), false),
		transformer: &switchable{},
		kv:          storagetesting.NewKVRecorder(client.KV),
		kubernetes:  storagetesting.NewKubernetesRecorder(client.Kubernetes),
	}
	u.transformer.swap(u.prefix)
	client.KV, client.Kubernetes = u.kv, u.kubernetes
	versioner := storage.APIObjectVersioner{}
	store, err := etcd3.New(client, s, codec,
		func() runtime.Object { return &example.Pod{} }, func() runtime.Object { return &example.PodList{} },
		"", "/pods/", schema.GroupResource{Resource: "pods"}, u.transformer,
		etcd3.LeaseManagerConfig{ReuseDurationSeconds: 1}, etcd3.NewDefaultDecoder(codec, versioner), versioner)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	u.Interface = store
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return ctx, u
}

// stored checks what lies under a key.
func (u *upstream) stored(ctx context.Context, t *testing.T, key string) {
	r, err := u.s.Etcd().KV.Get(ctx, key)
	if err != nil || len(r.Kvs) != 1 {
		t.Fatalf("get %s: %v, %v", key, r, err)
	}
	obj, err := runtime.Decode(u.codec, []byte(strings.TrimPrefix(string(r.Kvs[0].Value), conformancePrefix)))
	if err != nil {
		t.Fatal(err)
	}
	if pod := obj.(*example.Pod); pod.ResourceVersion != "" || pod.SelfLink != "" {
		t.Errorf("stored with resource version %q and self link %q", pod.ResourceVersion, pod.SelfLink)
	}
}

func (u *upstream) compact(ctx context.Context, t *testing.T, resourceVersion string) {
	rev, err := u.Versioner().ParseResourceVersion(resourceVersion)
	if err != nil {
		t.Fatal(err)
	}
	// Upstream's own compactor; the first call learns the time of the last.
	time, _, _, err := etcd3.Compact(ctx, u.s.Etcd().Client, 0, int64(rev))
	if err == nil && u.s.CompactRevision() != int64(rev) {
		_, _, _, err = etcd3.Compact(ctx, u.s.Etcd().Client, time, int64(rev))
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := u.s.CompactRevision(); got != int64(rev) {
		t.Fatalf("compacted to %d, not %d", got, rev)
	}
}

func (u *upstream) increase(ctx context.Context, t *testing.T) int64 {
	return put(t, u.s, "increase", "ok")
}

// calls checks that pages grow: for a page size p and n objects the reads are
// the fewest k with p + 2p + 4p + … ≥ n.
func (u *upstream) calls(t *testing.T, pageSize, objects uint64) {
	if reads := u.prefix.GetReadsAndReset(); reads != objects {
		t.Errorf("%d objects were read, not %d", reads, objects)
	}
	want := uint64(1)
	if pageSize > 0 {
		for page, sum := pageSize, uint64(1); sum < objects; want++ {
			page = min(2*page, 10000)
			sum += page
		}
	}
	if got := u.kv.GetReadsAndReset(); got != want {
		t.Fatalf("%d calls for pages of %d, not %d", got, pageSize, want)
	}
}

// keys of the resource, which upstream's estimator of sizes asks for.
func (u *upstream) keys(ctx context.Context) ([]string, error) {
	r, err := u.s.Etcd().KV.Get(ctx, "/pods/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, err
	}
	keys := make([]string, len(r.Kvs))
	for i, kv := range r.Kvs {
		keys[i] = string(kv.Key)
	}
	return keys, nil
}

type suite struct {
	name string
	run  func(ctx context.Context, t *testing.T, u *upstream)
	opts Options
	gate []featuregate.Feature
}

// plain adapts the tests that need the store alone.
func plain(run func(context.Context, *testing.T, storage.Interface)) func(context.Context, *testing.T, *upstream) {
	return func(ctx context.Context, t *testing.T, u *upstream) { run(ctx, t, u) }
}

var suites = []suite{
	{name: "Create", run: func(ctx context.Context, t *testing.T, u *upstream) {
		storagetesting.RunTestCreate(ctx, t, u, u.stored)
	}},
	{name: "CreateWithTTL", run: plain(storagetesting.RunTestCreateWithTTL)},
	{name: "CreateWithKeyExist", run: plain(storagetesting.RunTestCreateWithKeyExist)},
	{name: "Get", run: plain(storagetesting.RunTestGet)},
	{name: "UnconditionalDelete", run: plain(storagetesting.RunTestUnconditionalDelete)},
	{name: "ConditionalDelete", run: plain(storagetesting.RunTestConditionalDelete)},
	{name: "DeleteWithSuggestion", run: plain(storagetesting.RunTestDeleteWithSuggestion)},
	{name: "DeleteWithSuggestionAndConflict", run: plain(storagetesting.RunTestDeleteWithSuggestionAndConflict)},
	{name: "DeleteWithConflict", run: plain(storagetesting.RunTestDeleteWithConflict)},
	{name: "DeleteWithSuggestionOfDeletedObject", run: plain(storagetesting.RunTestDeleteWithSuggestionOfDeletedObject)},
	{name: "ValidateDeletionWithSuggestion", run: plain(storagetesting.RunTestValidateDeletionWithSuggestion)},
	{name: "ValidateDeletionWithOnlySuggestionValid", run: plain(storagetesting.RunTestValidateDeletionWithOnlySuggestionValid)},
	{name: "PreconditionalDeleteWithSuggestion", run: plain(storagetesting.RunTestPreconditionalDeleteWithSuggestion)},
	{name: "PreconditionalDeleteWithOnlySuggestionPass", run: plain(storagetesting.RunTestPreconditionalDeleteWithOnlySuggestionPass)},
	{name: "List", run: func(ctx context.Context, t *testing.T, u *upstream) {
		storagetesting.RunTestList(ctx, t, u, u.compact, false, u.kubernetes)
	}},
	{name: "ConsistentList", run: func(ctx context.Context, t *testing.T, u *upstream) {
		storagetesting.RunTestConsistentList(ctx, t, u, u.increase, false, true, false)
	}},
	{name: "GetListNonRecursive", run: func(ctx context.Context, t *testing.T, u *upstream) {
		storagetesting.RunTestGetListNonRecursive(ctx, t, u.increase, u)
	}},
	{name: "GetListRecursivePrefix", run: plain(storagetesting.RunTestGetListRecursivePrefix)},
	{name: "ListContinuation", run: func(ctx context.Context, t *testing.T, u *upstream) {
		storagetesting.RunTestListContinuation(ctx, t, u, u.calls)
	}},
	{name: "ListPaginationRareObject", run: func(ctx context.Context, t *testing.T, u *upstream) {
		storagetesting.RunTestListPaginationRareObject(ctx, t, u, u.calls)
	}},
	{name: "ListContinuationWithFilter", run: func(ctx context.Context, t *testing.T, u *upstream) {
		storagetesting.RunTestListContinuationWithFilter(ctx, t, u, u.calls)
	}},
	{name: "ListInconsistentContinuation", run: func(ctx context.Context, t *testing.T, u *upstream) {
		storagetesting.RunTestListInconsistentContinuation(ctx, t, u, u.compact)
	}},
	{name: "ListResourceVersionMatch", run: func(ctx context.Context, t *testing.T, u *upstream) {
		storagetesting.RunTestListResourceVersionMatch(ctx, t, u)
	}},
	{name: "GuaranteedUpdate", run: func(ctx context.Context, t *testing.T, u *upstream) {
		storagetesting.RunTestGuaranteedUpdate(ctx, t, u, u.stored)
	}},
	{name: "GuaranteedUpdateWithTTL", run: plain(storagetesting.RunTestGuaranteedUpdateWithTTL)},
	{name: "GuaranteedUpdateChecksStoredData", run: func(ctx context.Context, t *testing.T, u *upstream) {
		storagetesting.RunTestGuaranteedUpdateChecksStoredData(ctx, t, u)
	}},
	{name: "GuaranteedUpdateWithConflict", run: plain(storagetesting.RunTestGuaranteedUpdateWithConflict)},
	{name: "GuaranteedUpdateWithSuggestionAndConflict", run: plain(storagetesting.RunTestGuaranteedUpdateWithSuggestionAndConflict)},
	{name: "TransformationFailure", run: func(ctx context.Context, t *testing.T, u *upstream) {
		storagetesting.RunTestTransformationFailure(ctx, t, u)
	}},
	{name: "Stats", run: func(ctx context.Context, t *testing.T, u *upstream) {
		storagetesting.RunTestStats(ctx, t, u, u.codec, u.transformer, false)
	}},
	{name: "StatsWithSizes", run: func(ctx context.Context, t *testing.T, u *upstream) {
		if err := u.EnableResourceSizeEstimation(u.keys); err != nil {
			t.Fatal(err)
		}
		storagetesting.RunTestStats(ctx, t, u, u.codec, u.transformer, true)
	}},
	{name: "ListPaging", run: plain(storagetesting.RunTestListPaging)},
	{name: "NamespaceScopedList", run: plain(storagetesting.RunTestNamespaceScopedList)},
	{name: "CompactRevision", run: func(ctx context.Context, t *testing.T, u *upstream) {
		storagetesting.RunTestCompactRevision(ctx, t, u, u.increase, u.compact)
	}},
	{name: "KeySchema", run: plain(storagetesting.RunTestKeySchema)},
	{name: "Watch", run: plain(storagetesting.RunTestWatch)},
	{name: "WatchFromZero", run: func(ctx context.Context, t *testing.T, u *upstream) {
		storagetesting.RunTestWatchFromZero(ctx, t, u, u.compact)
	}},
	{name: "DeleteTriggerWatch", run: plain(storagetesting.RunTestDeleteTriggerWatch)},
	{name: "WatchFromNonZero", run: plain(storagetesting.RunTestWatchFromNonZero)},
	{name: "DelayedWatchDelivery", run: plain(storagetesting.RunTestDelayedWatchDelivery)},
	{name: "WatchError", run: func(ctx context.Context, t *testing.T, u *upstream) {
		storagetesting.RunTestWatchError(ctx, t, u)
	}},
	{name: "WatchWithUnsafeDelete", gate: []featuregate.Feature{features.AllowUnsafeMalformedObjectDeletion},
		run: func(ctx context.Context, t *testing.T, u *upstream) {
			storagetesting.RunTestWatchWithUnsafeDelete(ctx, t, u)
		}},
	{name: "WatchContextCancel", run: plain(storagetesting.RunTestWatchContextCancel)},
	{name: "WatcherTimeout", run: plain(storagetesting.RunTestWatcherTimeout)},
	{name: "WatchDeleteEventObjectHaveLatestRV", run: plain(storagetesting.RunTestWatchDeleteEventObjectHaveLatestRV)},
	{name: "WatchInitializationSignal", run: plain(storagetesting.RunTestWatchInitializationSignal)},
	{name: "ProgressNotify", opts: Options{ProgressInterval: time.Second}, run: func(ctx context.Context, t *testing.T, u *upstream) {
		storagetesting.RunOptionalTestProgressNotify(ctx, t, u, u.increase)
	}},
	{name: "ClusterScopedWatch", run: plain(storagetesting.RunTestClusterScopedWatch)},
	{name: "NamespaceScopedWatch", run: plain(storagetesting.RunTestNamespaceScopedWatch)},
	{name: "WatchDispatchBookmarkEvents", opts: Options{ProgressInterval: time.Second}, run: func(ctx context.Context, t *testing.T, u *upstream) {
		storagetesting.RunTestWatchDispatchBookmarkEvents(ctx, t, u, false)
	}},
	{name: "SendInitialEventsBackwardCompatibility", run: plain(storagetesting.RunSendInitialEventsBackwardCompatibility)},
	{name: "WatchSemantics", run: plain(storagetesting.RunWatchSemantics)},
	{name: "WatchSemanticsWithConcurrentDecode", gate: []featuregate.Feature{features.ConcurrentWatchObjectDecode},
		run: plain(storagetesting.RunWatchSemantics)},
	{name: "WatchSemanticInitialEventsExtended", run: plain(storagetesting.RunWatchSemanticInitialEventsExtended)},
	{name: "WatchListMatchSingle", run: plain(storagetesting.RunWatchListMatchSingle)},
	{name: "WatchErrorIsBlockingFurtherEvents", run: func(ctx context.Context, t *testing.T, u *upstream) {
		storagetesting.RunWatchErrorIsBlockingFurtherEvents(ctx, t, u)
	}},
}

func TestConformance(t *testing.T) {
	for _, test := range suites {
		t.Run(test.name, func(t *testing.T) {
			for _, gate := range test.gate {
				featuregatetesting.SetFeatureGateDuringTest(t, utilfeature.DefaultFeatureGate, gate, true)
			}
			test.opts.Dir = t.TempDir()
			ctx, u := newUpstream(t, test.opts)
			test.run(ctx, t, u)
		})
	}
}

// Whatever upstream adds to its suite must be wired in here.
func TestConformanceIsComplete(t *testing.T) {
	here, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{} // what these tests name of the suite's package
	for _, file := range here {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if of, ok := s.X.(*ast.Ident); ok && of.Name == "storagetesting" {
					used[s.Sel.Name] = true
				}
			}
			return true
		})
	}
	source, _ := goruntime.FuncForPC(reflect.ValueOf(storagetesting.RunTestCreate).Pointer()).FileLine(0)
	files, err := filepath.Glob(filepath.Join(filepath.Dir(source), "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("upstream's suite is not at %s: %v", source, err)
	}
	found := 0
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Recv != nil || !strings.HasPrefix(f.Name.Name, "Run") {
				continue
			}
			if found++; !used[f.Name.Name] {
				t.Errorf("%s is not run", f.Name.Name)
			}
		}
	}
	if found < 58 {
		t.Errorf("only %d tests were found", found)
	}
}
