package storage

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Badger's keys. The version of an entry is the revision it belongs to.
const (
	dataPrefix  = 'd' // and the key: a record, or a Badger deletion
	leasePrefix = 'l' // and eight bytes of id: what encodeLease makes
	markPrefix  = 't' // and eight bytes of revision: what encodeMark makes
)

var (
	compactKey = []byte("m/compact") // the compacted revision, decimal
	journalKey = []byte("m/journal") // of an encrypted journal
	intentKey  = []byte("m/intent")  // formats 1 and 2: changes to be made if they are not
	mergeKey   = []byte("x")         // only ever dropped
)

// hasLease marks a record with a lease, so that only those are read at start.
const hasLease byte = 1

// disk is Badger with a log whose every batch is flushed, and the journal before
// it. Badger's memory is bound by the options: two tables of 3 MiB in writing, no
// block cache, and eight builders of tables that it keeps for ten seconds and more, each
// of 4 MiB, or 12 if a table does not fit into that: hence blocks of 16 KiB, of which less
// is left empty than of 4 KiB. Forty tables are merged at a time, for copying
// tables is most of what a write costs. Larger ones to copy into would save a sixth
// more, but Badger makes a dozen at once, each in twice its size of memory.
type disk struct {
	db      *badger.DB
	logger  *badgerLogger
	journal *journal
	memory  []byte // store's
}

// memTable is nearly the least that may hold a batch with a value of inline.
const memTable = 3 << 20

// Limits of a batch, which Badger divides into such as it allows: 15 % of a table. Only
// what is longer than inline goes to the value log: garbage there is found late, when the
// tables with its keys are merged.
const (
	inline   = 448 << 10
	maxBytes = 800 << 10
	maxCount = 4096
)

func openDisk(dir string, logFile int64, key []byte, logger *slog.Logger) (*disk, error) {
	log := &badgerLogger{log: logger}
	opts := badger.DefaultOptions(dir).
		WithLogger(log).
		WithMetricsEnabled(false).
		WithDetectConflicts(false).
		WithNumVersionsToKeep(1).
		WithSyncWrites(true).
		WithCompression(0).
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		WithMemTableSize(memTable).
		WithNumMemtables(2).
		WithNumLevelZeroTables(40).
		WithNumLevelZeroTablesStall(80).
		WithBaseLevelSize(64 << 20).
		WithBlockSize(16 << 10).
		WithNumCompactors(2).
		WithValueThreshold(inline).
		WithValueLogFileSize(logFile)
	if key != nil {
		// Without caches Badger would decrypt its tables' indexes at every read, and a block is decrypted whole.
		opts = opts.WithBlockSize(4 << 10).WithEncryptionKey(key).WithEncryptionKeyRotationDuration(keyRotation).
			WithIndexCacheSize(16 << 20).WithBlockCacheSize(16 << 20)
	}
	err := flushLonger(opts)
	var db *badger.DB
	if err == nil {
		db, err = badger.OpenManaged(opts)
	}
	if err != nil {
		if strings.Contains(err.Error(), "directory lock") {
			return nil, fmt.Errorf("storage: %s is %w; stop it first or choose another directory", dir, ErrInUse)
		}
		if strings.Contains(err.Error(), "Cannot write pid file") {
			return nil, fmt.Errorf("storage: %s cannot be written: %w; make it writable or choose another directory", dir, err)
		}
		return nil, fmt.Errorf("storage: open %s: %w", dir, err)
	}
	d := &disk{db: db, logger: log}
	if err := d.recover(dir, key != nil); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return d, nil
}

