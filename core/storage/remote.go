package storage

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage/etcd3"
	"k8s.io/utils/clock"
)

// RemoteOptions say where an etcd is. Endpoints are required.
type RemoteOptions struct {
	Endpoints []string // URLs: "https://10.0.0.1:2379"
	// CAFile, CertFile and KeyFile are PEM files for TLS: the authority of etcd's
	// certificates, and this client's own. Without any there is none; without
	// CAFile alone the system's authorities count.
	CAFile, CertFile, KeyFile string
	// Prefix of all keys: stores with different ones share an etcd without
	// seeing each other.
	Prefix string
	// Compaction is how often history is compacted: it stays readable for one to
	// two of these. Default five minutes, as upstream's; negative: never. Stores
	// that share an etcd share its history.
	Compaction time.Duration
	Logger     *slog.Logger
}

// Remote is a store on a real etcd. It does what Store does but for history,
// forks and backups, which are etcd's own business.
type Remote struct {
	options   RemoteOptions
	etcd      *kubernetes.Client
	compactor remoteCompactor
	rev       atomic.Int64 // highest that was seen
	close     sync.Once
	result    error
}

type remoteCompactor interface {
	etcd3.Compactor
	Stop()
}

// dialTimeout bounds the wait for an answer of etcd when nobody else does.
const dialTimeout = 20 * time.Second

// Dial connects to an etcd and fails when none of its endpoints answers within 20
// seconds, or before ctx ends.
func Dial(ctx context.Context, options RemoteOptions) (*Remote, error) {
	where := strings.Join(options.Endpoints, ",")
	if len(options.Endpoints) == 0 {
		return nil, errors.New("storage: etcd: no endpoint is given")
	}
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	if options.Compaction == 0 {
		options.Compaction = 5 * time.Minute
	}
	config, err := options.tls()
	if err != nil {
		return nil, fmt.Errorf("storage: etcd at %s: %w", where, err)
	}
	etcd, err := kubernetes.New(clientv3.Config{
		Endpoints: options.Endpoints, TLS: config, DialTimeout: dialTimeout,
		DialKeepAliveTime: 30 * time.Second, DialKeepAliveTimeout: 10 * time.Second,
		MaxCallSendMsgSize: 2 * (MaxValue + MaxKey), Logger: zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("storage: etcd at %s: %w", where, err)
	}
	if options.Prefix != "" {
		etcd.KV = namespace.NewKV(etcd.KV, options.Prefix)
		etcd.Watcher = namespace.NewWatcher(etcd.Watcher, options.Prefix)
		etcd.Lease = namespace.NewLease(etcd.Lease, options.Prefix)
	}
	r := &Remote{options: options, etcd: etcd}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if err := r.probe(ctx); err != nil {
		if ctx.Err() != nil { // the client has tried again and again, and does not tell why
			err = errors.Join(reasons(options.Endpoints, config)...)
		}
		return nil, errors.Join(fmt.Errorf("storage: etcd at %s does not answer: %w", where, err), etcd.Close())
	}
	r.compactor = etcd3.NewCompactor(etcd.Client, max(0, options.Compaction), clock.RealClock{}, nil)
	return r, nil
}

func (o *RemoteOptions) tls() (*tls.Config, error) {
	if o.CAFile == "" && o.CertFile == "" && o.KeyFile == "" {
		for _, endpoint := range o.Endpoints {
			if strings.HasPrefix(endpoint, "https://") {
				return &tls.Config{MinVersion: tls.VersionTLS12}, nil
			}
		}
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		data, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("%s holds no certificate", o.CAFile)
		}
	}
	if o.CertFile != "" || o.KeyFile != "" {
		if _, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile); err != nil {
			return nil, err
		}
		// Read at each connection: they may be renewed.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
			return &pair, err
		}
	}
	return config, nil
}

// Etcd is the client.
func (r *Remote) Etcd() *kubernetes.Client { return r.etcd }

// StorageDecorator makes upstream's etcd3 store of a resource, see Store's.
func (r *Remote) StorageDecorator(cached func(schema.GroupResource) bool) generic.StorageDecorator {
	return decorator{etcd: r.etcd, compactor: r.compactor, endpoints: r.options.Endpoints}.decorate(cached)
}

func (r *Remote) probe(ctx context.Context) error {
	found, err := r.etcd.KV.Get(ctx, "\x00", clientv3.WithCountOnly())
	if err == nil {
		r.seen(found.Header.Revision)
	}
	return err
}

func (r *Remote) seen(rev int64) int64 {
	for {
		known := r.rev.Load()
		if rev <= known || r.rev.CompareAndSwap(known, rev) {
			return max(rev, known)
		}
	}
}

// Revision asks etcd for its revision. When it does not answer, it is the
// highest that was seen.
func (r *Remote) Revision() int64 {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = r.probe(ctx) // then the last one known must do
	return r.rev.Load()
}

// Healthy tells why etcd does not answer, nil when it does.
func (r *Remote) Healthy() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := r.probe(ctx); err != nil {
		return fmt.Errorf("storage: etcd: %w", err)
	}
	return nil
}

// Close ends the connection. It is idempotent.
func (r *Remote) Close() error {
	r.close.Do(func() {
		r.compactor.Stop()
		r.result = r.etcd.Close()
	})
	return r.result
}

