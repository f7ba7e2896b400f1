package storage

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func backup(t testing.TB, s *Store, since int64) (*bytes.Buffer, int64) {
	t.Helper()
	var file bytes.Buffer
	rev, err := s.Backup(context.Background(), &file, since)
	if err != nil {
		t.Fatal(err)
	}
	info, err := Verify(bytes.NewReader(file.Bytes()))
	if err != nil || info.Since != since || info.Revision != rev || info.Bytes != int64(file.Len()) {
		t.Fatalf("a backup since %d to %d of %d bytes is %+v, %v", since, rev, file.Len(), info, err)
	}
	return &file, rev
}

// again gives readers of files that have been read.
func again(files []*bytes.Buffer) (readers []io.Reader) {
	for _, f := range files {
		readers = append(readers, bytes.NewReader(f.Bytes()))
	}
	return readers
}

// restoreTo restores and opens.
func restoreTo(t *testing.T, to int64, files ...*bytes.Buffer) *Store {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "restored")
	if _, err := Restore(RestoreOptions{Dir: dir, To: to}, again(files)...); err != nil {
		t.Fatal(err)
	}
	return open(t, Options{Dir: dir, Retention: -1})
}

// contents at a revision, 0 for the present.
func contents(t testing.TB, s *Store, rev int64) []*mvccpb.KeyValue {
	t.Helper()
	r, err := s.Etcd().KV.Get(context.Background(), "\x00", clientv3.WithFromKey(), clientv3.WithRev(rev))
	if err != nil {
		t.Fatal(err)
	}
	return r.Kvs
}

func same(t *testing.T, got, want []*mvccpb.KeyValue) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d keys, not %d", len(got), len(want))
	}
	for i := range got {
		if got[i].String() != want[i].String() {
			t.Fatalf("%.200s\nnot %.200s", got[i], want[i])
		}
	}
}

// Clients write, and history is compacted, while a full backup and a chain of
// increments are taken. Each revision at an end, and some between, is restored
// and compared with what the store said of it.
func TestBackupWhileWritersWrite(t *testing.T) {
	kinds(t, func(t *testing.T, opts Options) {
		opts.Retention, opts.MaxHistory = -1, -1
		s := open(t, opts)
		ctx, stop := context.WithCancel(context.Background())
		var writers sync.WaitGroup
		defer writers.Wait()
		defer stop()
		written := make(chan struct{}, 1)
		for i := range 8 {
			writers.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					key := fmt.Sprintf("/k/%d/%d", i, rand.IntN(20))
					var err error
					if rand.IntN(4) == 0 {
						_, err = s.Etcd().Delete(context.Background(), key)
					} else {
						_, err = s.Etcd().Put(context.Background(), key, fmt.Sprint(n, strings.Repeat("x", rand.IntN(3000))))
					}
					if err != nil {
						t.Error(err)
						return
					}
					select {
					case written <- struct{}{}:
					default:
					}
				}
			})
		}
		await := func(n int) {
			for until := s.Revision() + int64(n); s.Revision() < until; {
				<-written
			}
		}
		await(300)
		full, rev := backup(t, s, 0)
		files := []*bytes.Buffer{full}
		want := map[int64][]*mvccpb.KeyValue{rev: contents(t, s, rev)}
		for range 3 {
			from := rev
			await(200)
			var increment *bytes.Buffer
			increment, rev = backup(t, s, rev)
			files = append(files, increment)
			want[rev] = contents(t, s, rev)
			middle := from + rand.Int64N(rev-from)
			want[middle] = contents(t, s, middle)
			if _, err := s.Etcd().Compact(context.Background(), rev); err != nil {
				t.Fatal(err)
			}
		}
		stop()
		for at, state := range want {
			r := restoreTo(t, at, files...)
			same(t, contents(t, r, 0), state)
			if r.Revision() != rev+RestoreGap {
				t.Errorf("restored to %d of %d the store is at %d", at, rev, r.Revision())
			}
			if next := put(t, r, "/next", "x"); next != rev+RestoreGap+1 {
				t.Errorf("the next revision is %d", next)
			}
		}
		same(t, contents(t, restoreTo(t, 0, files...), 0), want[rev])
	})
}

