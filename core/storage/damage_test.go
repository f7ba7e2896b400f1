package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// image copies a store's directory as a power cut would leave it.
func image(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// settle waits until Badger has everything.
func settle(t *testing.T, s *Store) {
	t.Helper()
	if err := s.backlog.move(); err != nil {
		t.Fatal(err)
	}
}

// copyJournal puts the journal of one directory into another.
func copyJournal(t *testing.T, from, to string) {
	t.Helper()
	for i := range 2 {
		data, err := os.ReadFile(journalFile(from, i))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		write(t, journalFile(to, i), string(data))
	}
}

// The tail of one of Badger's logs holds half an entry. The journal has it.
func TestTornTail(t *testing.T) {
	long := strings.Repeat("long", inline/3)
	for _, test := range []struct{ kind, value string }{{".mem", strings.Repeat("torn", 1000)}, {".vlog", long}} {
		for _, part := range []int{1, 2, 3} {
			t.Run(fmt.Sprintf("%s %d of 4", test.kind, part), func(t *testing.T) {
				s := open(t, Options{Dir: t.TempDir()})
				put(t, s, "/short", "short")
				put(t, s, "/long", long)
				put(t, s, "/last", "last")
				settle(t, s)
				dir := image(t, s.opts.Dir)
				rev := put(t, s, "/torn", test.value)
				settle(t, s)
				after := image(t, s.opts.Dir)

				files, err := filepath.Glob(filepath.Join(dir, "*"+test.kind))
				if err != nil || len(files) != 1 {
					t.Fatal(files, err)
				}
				file := filepath.Base(files[0])
				old, err := os.ReadFile(files[0])
				if err != nil {
					t.Fatal(err)
				}
				data, err := os.ReadFile(filepath.Join(after, file))
				if err != nil {
					t.Fatal(err)
				}
				from, to := len(bytes.TrimRight(old, "\x00")), len(bytes.TrimRight(data, "\x00"))
				if to-from < len(test.value) {
					t.Fatalf("the entry is not in %s", file)
				}
				clear(data[from+(to-from)*part/4:])
				write(t, files[0], string(data))
				copyJournal(t, s.opts.Dir, dir)

				s = open(t, Options{Dir: dir})
				if got := s.Revision(); got != rev {
					t.Errorf("at revision %d, not %d", got, rev)
				}
				for key, want := range map[string]string{"/short": "short", "/long": long, "/last": "last", "/torn": test.value} {
					if r, err := s.Etcd().KV.Get(context.Background(), key); err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != want {
						t.Errorf("%s: %v", key, err)
					}
				}
				put(t, s, "/after", long)
			})
		}
	}
}

// What no crash leaves behind is refused, with the file's name, rather than
// guessed at.
func TestDamagedLog(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	put(t, s, "/a", "1")
	settle(t, s)
	dir := image(t, s.opts.Dir)
	files, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	end := len(bytes.TrimRight(data, "\x00"))
	copy(data[end:], bytes.Repeat([]byte{0xff}, 100))
	write(t, files[0], string(data))
	// In a process of its own: after this error Badger leaves goroutines behind.
	refusedElsewhere(t, dir, files[0])
}

// A directory that is open is another process's to leave alone.
func TestSecondProcess(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	rev := put(t, s, "/a", "1")
	refusedElsewhere(t, s.opts.Dir, ErrInUse.Error())
	if next := put(t, s, "/a", "2"); next != rev+1 {
		t.Errorf("revision %d after %d", next, rev)
	}
}

// refusedElsewhere opens a store in another process, which must end with an error
// that says so much.
func refusedElsewhere(t *testing.T, dir, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), crashChild+"="+dir)
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(said.String(), want) || !strings.Contains(said.String(), dir) {
		t.Fatalf("%v: %q", err, said.String())
	}
}

// A crash between the intent of a transaction and all of its changes.
func TestIntent(t *testing.T) {
	ctx := context.Background()
	for _, test := range []struct {
		name    string
		compact bool
		want    string
	}{
		{"torn", false, "[/a 3 new] [/b 4 new]"},
		{"long done", true, "[/a 5 later]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := open(t, Options{Dir: t.TempDir(), Retention: -1})
			put(t, s, "/a", "old")
			if test.compact {
				put(t, s, "/a", "new")
				put(t, s, "/a", "newer")
				put(t, s, "/a", "later")
				if _, err := s.Etcd().Compact(ctx, 5); err != nil {
					t.Fatal(err)
				}
			}
			var group []*pending
			for i, key := range []string{"/a", "/b"} {
				w := writer{s: s}
				var r result
				c, err := w.prepare(&op{kind: opPut, key: key, value: []byte("new")}, &r)
				if err != nil {
					t.Fatal(err)
				}
				c[0].rev = int64(3 + i)
				group = append(group, c...)
			}
			if err := s.disk.put(intentKey, appendChanges(nil, group), 4); err != nil {
				t.Fatal(err)
			}
			s = open(t, Options{Dir: image(t, s.opts.Dir), Retention: -1})
			r, err := s.Etcd().KV.Get(ctx, "/", clientv3.WithPrefix())
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, kv := range r.Kvs {
				got = append(got, fmt.Sprintf("[%s %d %s]", kv.Key, kv.ModRevision, kv.Value))
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("%v, not %s", got, test.want)
			}
		})
	}
}

func TestValueLogIsCollected(t *testing.T) {
	opts := Options{Dir: t.TempDir(), Retention: -1, logFile: 4 << 20}
	s := open(t, opts)
	ctx := context.Background()
	long := strings.Repeat("x", inline)
	for i := range 100 {
		put(t, s, fmt.Sprintf("/k/%d", i%4), fmt.Sprintf("%d %s", i, long))
	}
	settle(t, s)
	before := s.disk.valueLog()
	if _, err := s.Etcd().Compact(ctx, s.Revision()); err != nil {
		t.Fatal(err)
	}
	var merged int64
	if err := s.collect(&merged); err != nil {
		t.Fatal(err)
	}
	if after := s.disk.valueLog(); before < 40<<20 || after > before/3 {
		t.Errorf("the value log has %d bytes before and %d after", before, after)
	}
	for range 2 {
		for i := range 4 {
			want := fmt.Sprintf("%d %s", 96+i, long)
			if r, err := s.Etcd().KV.Get(ctx, fmt.Sprintf("/k/%d", i)); err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != want {
				t.Fatalf("/k/%d: %v", i, err)
			}
		}
		put(t, s, "/after", long)
		s.Close()
		s = open(t, opts)
	}
}
