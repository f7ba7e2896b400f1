// Package storage keeps every object of an engine with one sequence of
// revisions, as etcd does, on Badger in the engine's own process.
//
// [Open] gives a [Store]; [Store.Etcd] is an etcd client without a network, good
// enough for upstream's etcd3 store, so that a real etcd differs by one
// constructor. One goroutine writes: it gathers what waits into a batch, gives
// each change its revision, makes the batch durable in a journal with one flush,
// and only then publishes and answers. Badger gets it a moment later, in larger
// batches. Reads never wait for a flush.
//
//	s, err := storage.Open(storage.Options{Dir: dir}) // zero value: in memory
//	defer s.Close()
//	etcd := s.Etcd()
package storage

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/v3/kubernetes"
	"k8s.io/utils/clock"
)

// Options of a store. The zero value is a store in memory.
type Options struct {
	// Dir holds the files, and nothing else may. It is made when missing. "" keeps
	// everything in memory.
	Dir string
	// KeyFile holds the key that Dir is encrypted with, by AES-256: RotateKey and
	// Rewrite change it. For a new store it is made when missing; lose it and the
	// store is lost. "" leaves it in the clear.
	KeyFile string
	// Logger takes what happens in the background. nil discards it.
	Logger *slog.Logger
	// Clock is the real one by default. Leases, compaction and progress follow it.
	Clock clock.Clock
	// Retention is how long a superseded revision stays readable, unless a bound
	// below is reached. Default three days, in memory five minutes, as upstream's
	// compactor; negative: for ever.
	Retention time.Duration
	// MaxHistory bounds the number of revisions kept whatever their age, and with
	// it memory: an estimated 50 bytes each. Default 500,000; negative: no bound.
	MaxHistory int64
	// MaxHistoryBytes bounds what was written since the oldest revision kept: keys
	// and values. Default on disk: HistoryShare; in memory 64 MiB; negative: no bound.
	MaxHistoryBytes int64
	// HistoryShare bounds the same to a part of the space that it and what is free
	// on Dir's file system make together: history gives way as the disk fills.
	// Default a tenth; negative: no bound.
	HistoryShare float64
	// ProgressInterval is how often an idle watch that asked for it hears how far
	// it has come. Default five seconds.
	ProgressInterval time.Duration
	// MinFree is the space in bytes that must stay free on Dir's file system for
	// a write to be accepted. Below it writes fail with ErrNoSpace and reads go
	// on. It is what the engine's log, tables and their merging may need before
	// the next check. Default 128 MiB.
	MinFree uint64

	// Opening is told what Open does that may take long: each step to a newer format
	// of Dir, and the reading of its keys, now and then. total is 0 when it is not
	// known. It may be nil.
	Opening func(what string, done, total int64)

	freeSpace func(dir string) (uint64, error)
	logFile   int64 // bytes of a file of the value log
	replay    int   // events that a watch reads from history at once
	journal   int64 // bytes of a file of the journal
	// compactStep is how many changes compaction forgets before it lets others write.
	compactStep int
}

func (o *Options) complete() {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Retention == 0 {
		o.Retention = 72 * time.Hour
		if o.Dir == "" {
			o.Retention = 5 * time.Minute
		}
	}
	if o.MaxHistoryBytes == 0 && o.Dir == "" {
		o.MaxHistoryBytes = 64 << 20
	}
	if o.HistoryShare == 0 {
		o.HistoryShare = 0.1
	}
	if o.MaxHistory == 0 {
		o.MaxHistory = 500_000
	}
	if o.ProgressInterval == 0 {
		o.ProgressInterval = 5 * time.Second
	}
	if o.MinFree == 0 {
		o.MinFree = 128 << 20
	}
	if o.Opening == nil {
		o.Opening = func(string, int64, int64) {}
	}
	if o.freeSpace == nil {
		o.freeSpace = freeSpace
	}
	if o.logFile == 0 {
		o.logFile = 64 << 20
	}
	if o.replay == 0 {
		o.replay = replayEvents
	}
	if o.compactStep == 0 {
		o.compactStep = 50_000
	}
	if o.journal == 0 {
		o.journal = journalSize
	}
}

// Store keeps keys, values and their history. All methods may be called from
// any goroutine; after Close they fail with ErrClosed.
type Store struct {
	opts Options
	disk *disk  // nil in memory
	key  []byte // encrypts the disk and backups; nil: nothing does
	base *base  // nil unless it is a fork
	// backlog is on its way from the journal to Badger; nil in memory.
	backlog *backlog
	etcd    *kubernetes.Client
	hub     *hub

	ctx    context.Context // ends when Close begins
	cancel context.CancelFunc

	requests chan *request
	written  chan struct{} // closed when the writer has returned
	tasks    sync.WaitGroup

	chores chores

	// life is held for reading while a call may touch Badger, which panics
	// once closed.
	life   sync.RWMutex
	closed bool
	close  sync.Once
	result error

	// mu guards what follows. Only the writer changes it, so the writer alone
	// may read without; but the backlog takes values out of the index.
	mu      sync.RWMutex
	index   *index
	rev     int64         // of the last published change
	compact int64         // below it history is gone
	pins    map[int64]int // revisions that backups and forks read at: the disk keeps them
	times   timeline
	leases  map[int64]*lease
	leaseOf map[string]int64

	id      [16]byte              // the writer's, see identity
	failure atomic.Pointer[error] // set once, by a flush that failed
	changed chan struct{}         // wakes the lease loop
}