// What a backup reads stays on the disk although it is compacted and merged
// meanwhile, and goes when the backup has ended.
func TestBackupOutlivesCompaction(t *testing.T) {
	for _, increment := range []bool{false, true} {
		t.Run(fmt.Sprint("increment ", increment), func(t *testing.T) {
			s := open(t, Options{Dir: t.TempDir(), Retention: -1})
			ctx := context.Background()
			since := int64(0)
			if increment {
				since = 1
			}
			for i := range 50 {
				put(t, s, fmt.Sprintf("/k/%02d", i), strings.Repeat("old", backupChunk/60))
			}
			want := contents(t, s, 0)
			reader, w := io.Pipe()
			result := make(chan error, 1)
			go func() {
				_, err := s.Backup(ctx, w, since)
				w.CloseWithError(err)
				result <- err
			}()
			var file bytes.Buffer
			if _, err := io.CopyN(&file, reader, 1); err != nil { // it has begun
				t.Fatal(err)
			}
			for i := range 50 {
				put(t, s, fmt.Sprintf("/k/%02d", i), strings.Repeat("new", backupChunk/60))
			}
			if _, err := s.Etcd().Compact(ctx, s.Revision()); err != nil {
				t.Fatal(err)
			}
			if err := s.control(ctx, func(*writer) error { return s.merge() }); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(&file, reader); err != nil {
				t.Fatal(err)
			}
			if err := <-result; err != nil {
				t.Fatal(err)
			}
			if len(s.pins) != 0 {
				t.Errorf("pins are left: %v", s.pins)
			}
			if increment {
				full, _ := backup(t, open(t, Options{}), 0)
				copy(full.Bytes()[len(backupMagic)+2+recordFrame:], file.Bytes()[len(backupMagic)+2+recordFrame:][:16])
				resum(full.Bytes())
				same(t, contents(t, restoreTo(t, 0, full, &file), 0), want)
				return
			}
			same(t, contents(t, restoreTo(t, 0, &file), 0), want)
		})
	}
}

// resum makes the checksums right again.
func resum(file []byte) {
	sum, rest := uint32(0), file[len(backupMagic)+2:]
	for len(rest) > 0 {
		n := recordFrame + int(binary.LittleEndian.Uint32(rest[1:]))
		sum = crc(sum, rest[:n])
		binary.LittleEndian.PutUint32(rest[n:], sum)
		rest = rest[n+4:]
	}
}

func TestBackupKeepsLeases(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir(), Retention: -1})
	ctx := context.Background()
	grant := func(key string) clientv3.LeaseID {
		l, err := s.Etcd().Grant(ctx, 3600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Etcd().Put(ctx, key, "x", clientv3.WithLease(l.ID)); err != nil {
			t.Fatal(err)
		}
		return l.ID
	}
	full, _ := backup(t, s, 0)
	kept, ended := grant("/kept"), grant("/ended")
	both := s.Revision()
	if _, err := s.Etcd().Revoke(ctx, ended); err != nil {
		t.Fatal(err)
	}
	increment, _ := backup(t, s, both-2)
	r := restoreTo(t, both, full, increment)
	l, err := r.Etcd().TimeToLive(ctx, kept)
	if err != nil || l.GrantedTTL != 3600 || len(l.Keys) != 1 {
		t.Errorf("the lease is %+v, %v", l, err)
	}
	// The other had ended before the backup; so does its key, by a deletion.
	watch := r.Etcd().Watch(t.Context(), "/ended", clientv3.WithRev(s.Revision()+RestoreGap+1))
	for len(contents(t, r, 0)) > 1 {
		if w, ok := <-watch; !ok || w.Err() != nil {
			t.Fatalf("the watch ended: %v", w.Err())
		}
	}
	if got := contents(t, r, 0); len(got) != 1 || string(got[0].Key) != "/kept" {
		t.Errorf("there is %v", got)
	}
}