// What etcd takes in one request by default: 128 operations, 1.5 MiB.
const (
	remoteOps   = 64
	remoteBytes = 1 << 20
)

// Commit makes independent writes, many in one request and with one revision.
func (r *Remote) Commit(ctx context.Context, writes []Write) []Result {
	results := make([]Result, len(writes))
	for len(writes) > 0 {
		n, size := 0, 0
		keys := map[string]bool{}
		for n < len(writes) && n < remoteOps && !keys[writes[n].Key] && (n == 0 || size+len(writes[n].Value) <= remoteBytes) {
			keys[writes[n].Key] = true
			size += len(writes[n].Key) + len(writes[n].Value)
			n++
		}
		r.commit(ctx, writes[:n], results[len(results)-len(writes):])
		writes = writes[n:]
	}
	return results
}

func (w *Write) remote() (clientv3.Cmp, clientv3.Op) {
	same := clientv3.Compare(clientv3.ModRevision(w.Key), "=", w.Expect)
	switch {
	case w.Value == nil:
		return same, clientv3.OpDelete(w.Key)
	case w.Expect == 0:
		return same, clientv3.OpPut(w.Key, string(w.Value))
	}
	return same, clientv3.OpPut(w.Key, string(w.Value), clientv3.WithIgnoreLease())
}

// finished reads what the writes want to be finished from, and finishes them. A
// key that is at another revision will not be written.
func (r *Remote) finished(ctx context.Context, writes []Write) ([]Write, error) {
	var ops []clientv3.Op
	var at []int
	for i := range writes {
		if writes[i].Finish != nil && writes[i].Value != nil && writes[i].check() == nil {
			ops, at = append(ops, clientv3.OpGet(writes[i].Key)), append(at, i)
		}
	}
	if len(ops) == 0 {
		return writes, nil
	}
	writes = slices.Clone(writes)
	for list := range slices.Chunk(ops, remoteOps) {
		answer, err := r.etcd.KV.Txn(ctx).Then(list...).Commit()
		if err != nil {
			return nil, err
		}
		for _, one := range answer.Responses {
			w := &writes[at[0]]
			at = at[1:]
			if found := one.GetResponseRange(); len(found.Kvs) > 0 && found.Kvs[0].ModRevision == w.Expect {
				w.Value = w.Finish(found.Kvs[0].Value, w.Value)
			}
		}
	}
	return writes, nil
}

func (r *Remote) commit(ctx context.Context, writes []Write, results []Result) {
	var ops []clientv3.Op
	var at []int
	writes, unread := r.finished(ctx, writes)
	if unread != nil {
		for i := range results {
			results[i].Err = unread
		}
		return
	}
	for i := range writes {
		if results[i].Err = writes[i].check(); results[i].Err == nil {
			same, op := writes[i].remote()
			ops = append(ops, clientv3.OpTxn([]clientv3.Cmp{same}, []clientv3.Op{op}, []clientv3.Op{clientv3.OpGet(writes[i].Key, clientv3.WithKeysOnly())}))
			at = append(at, i)
		}
	}
	if len(ops) == 0 {
		return
	}
	answer, err := r.etcd.KV.Txn(ctx).Then(ops...).Commit()
	if err == nil && len(answer.Responses) != len(ops) {
		err = fmt.Errorf("storage: etcd answered %d of %d writes", len(answer.Responses), len(ops))
	}
	for n, i := range at {
		if err != nil {
			results[i].Err = err
			continue
		}
		one := answer.Responses[n].GetResponseTxn()
		if one.Succeeded {
			results[i].Revision = r.seen(answer.Header.Revision)
			continue
		}
		conflict := &ConflictError{Key: writes[i].Key}
		if found := one.Responses[0].GetResponseRange(); len(found.Kvs) > 0 {
			conflict.Current = found.Kvs[0].ModRevision
		}
		results[i].Err = conflict
	}
}

// CommitAll makes all writes or none, at one revision. etcd takes 128 at once by
// default.
func (r *Remote) CommitAll(ctx context.Context, writes []Write) ([]int64, error) {
	if len(writes) == 0 {
		return nil, nil
	}
	var compare []clientv3.Cmp
	var then, otherwise []clientv3.Op
	writes, err := r.finished(ctx, writes)
	if err != nil {
		return nil, err
	}
	for i := range writes {
		if err := writes[i].check(); err != nil {
			return nil, err
		}
		same, op := writes[i].remote()
		compare, then = append(compare, same), append(then, op)
		otherwise = append(otherwise, clientv3.OpGet(writes[i].Key, clientv3.WithKeysOnly()))
	}
	answer, err := r.etcd.KV.Txn(ctx).If(compare...).Then(then...).Else(otherwise...).Commit()
	if err != nil {
		return nil, err
	}
	revisions := make([]int64, len(writes))
	for i := range writes {
		revisions[i] = r.seen(answer.Header.Revision)
		if answer.Succeeded {
			continue
		}
		conflict := &ConflictError{Key: writes[i].Key}
		if found := answer.Responses[i].GetResponseRange(); len(found.Kvs) > 0 {
			conflict.Current = found.Kvs[0].ModRevision
		}
		if conflict.Current != writes[i].Expect {
			return nil, conflict
		}
	}
	return revisions, nil
}