// Open opens the store in opts.Dir, making it when missing. It fails with
// ErrInUse, ErrNewerFormat, ErrForeign, ErrEncrypted or ErrNoSpace, wrapped with
// the directory's name.
func Open(opts Options) (*Store, error) {
	opts.complete()
	s := newStore(opts)
	if opts.Dir != "" {
		from, err := checkFormat(opts.Dir)
		if err != nil {
			return nil, err
		}
		key, err := unlock(opts.Dir, opts.KeyFile)
		if err != nil {
			return nil, err
		}
		s.key = key
		if err := s.roomFor("open it"); err != nil {
			return nil, err
		}
		if s.disk, err = openDisk(opts.Dir, opts.logFile, key, opts.Logger); err != nil {
			return nil, err
		}
		s.disk.journal.size = opts.journal
		if err = migrate(opts, s.disk, from); err == nil {
			err = s.load()
		}
		if err != nil {
			s.disk.close(false)
			return nil, fmt.Errorf("storage: load %s: %w", opts.Dir, err)
		}
		s.disk.unmap()
	}
	s.start()
	return s, nil
}

// newStore makes an empty store of which nothing runs.
func newStore(opts Options) *Store {
	return &Store{
		opts:     opts,
		requests: make(chan *request, 1024),
		written:  make(chan struct{}),
		index:    newIndex(),
		rev:      1, // as etcd: the first change is revision 2
		leases:   map[int64]*lease{},
		leaseOf:  map[string]int64{},
		pins:     map[int64]int{},
		changed:  make(chan struct{}, 1),
	}
}

// start sets it going.
func (s *Store) start() {
	s.times.add(mark{s.opts.Clock.Now().UnixMilli(), s.rev, s.times.written})
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.etcd = newClient(s)
	s.hub = newHub(s, s.rev)
	if s.disk != nil {
		s.backlog = newBacklog(s)
		s.tasks.Go(s.backlog.run)
	}
	go s.write()
	s.tasks.Go(s.hub.run)
	s.tasks.Go(s.expireLeases)
	s.tasks.Go(s.keepHouse)
}

// Etcd is a client of this store. It lives as long as the store; its own Close
// is not needed. KV, Lease, Watcher, Kubernetes and Maintenance.Status serve;
// Cluster and Auth are nil, for there are none. Responses may be shared with
// other readers: they are not to be changed.
func (s *Store) Etcd() *kubernetes.Client { return s.etcd }

// Revision of the last change that readers see, at least 1.
func (s *Store) Revision() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.rev
}

// CompactRevision is the oldest revision that can still be read, 0 if nothing
// was compacted. It makes the store upstream's etcd3.Compactor.
func (s *Store) CompactRevision() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.compact
}

// Healthy tells why the store accepts no writes, nil when it does.
func (s *Store) Healthy() error {
	if s.ctx.Err() != nil {
		return ErrClosed
	}
	if err := s.failure.Load(); err != nil {
		return *err
	}
	return s.checkSpace()
}

// Close answers what is being written, ends every watch and gives the
// directory free. It is idempotent and returns the same error each time.
func (s *Store) Close() error {
	s.close.Do(func() {
		s.cancel()
		s.life.Lock()
		s.closed = true
		s.life.Unlock()
		<-s.written
		s.tasks.Wait()
		_ = s.etcd.Close() // its context only
		if s.base != nil {
			s.base.parent.unpin(s.base.rev)
		}
		if s.disk != nil {
			if s.result = s.roomFor("close it in order; nothing acknowledged is lost, and it stays locked until the process ends"); s.result == nil {
				moved := s.backlog.move()
				s.result = s.disk.close(moved == nil && s.failure.Load() == nil)
			}
		}
	})
	return s.result
}

// roomFor refuses to let Badger write where a full disk would end the process: it
// fills its files through memory, when it opens what a crash left and when it
// closes. Both is up to two tables in memory, half of what writes leave free.
func (s *Store) roomFor(what string) error {
	free, err := s.opts.freeSpace(s.opts.Dir)
	if need := s.opts.MinFree / 2; err == nil && free < need {
		return fmt.Errorf("%w: %s has %d KiB free and needs %d KiB to %s; make room there", ErrNoSpace, s.opts.Dir, free>>10, need>>10, what)
	}
	return nil
}

// enter keeps the store open until leave is called.
func (s *Store) enter() error {
	s.life.RLock()
	if s.closed || s.ctx.Err() != nil {
		s.life.RUnlock()
		return ErrClosed
	}
	return nil
}

func (s *Store) leave() { s.life.RUnlock() }
