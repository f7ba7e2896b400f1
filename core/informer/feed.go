package informer

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	goruntime "runtime"
	"slices"
	"strconv"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage/value"

	"github.com/quaymaster/quaymaster/core/api"
)

// feed lists and watches one resource in the store.
type feed struct {
	etcd     *kubernetes.Client
	resource Resource
	example  reflect.Type // the struct behind the pointer
	decoder  runtime.Decoder
	// transformer decrypts values; nil if they are stored as they are.
	transformer value.Transformer
	when        <-chan struct{} // it is listed; nil: at once
	// sharers that nobody uses; as many as decode at once were made.
	sharers sync.Pool
}

func newFeed(etcd *kubernetes.Client, r Resource, example runtime.Object) *feed {
	return &feed{etcd: etcd, resource: r, example: reflect.TypeOf(example).Elem(), decoder: api.Codecs.UniversalDeserializer()}
}

// IsWatchListSemanticsUnSupported makes reflectors list first and watch then.
func (f *feed) IsWatchListSemanticsUnSupported() bool { return true }

// List and Watch serve callers without a context; reflectors have one.
func (f *feed) List(options metav1.ListOptions) (runtime.Object, error) {
	return f.ListWithContext(context.Background(), options)
}

func (f *feed) Watch(options metav1.ListOptions) (watch.Interface, error) {
	return f.WatchWithContext(context.Background(), options)
}

// pageSize is how many values are read at once: those of a page are garbage
// before all are read, and one page is decoded while the next one is read.
const pageSize = 4096