// flushLonger writes to tables what a crash left in the logs of longer tables in memory, as they were before
// memTable was 3 MiB: Badger ends the process where a log does not fit. A log has twice its table's
// length, but for one that was cut to what it holds when it was read, before another crash.
func flushLonger(opts badger.Options) error {
	files, err := os.ReadDir(opts.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	longest := int64(memTable)
	for _, file := range files {
		if filepath.Ext(file.Name()) != ".mem" {
			continue
		}
		if info, err := file.Info(); err == nil && info.Size() != 2*memTable { // whoever has it in use may remove it
			longest = max(longest, info.Size())
		}
	}
	if longest == memTable {
		return nil
	}
	db, err := badger.OpenManaged(opts.WithMemTableSize(longest))
	if err != nil {
		return err
	}
	return db.Close()
}

// recover brings to Badger what only the journal has, and begins it anew.
func (d *disk) recover(dir string, encrypted bool) (err error) {
	var key []byte
	if encrypted {
		// Stored encrypted; no concern of whoever changes the master key.
		if key, err = d.meta(journalKey); err == nil && key == nil {
			key = make([]byte, keySize)
			rand.Read(key)
			err = d.put(journalKey, key, max(1, d.db.MaxVersion()))
		}
		if err != nil {
			return fmt.Errorf("storage: open %s: the journal's key: %w", dir, err)
		}
	}
	records, newest, err := readJournal(dir, key)
	if err != nil {
		return err
	}
	var changes []*pending
	var marks []mark
	size := 0
	for i, record := range records {
		some, m, err := decodeBatch(record)
		if err != nil {
			return fmt.Errorf("storage: open %s: batch %d of the journal: %w", dir, i, err)
		}
		changes = append(changes, some...)
		if m != nil {
			marks = append(marks, *m)
		}
		if size += len(record); size < maxBytes && i+1 < len(records) {
			continue
		}
		if err := d.store(changes, marks); err != nil {
			return fmt.Errorf("storage: open %s: move the journal: %w", dir, err)
		}
		changes, marks, size = nil, nil, 0
	}
	d.journal, err = openJournal(dir, key, newest)
	return err
}

// close empties the journal first, if Badger has all that was in it.
func (d *disk) close(settled bool) error {
	return errors.Join(d.journal.close(settled), d.db.Close())
}

func dataKey(key string) []byte { return append([]byte{dataPrefix}, key...) }

// get reads the state a key got at exactly rev. errGone means compaction took it.
func (d *disk) get(key string, rev int64) (*mvccpb.KeyValue, error) {
	txn := d.db.NewTransactionAt(uint64(rev), false)
	defer txn.Discard()
	item, err := txn.Get(dataKey(key))
	if errors.Is(err, badger.ErrKeyNotFound) || err == nil && item.Version() != uint64(rev) {
		return nil, errGone
	}
	if err != nil {
		return nil, fmt.Errorf("storage: read %s at revision %d: %w", key, rev, err)
	}
	value, err := item.ValueCopy(nil)
	if err != nil {
		return nil, fmt.Errorf("storage: read %s at revision %d: %w", key, rev, err)
	}
	kv, err := decodeRecord(key, rev, value)
	if err != nil {
		return nil, fmt.Errorf("storage: read %s at revision %d: %w", key, rev, err)
	}
	return kv, nil
}

// scan reads the states of a range at rev, given in order of their keys, and
// calls do with each. It reads tables in sequence, where get looks through all.
func (d *disk) scan(states []found, rev int64, do func(*mvccpb.KeyValue) error) error {
	first, last := states[0].key, states[len(states)-1].key
	common := 0
	for common < min(len(first), len(last)) && first[common] == last[common] {
		common++
	}
	txn := d.db.NewTransactionAt(uint64(rev), false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: dataKey(first[:common])})
	defer it.Close()
	it.Seek(dataKey(first))
	for _, f := range states {
		if f.kv != nil {
			if err := do(f.kv); err != nil {
				return err
			}
			continue
		}
		for it.Valid() && string(it.Item().Key()[1:]) < f.key {
			it.Next()
		}
		if !it.Valid() || string(it.Item().Key()[1:]) != f.key || it.Item().Version() != uint64(f.rev) {
			return errGone
		}
		record, err := it.Item().ValueCopy(nil)
		if err != nil {
			return fmt.Errorf("storage: read %s at revision %d: %w", f.key, f.rev, err)
		}
		kv, err := decodeRecord(f.key, f.rev, record)
		if err != nil {
			return fmt.Errorf("storage: read %s at revision %d: %w", f.key, f.rev, err)
		}
		if err := do(kv); err != nil {
			return err
		}
		it.Next()
	}
	return nil
}