func TestBackupRefusals(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir(), Retention: -1})
	ctx := context.Background()
	var files []*bytes.Buffer
	rev := int64(0)
	for range 3 {
		put(t, s, "/a", "x")
		var f *bytes.Buffer
		f, rev = backup(t, s, rev)
		files = append(files, f)
	}
	other := open(t, Options{})
	put(t, other, "/b", "y")
	put(t, other, "/b", "y")
	foreign, _ := backup(t, other, 2)
	newer := bytes.NewBuffer(bytes.Clone(files[0].Bytes()))
	newer.Bytes()[len(backupMagic)] = sealedFormat + 1

	for _, test := range []struct {
		name  string
		files []*bytes.Buffer
		to    int64
		want  error
	}{
		{"an increment first", files[1:], 0, ErrOrder},
		{"one missing", []*bytes.Buffer{files[0], files[2]}, 0, ErrOrder},
		{"wrong order", []*bytes.Buffer{files[0], files[2], files[1]}, 0, ErrOrder},
		{"two full", []*bytes.Buffer{files[0], files[0]}, 0, ErrOrder},
		{"another store", []*bytes.Buffer{files[0], foreign}, 0, ErrOrder},
		{"an old one last", []*bytes.Buffer{files[0], files[1], files[2], files[1]}, 0, ErrOrder},
		{"newer", []*bytes.Buffer{newer}, 0, ErrNewerFormat},
		{"before", files, 1, ErrCompacted},
		{"after", files, rev + 1, ErrFuture},
		{"not one", []*bytes.Buffer{bytes.NewBufferString("a picture of a cat, in words")}, 0, ErrDamaged},
		{"empty", []*bytes.Buffer{{}}, 0, ErrDamaged},
	} {
		parent := t.TempDir()
		if _, err := Restore(RestoreOptions{Dir: filepath.Join(parent, "new"), To: test.to}, again(test.files)...); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", test.name, err)
		}
		if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
			t.Errorf("%s: %v is left, %v", test.name, left, err)
		}
	}
	if info, err := Verify(again(files)...); err != nil || info.Changes != 3 || info.Revision != rev || info.Since != 0 {
		t.Errorf("the chain is %+v, %v", info, err)
	}
	if _, err := Restore(RestoreOptions{Dir: s.opts.Dir}, again(files)...); !errors.Is(err, ErrExists) {
		t.Errorf("over a store: %v", err)
	}
	if _, err := s.Etcd().Compact(ctx, rev); err != nil {
		t.Fatal(err)
	}
	for since, want := range map[int64]error{-1: ErrFuture, rev + 1: ErrFuture, rev - 1: ErrCompacted} {
		var file bytes.Buffer
		if _, err := s.Backup(ctx, &file, since); !errors.Is(err, want) || file.Len() > 0 {
			t.Errorf("since %d: %v and %d bytes", since, err, file.Len())
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Backup(ctx, io.Discard, 0); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func TestBackupDamageIsFound(t *testing.T) {
	s := open(t, Options{Retention: -1})
	for i := range 40 {
		put(t, s, fmt.Sprint("/k/", i%7), strings.Repeat("value", i))
	}
	for _, since := range []int64{0, 1} {
		file, _ := backup(t, s, since)
		check := func(what string, data []byte) {
			t.Helper()
			if _, err := Verify(bytes.NewReader(data)); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat) {
				t.Errorf("%s: %v", what, err)
			}
		}
		for at := range file.Len() {
			data := bytes.Clone(file.Bytes())
			data[at] ^= byte(1 + rand.IntN(255))
			check(fmt.Sprint("byte ", at), data)
			check(fmt.Sprint("cut at ", at), file.Bytes()[:at])
		}
		check("more", append(bytes.Clone(file.Bytes()), 0))
	}
}

// The reader of a backup stalls: the store can be closed all the same.
func TestCloseDoesNotWaitForABackup(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	put(t, s, "/a", "x")
	reader, w := io.Pipe()
	result := make(chan error, 1)
	go func() {
		_, err := s.Backup(context.Background(), w, 0)
		result <- err
	}()
	if _, err := reader.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	reader.CloseWithError(errors.New("gone"))
	if err := <-result; err == nil {
		t.Error("a backup that could not be written succeeded")
	}
}

func FuzzVerify(f *testing.F) {
	s := open(f, Options{Retention: -1})
	put(f, s, "/a", "x")
	put(f, s, "/b", "y")
	for _, since := range []int64{0, 1} {
		file, _ := backup(f, s, since)
		f.Add(file.Bytes())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		info, err := Verify(bytes.NewReader(data))
		if err == nil && (info.Bytes != int64(len(data)) || info.Revision < info.Since) {
			t.Errorf("%+v of %d bytes", info, len(data))
		}
	})
}

func BenchmarkBackup100000(b *testing.B) {
	modes(b, func(b *testing.B, s *Store) {
		fill(b, s, 100_000)
		var file bytes.Buffer
		for b.Loop() {
			file.Reset()
			if _, err := s.Backup(context.Background(), &file, 0); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(file.Len()))
		}
	})
}

// BenchmarkEncryptedBackup100000 is the same of an encrypted store, which encrypts its
// backups.
func BenchmarkEncryptedBackup100000(b *testing.B) {
	dir := b.TempDir()
	s := open(b, Options{Dir: filepath.Join(dir, "store"), KeyFile: filepath.Join(dir, "key")})
	fill(b, s, 100_000)
	var file bytes.Buffer
	for b.Loop() {
		file.Reset()
		if _, err := s.Backup(context.Background(), &file, 0); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(file.Len()))
	}
}

func BenchmarkVerifyAndRestore100000(b *testing.B) {
	s := open(b, Options{})
	fill(b, s, 100_000)
	file, _ := backup(b, s, 0)
	b.Run("verify", func(b *testing.B) {
		for b.Loop() {
			b.SetBytes(int64(file.Len()))
			if _, err := Verify(bytes.NewReader(file.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("restore", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			b.SetBytes(int64(file.Len()))
			if _, err := Restore(RestoreOptions{Dir: filepath.Join(b.TempDir(), fmt.Sprint(i))}, bytes.NewReader(file.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
	})
}