// ListWithContext returns every object at the newest revision.
func (f *feed) ListWithContext(ctx context.Context, _ metav1.ListOptions) (runtime.Object, error) {
	if f.when != nil {
		select {
		case <-f.when:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	list := &metav1.List{}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(goruntime.GOMAXPROCS(0))
	err := f.pages(ctx, func(page *clientv3.GetResponse) {
		if list.Items == nil {
			list.ResourceVersion = strconv.FormatInt(page.Header.Revision, 10)
			list.Items = make([]runtime.RawExtension, 0, page.Count)
		}
		from := len(list.Items)
		list.Items = slices.Grow(list.Items, len(page.Kvs))[:from+len(page.Kvs)]
		items := list.Items[from:]
		group.Go(func() error {
			sharer := f.sharer()
			defer f.sharers.Put(sharer)
			for i, kv := range page.Kvs {
				object, err := f.shared(ctx, sharer, kv.Key, kv.Value, kv.ModRevision)
				if err != nil {
					return err
				}
				items[i].Object = object
			}
			return nil
		})
	})
	// What could not be decoded ends the reading as well: it is told first.
	if decoding := group.Wait(); decoding != nil {
		return nil, decoding
	}
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", f.resource.Resource, err)
	}
	return list, nil
}

// pages calls do with everything that is stored at one revision, page by page.
func (f *feed) pages(ctx context.Context, do func(*clientv3.GetResponse)) error {
	key, revision := f.resource.Prefix, int64(0)
	end := clientv3.WithRange(clientv3.GetPrefixRangeEnd(f.resource.Prefix))
	for {
		page, err := f.etcd.KV.Get(ctx, key, end, clientv3.WithLimit(pageSize), clientv3.WithRev(revision))
		if err != nil {
			return err
		}
		do(page)
		if !page.More || len(page.Kvs) == 0 {
			return nil
		}
		if revision == 0 {
			revision = page.Header.Revision
		}
		key = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
	}
}

// WatchWithContext streams what is committed after options.ResourceVersion. A
// revision that has been compacted ends the stream with upstream's Expired.
func (f *feed) WatchWithContext(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	after, err := strconv.ParseInt(options.ResourceVersion, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("watch %s: resource version %q: %w", f.resource.Resource, options.ResourceVersion, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &stream{feed: f, cancel: cancel, results: make(chan watch.Event, 256)}
	events := f.etcd.Watch(ctx, f.resource.Prefix, clientv3.WithPrefix(), clientv3.WithRev(after+1), clientv3.WithPrevKV())
	go w.run(ctx, events)
	return w, nil
}

// decode makes the object of a stored value. Its resource version is the
// revision that is given.
func (f *feed) decode(ctx context.Context, key, data []byte, revision int64) (runtime.Object, error) {
	data, err := f.plain(ctx, key, data)
	if err != nil {
		return nil, err
	}
	object, err := f.object(key, data)
	if err != nil {
		return nil, err
	}
	return object, at(object, key, revision)
}

// shared decodes objects that nobody will change. Pods are without managed fields, which no
// controller reads, as upstream's controllers have them.
func (f *feed) shared(ctx context.Context, s *sharer, key, data []byte, revision int64) (runtime.Object, error) {
	data, err := f.plain(ctx, key, data)
	if err != nil {
		return nil, err
	}
	if f.example == podType {
		if pod, ok := s.pod(data); ok {
			return pod, at(pod, key, revision)
		}
	}
	object, err := f.object(key, data)
	if err != nil {
		return nil, err
	}
	s.share(object, object.(metav1.Object))
	return object, at(object, key, revision)
}

var podType = reflect.TypeFor[corev1.Pod]()

// plain is a stored value without its encryption.
func (f *feed) plain(ctx context.Context, key, data []byte) ([]byte, error) {
	if f.transformer == nil {
		return data, nil
	}
	data, _, err := f.transformer.TransformFromStorage(ctx, data, value.DefaultContext(key))
	if err != nil {
		return nil, fmt.Errorf("decrypt %s: %w", key, err)
	}
	return data, nil
}

func (f *feed) object(key, data []byte) (runtime.Object, error) {
	object, _, err := f.decoder.Decode(data, nil, reflect.New(f.example).Interface().(runtime.Object))
	if err != nil {
		return nil, fmt.Errorf("decode %s: %w", key, err)
	}
	if reflect.TypeOf(object).Elem() != f.example {
		return nil, fmt.Errorf("decode %s: stored as %T, not as %s", key, object, f.example)
	}
	return object, nil
}

// at sets the resource version.
func at(object runtime.Object, key []byte, revision int64) error {
	accessor, err := meta.Accessor(object)
	if err != nil {
		return fmt.Errorf("decode %s: %w", key, err)
	}
	accessor.SetResourceVersion(strconv.FormatInt(revision, 10))
	return nil
}

// sharer to put back.
func (f *feed) sharer() *sharer {
	if s, ok := f.sharers.Get().(*sharer); ok {
		return s
	}
	return newSharer(rememberedListing)
}

// stream is one running watch.
type stream struct {
	feed    *feed
	cancel  context.CancelFunc
	results chan watch.Event
	once    sync.Once
}

func (s *stream) Stop()                          { s.once.Do(s.cancel) }
func (s *stream) ResultChan() <-chan watch.Event { return s.results }

func (s *stream) run(ctx context.Context, events clientv3.WatchChan) {
	defer close(s.results)
	defer s.cancel()
	sharer := newSharer(rememberedWatching)
	send := func(e watch.Event) bool {
		select {
		case s.results <- e:
			return true
		case <-ctx.Done():
			return false
		}
	}
	for response := range events {
		if err := response.Err(); err != nil {
			if ctx.Err() == nil {
				send(watch.Event{Type: watch.Error, Object: status(err)})
			}
			return
		}
		for _, event := range response.Events {
			out, err := s.feed.event(ctx, sharer, event)
			if err != nil {
				send(watch.Event{Type: watch.Error, Object: status(err)})
				return
			}
			if !send(out) {
				return
			}
		}
	}
}

func (f *feed) event(ctx context.Context, s *sharer, e *clientv3.Event) (watch.Event, error) {
	if e.Type == mvccpb.DELETE {
		if e.PrevKv == nil {
			return watch.Event{}, fmt.Errorf("deletion of %s at revision %d came without its last value", e.Kv.Key, e.Kv.ModRevision)
		}
		object, err := f.shared(ctx, s, e.Kv.Key, e.PrevKv.Value, e.Kv.ModRevision)
		return watch.Event{Type: watch.Deleted, Object: object}, err
	}
	object, err := f.shared(ctx, s, e.Kv.Key, e.Kv.Value, e.Kv.ModRevision)
	if e.IsCreate() {
		return watch.Event{Type: watch.Added, Object: object}, err
	}
	return watch.Event{Type: watch.Modified, Object: object}, err
}

// status turns an error into what a reflector understands: Expired makes it list
// again from the newest revision.
func status(err error) *metav1.Status {
	if errors.Is(err, rpctypes.ErrCompacted) {
		return &apierrors.NewResourceExpired("the resource version is too old: its history has been compacted").ErrStatus
	}
	return &apierrors.NewInternalError(err).ErrStatus
}