var errGone = errors.New("storage: revision is not stored")

// store writes changes, in order of their revisions, and marks. A crash may leave
// any part of them: the journal has them all.
func (d *disk) store(changes []*pending, marks []mark) error {
	if len(changes) == 0 {
		return nil
	}
	last := uint64(changes[len(changes)-1].rev)
	size := 0
	for _, c := range changes {
		size += 1 + len(c.key)
		if c.kv != nil {
			size += recordSize(c.kv)
		}
	}
	if cap(d.memory) < size {
		d.memory = make([]byte, 0, size)
	}
	memory := d.memory[:0]
	if cap(memory) > 4*maxBytes {
		d.memory = nil
	}
	return d.batch(func(b *badger.WriteBatch) error {
		for _, c := range changes {
			from := len(memory)
			memory = append(append(memory, dataPrefix), c.key...)
			key := memory[from:len(memory):len(memory)]
			var err error
			if c.kv == nil {
				err = b.DeleteAt(key, uint64(c.rev))
			} else {
				from = len(memory)
				memory = appendRecord(memory, c.kv)
				e := badger.NewEntry(key, memory[from:len(memory):len(memory)])
				if c.kv.Lease != 0 {
					e.WithMeta(hasLease)
				}
				err = b.SetEntryAt(e, uint64(c.rev))
			}
			if err != nil {
				return err
			}
		}
		for _, m := range marks {
			if err := b.SetEntryAt(badger.NewEntry(markKey(m.rev), encodeMark(m)), last); err != nil {
				return err
			}
		}
		return nil
	})
}

// put stores one entry, durably. at may be a revision that exists.
func (d *disk) put(key, value []byte, at uint64) error {
	return d.batch(func(b *badger.WriteBatch) error {
		return b.SetEntryAt(badger.NewEntry(key, value), at)
	})
}

func (d *disk) delete(key []byte, at uint64) error {
	return d.batch(func(b *badger.WriteBatch) error { return b.DeleteAt(key, at) })
}

// forget deletes marks.
func (d *disk) forget(marks []mark, at uint64) error {
	return d.batch(func(b *badger.WriteBatch) error {
		for _, m := range marks {
			if err := b.DeleteAt(markKey(m.rev), at); err != nil {
				return err
			}
		}
		return nil
	})
}

func (d *disk) batch(fill func(*badger.WriteBatch) error) error {
	b := d.db.NewManagedWriteBatch()
	if err := fill(b); err != nil {
		b.Cancel()
		return err
	}
	if err := b.Flush(); err != nil {
		return err
	}
	return d.logger.unsynced()
}

// discard lets Badger drop the states that no read at or above rev can see.
func (d *disk) discard(rev int64) { d.db.SetDiscardTs(uint64(rev)) }

// collect rewrites value log files of which half is garbage.
func (d *disk) collect(stop func() bool) error {
	for !stop() {
		if err := d.db.RunValueLogGC(0.5); err != nil {
			if errors.Is(err, badger.ErrNoRewrite) || errors.Is(err, badger.ErrRejected) {
				return nil
			}
			return err
		}
	}
	return nil
}

// merge flushes the table in writing and merges the newest ones, whatever their
// size, for a few keys of long values fill the value log without ever filling a
// table. Dropping a prefix in use is Badger's only way to ask for it. Nothing
// may be written meanwhile.
func (d *disk) merge(at int64) error {
	if err := d.put(mergeKey, nil, uint64(at)); err != nil {
		return err
	}
	return d.db.DropPrefix(mergeKey)
}

// valueLog is the length in bytes of the value log.
func (d *disk) valueLog() (size int64) {
	files, _ := filepath.Glob(filepath.Join(d.db.Opts().ValueDir, "*.vlog")) // the pattern is valid
	for _, file := range files {
		if info, err := os.Stat(file); err == nil {
			size += info.Size()
		}
	}
	return size
}

// tables counts Badger's tables.
func (d *disk) tables() (n int) {
	for _, level := range d.db.Levels() {
		n += level.NumTables
	}
	return n
}

