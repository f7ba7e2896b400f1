package storage

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// everything is what a store holds, with its history since a revision.
func everything(t *testing.T, s *Store, since int64) (out []string) {
	t.Helper()
	r, err := s.Etcd().KV.Get(context.Background(), "\x00", clientv3.WithFromKey())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range r.Kvs {
		out = append(out, fmt.Sprintf("%s %d %d %d %d %.20s", kv.Key, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease, kv.Value))
	}
	for _, e := range replayAll(t, s, since, s.Revision()) {
		out = append(out, fmt.Sprintf("%v %s %d %.20s", e.Type, e.Kv.Key, e.Kv.ModRevision, e.Kv.Value))
	}
	return out
}

// A power cut takes whatever Badger had not flushed: here, all since it began.
func TestPowerCut(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		t.Run(fmt.Sprint("encrypted=", encrypted), func(t *testing.T) {
			ctx := context.Background()
			opts := Options{Dir: t.TempDir(), Retention: -1, journal: 256 << 10}
			if encrypted {
				opts.KeyFile = filepath.Join(t.TempDir(), "key")
			}
			s := open(t, opts)
			settle(t, s)
			dir := image(t, opts.Dir)
			var group []Write
			for i := range 300 { // more than one file
				put(t, s, fmt.Sprintf("/k/%d", i%50), fmt.Sprint(i, strings.Repeat("x", 1000)))
				group = append(group, Write{Key: fmt.Sprintf("/gang/%d", i), Value: []byte("visible secret")})
			}
			if _, err := s.CommitAll(ctx, group); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Etcd().Delete(ctx, "/k/7"); err != nil {
				t.Fatal(err)
			}
			want := everything(t, s, 2)
			copyJournal(t, opts.Dir, dir)
			for i := range 2 {
				data, err := os.ReadFile(journalFile(dir, i))
				if err != nil {
					t.Fatal(err)
				}
				if bytes.Contains(data, []byte("visible secret")) == encrypted && i == 1 {
					t.Errorf("file %d: encrypted is %v", i, encrypted)
				}
			}
			opts.Dir = dir
			for range 2 { // what is recovered stays
				again := open(t, opts)
				if got := everything(t, again, 2); !slices.Equal(got, want) {
					t.Fatalf("%d entries instead of %d", len(got), len(want))
				}
				if rev := again.Revision(); rev != s.Revision() {
					t.Errorf("at revision %d, not %d", rev, s.Revision())
				}
				if err := again.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// The files take turns while writers go on, and nothing is missing at any time.
func TestJournalTurns(t *testing.T) {
	opts := Options{Dir: t.TempDir(), Retention: -1, journal: 16 << 10}
	s := open(t, opts)
	var writers sync.WaitGroup
	const each = 60
	for w := range 8 {
		writers.Go(func() {
			for i := range each {
				size := 500
				if i%20 == 7 {
					size = 50_000 // longer than a file
				}
				put(t, s, fmt.Sprintf("/k/%d/%d", w, i), strings.Repeat("x", size))
			}
		})
	}
	writers.Wait()
	if at := s.disk.journal.next; at < 50 {
		t.Errorf("only %d batches", at)
	}
	for i := range 2 {
		if info, err := os.Stat(journalFile(opts.Dir, i)); err != nil || info.Size() > 8*60_000 {
			t.Errorf("%v, %v", info.Size(), err)
		}
	}
	want := everything(t, s, 2)
	opts.Dir = image(t, opts.Dir)
	if got := everything(t, open(t, opts), 2); !slices.Equal(got, want) || len(got) != 2*8*each {
		t.Errorf("%d entries instead of %d", len(got), len(want))
	}
}

// What the flush of a batch left behind is the batch or nothing of it.
func TestTornJournal(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	put(t, s, "/a", "1")
	before := s.disk.journal.files[0].offset
	dir := image(t, s.opts.Dir)
	rev := s.Revision()
	put(t, s, "/torn", strings.Repeat("torn", 300))
	after := s.disk.journal.files[0].offset
	whole, err := os.ReadFile(journalFile(s.opts.Dir, 0))
	if err != nil {
		t.Fatal(err)
	}
	for cut := before + 1; cut < after; cut += 97 {
		for _, fill := range []byte{0, 0xff} {
			data := slices.Clone(whole)
			for i := cut; i < after; i++ {
				data[i] = fill
			}
			torn := image(t, dir)
			write(t, journalFile(torn, 0), string(data))
			s := open(t, Options{Dir: torn})
			if got := s.Revision(); got != rev {
				t.Errorf("cut at %d of %d to %d: at revision %d, not %d", cut, before, after, got, rev)
			}
			if r, err := s.Etcd().KV.Get(context.Background(), "/a"); err != nil || len(r.Kvs) != 1 {
				t.Errorf("cut at %d: %v", cut, err)
			}
			if next := put(t, s, "/b", "2"); next != rev+1 {
				t.Errorf("cut at %d: %d after %d", cut, next, rev)
			}
		}
	}
}

// What was acknowledged and can no longer be read is told, with the file's name.
func TestDamagedJournal(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	for i := range 10 {
		put(t, s, fmt.Sprint("/k/", i), strings.Repeat("x", 1000))
	}
	whole, err := os.ReadFile(journalFile(s.opts.Dir, 0))
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, 9, 20, journalHead, journalHead + 5, journalHead + 12, journalHead + 500, journalHead + 5000} {
		data := slices.Clone(whole)
		data[at] ^= 0x10
		dir := image(t, s.opts.Dir)
		write(t, journalFile(dir, 0), string(data))
		if damaged, err := Open(Options{Dir: dir}); err == nil {
			damaged.Close()
			t.Errorf("a wrong byte at %d goes unnoticed", at)
		} else if !strings.Contains(err.Error(), journalFile(dir, 0)) {
			t.Errorf("a wrong byte at %d: %v", at, err)
		}
	}
}

// A backlog that Badger refuses ends writing; what was acknowledged is in the
// journal.
func TestFailedBacklog(t *testing.T) {
	opts := Options{Dir: t.TempDir()}
	s := open(t, opts)
	rev := put(t, s, "/a", "1")
	s.disk.logger.Errorf("Error while curlf sync: %v", "input/output error")
	if err := s.backlog.move(); err == nil {
		t.Fatal("the backlog has moved")
	}
	if _, err := s.Etcd().Put(context.Background(), "/a", "2"); err == nil || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("a write after it: %v", err)
	}
	if r, err := s.Etcd().KV.Get(context.Background(), "/a"); err != nil || string(r.Kvs[0].Value) != "1" {
		t.Errorf("%v, %v", r, err)
	}
	s.Close()
	s = open(t, opts)
	if r, err := s.Etcd().KV.Get(context.Background(), "/a"); err != nil || r.Kvs[0].ModRevision != rev {
		t.Errorf("%v, %v", r, err)
	}
}

func FuzzJournal(f *testing.F) {
	file := &logFile{salt: [saltSize]byte{1, 2, 3}}
	data := file.head()
	for number := range uint64(3) {
		batch := appendBatch(make([]byte, frameHead), []*pending{{rev: int64(number) + 2, key: "/a", kv: &mvccpb.KeyValue{Version: 1, Value: []byte("v")}}}, &mark{at: 5, rev: 1})
		data = append(data, file.frame(batch, number+7)...)
	}
	f.Add(data)
	f.Add(append(data[:len(data)-30], make([]byte, 100)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := readLog(data, nil)
		if err != nil {
			return
		}
		for _, r := range k.records {
			changes, m, err := decodeBatch(r)
			if err != nil {
				continue
			}
			once := appendBatch(nil, changes, m)
			again, n, err := decodeBatch(once)
			if err != nil || !bytes.Equal(once, appendBatch(nil, again, n)) {
				t.Fatalf("%v, %v: %v", changes, m, err)
			}
		}
	})
}

// A crash between the two emptyings leaves the newest file, never the older alone.
func TestJournalEmptiesOldestFirst(t *testing.T) {
	dir := t.TempDir()
	j, err := openJournal(dir, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	j.size = 1 << 10
	for i := range 40 { // several turns
		change := &pending{rev: int64(i + 2), key: fmt.Sprint("/k/", i), kv: &mvccpb.KeyValue{Value: make([]byte, 100)}}
		if _, err := j.append([]*pending{change}, nil, func(uint64) error { return nil }); err != nil {
			t.Fatal(err)
		}
		records, newest, err := readJournal(dir, nil)
		if err != nil || newest != j.at {
			t.Fatalf("after %d records the newest file is %d, %v; %d was written", i+1, newest, err, j.at)
		}
		if last, _, err := decodeBatch(records[len(records)-1]); err != nil || last[0].key != change.key {
			t.Fatalf("the last record is %v, %v", last, err)
		}
	}
	order := j.oldestFirst()
	if err := j.close(false); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(journalFile(dir, order[0]))
	if err != nil {
		t.Fatal(err)
	}
	older, err := readLog(data, nil)
	if err != nil {
		t.Fatal(err)
	}
	if data, err = os.ReadFile(journalFile(dir, order[1])); err != nil {
		t.Fatal(err)
	}
	if newer, err := readLog(data, nil); err != nil || newer.first <= older.first {
		t.Errorf("emptied first is the file from record %d, then the one from %d, %v", older.first, newer.first, err)
	}
}