// load fills the index from the disk, after it has redone an unfinished intent.
func (s *Store) load() error {
	d := s.disk
	compact, err := d.meta(compactKey)
	if err != nil {
		return err
	}
	if compact != nil {
		if s.compact, err = strconv.ParseInt(string(compact), 10, 64); err != nil {
			return fmt.Errorf("compacted revision: %w", err)
		}
	}
	d.discard(s.compact)
	if err := s.redo(); err != nil {
		return err
	}
	s.rev = max(s.rev, s.compact, int64(d.db.MaxVersion()))
	if err := s.loadLeases(); err != nil {
		return err
	}
	if err := s.loadMarks(); err != nil {
		return err
	}
	opts := badger.IteratorOptions{Prefix: []byte{dataPrefix}, AllVersions: true}
	txn := d.db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	it := txn.NewIterator(opts)
	defer it.Close()
	s.index.fill(s.compact, func(yield func(key string, v version)) {
		var last string
		var n int64
		for it.Rewind(); it.Valid(); it.Next() {
			item := it.Item()
			if n++; n&(1<<16-1) == 0 {
				s.opts.Opening("keys read", n, 0)
			}
			key := string(item.Key()[1:])
			v := version{rev: int64(item.Version())}
			if item.IsDeletedOrExpired() {
				v.rev = -v.rev
			}
			yield(key, v)
			if key != last && !v.deleted() && item.UserMeta() == hasLease {
				err = errors.Join(err, s.loadAttached(key, v.rev))
			}
			last = key
		}
	})
	return err
}

// redo finishes transactions of which a crash left only a part, before there was
// a journal. Below the compacted revision there is nothing to finish: what came
// after is stored.
func (s *Store) redo() error {
	d := s.disk
	data, err := d.meta(intentKey)
	if err != nil || len(data) == 0 {
		return err
	}
	changes, err := decodeChanges(data)
	if err != nil {
		return fmt.Errorf("intent: %w", err)
	}
	if len(changes) > 0 && changes[len(changes)-1].rev > s.compact {
		if err := d.store(changes, nil); err != nil {
			return err
		}
	}
	return d.delete(intentKey, d.db.MaxVersion())
}

func (d *disk) meta(key []byte) ([]byte, error) {
	txn := d.db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	item, err := txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return item.ValueCopy(nil)
}

func leaseKey(id int64) []byte {
	return binary.BigEndian.AppendUint64([]byte{leasePrefix}, uint64(id))
}

// leases calls do for every stored lease.
func (d *disk) leases(do func(id, ttl int64, expiry time.Time)) error {
	txn := d.db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{leasePrefix}})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		item := it.Item()
		value, err := item.ValueCopy(nil)
		if err != nil {
			return err
		}
		if len(item.Key()) != 9 || len(value) != 16 {
			return errRecord
		}
		do(int64(binary.BigEndian.Uint64(item.Key()[1:])), int64(binary.BigEndian.Uint64(value)),
			time.UnixMilli(int64(binary.BigEndian.Uint64(value[8:]))))
	}
	return nil
}

func encodeLease(ttl int64, expiry time.Time) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(ttl)), uint64(expiry.UnixMilli()))
}

// badgerLogger passes Badger's errors on, and keeps the one that Badger only
// logs although a write was not made durable by it.
type badgerLogger struct {
	log  *slog.Logger
	sync atomic.Pointer[error]
}

func (l *badgerLogger) unsynced() error {
	if err := l.sync.Load(); err != nil {
		return *err
	}
	return nil
}

func (l *badgerLogger) Errorf(format string, args ...any) {
	text := strings.TrimSpace(fmt.Sprintf(format, args...))
	if strings.Contains(text, "curlf sync") {
		err := errors.New(text)
		l.sync.Store(&err)
	}
	l.log.Error("badger: " + text)
}

func (l *badgerLogger) Warningf(format string, args ...any) {
	l.log.Warn("badger: " + strings.TrimSpace(fmt.Sprintf(format, args...)))
}

func (l *badgerLogger) Infof(string, ...any)  {}
func (l *badgerLogger) Debugf(string, ...any) {}
