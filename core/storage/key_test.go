package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const secret = "the password is hunter2"

// holds tells whether any file of a directory has the secret in the clear.
func holds(t *testing.T, dir string) bool {
	t.Helper()
	found := false
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		found = found || bytes.Contains(data, []byte(secret))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// has checks a key's states, the newest last, and gives the store's revision.
func has(t *testing.T, s *Store, key string, values ...string) {
	t.Helper()
	versions := s.Versions(key)
	if len(versions) != len(values) {
		t.Fatalf("%s has %v, not %d", key, versions, len(values))
	}
	for i, v := range versions {
		if r, err := s.Etcd().KV.Get(context.Background(), key, clientv3.WithRev(v.Revision)); err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != values[i] {
			t.Errorf("%s at %d: %v, %v, not %s", key, v.Revision, r, err, values[i])
		}
	}
}

// A store is encrypted from its beginning, gets a new key, and is read with that
// one alone.
func TestEncryption(t *testing.T) {
	base := t.TempDir()
	dir, key := filepath.Join(base, "store"), filepath.Join(base, "keys", "store.key")
	long := secret + strings.Repeat("long", inline/3) // for the value log
	opts := Options{Dir: dir, KeyFile: key, Retention: -1}
	s := open(t, opts)
	put(t, s, "/a", secret)
	put(t, s, "/long", long)
	if err := RotateKey(dir, key); !errors.Is(err, ErrInUse) {
		t.Errorf("the key of an open store was changed: %v", err)
	}
	s.Close()
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the key's file: %v, %v", info, err)
	}
	if holds(t, dir) {
		t.Fatal("the secret is in the clear")
	}
	before, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := RotateKey(dir, key); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(key)
	if err != nil || bytes.Equal(before, after) {
		t.Fatalf("the key is the same, %v", err)
	}
	s = open(t, opts)
	has(t, s, "/a", secret)
	has(t, s, "/long", long)
	put(t, s, "/a", secret+" no more")
	s.Close()

	old := filepath.Join(base, "old.key")
	write(t, old, string(before))
	open644 := filepath.Join(base, "open.key")
	write(t, open644, string(after))
	if err := os.Chmod(open644, 0o644); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(base, "nonsense.key"), "hunter2")
	for name, test := range map[string]struct{ file, want string }{
		"no key":      {"", "name the file with its key"},
		"the old key": {old, "is not its key"},
		"open":        {open644, "chmod 600"},
		"nonsense":    {filepath.Join(base, "nonsense.key"), "holds no key"},
		"missing":     {filepath.Join(base, "missing.key"), "no such file"},
	} {
		if s, err := Open(Options{Dir: dir, KeyFile: test.file}); err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	// A rotation that was cut short after the new key was in force.
	if err := os.Rename(key, key+nextKey); err != nil {
		t.Fatal(err)
	}
	write(t, key, string(before))
	s = open(t, opts)
	has(t, s, "/a", secret, secret+" no more")
	s.Close()
	// And one that was cut short before.
	write(t, key+nextKey, string(before))
	s = open(t, opts)
	put(t, s, "/b", "1")
	s.Close()
	if err := RotateKey(dir, key); err != nil {
		t.Error(err)
	}
	s = open(t, opts)
	has(t, s, "/b", "1")
}

// Rewrite encrypts what was in the clear, changes all keys, and decrypts, with
// all history, leases and times.
func TestRewrite(t *testing.T) {
	ctx := context.Background()
	base := t.TempDir()
	dir, key := filepath.Join(base, "store"), filepath.Join(base, "store.key")
	s := open(t, Options{Dir: dir, Retention: -1})
	lease, err := s.Etcd().Grant(ctx, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Etcd().Put(ctx, "/leased", secret, clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("long", inline*3/4) // more than what progress is told of
	put(t, s, "/a", secret)
	put(t, s, "/a", "2")
	put(t, s, "/long", long)
	put(t, s, "/gone", "1")
	if _, err := s.Etcd().Delete(ctx, "/gone"); err != nil {
		t.Fatal(err)
	}
	rev := s.Revision()
	if err := Rewrite(dir, "", key, nil); !errors.Is(err, ErrInUse) {
		t.Errorf("an open store was rewritten: %v", err)
	}
	s.Close()
	for _, step := range []struct{ from, to string }{{"", key}, {key, key}, {key, ""}} {
		told := int64(0)
		if err := Rewrite(dir, step.from, step.to, func(done, total int64) {
			if done < told || done > total {
				t.Errorf("%d of %d after %d", done, total, told)
			}
			told = done
		}); err != nil {
			t.Fatal(err)
		}
		if told == 0 {
			t.Error("no progress was told")
		}
		if encrypted := step.to != ""; holds(t, dir) == encrypted {
			t.Errorf("encrypted %v, and the secret is there: %v", encrypted, !encrypted)
		}
		s = open(t, Options{Dir: dir, KeyFile: step.to, Retention: -1})
		has(t, s, "/a", secret, "2")
		has(t, s, "/long", long)
		if v := s.Versions("/gone"); len(v) != 2 || !v[1].Deleted {
			t.Errorf("/gone was %v", v)
		}
		if s.Revision() != rev {
			t.Errorf("at revision %d, not %d", s.Revision(), rev)
		}
		if l, err := s.Etcd().TimeToLive(ctx, lease.ID); err != nil || len(l.Keys) != 1 {
			t.Errorf("the lease: %v, %v", l, err)
		}
		s.Close()
	}
	if left, err := filepath.Glob(filepath.Join(base, "*store*")); err != nil || fmt.Sprint(left) != fmt.Sprint([]string{dir, key}) {
		t.Errorf("%v is left, %v", left, err)
	}
	if s, err := Open(Options{Dir: dir, KeyFile: key}); err == nil || !strings.Contains(err.Error(), "is not encrypted") {
		t.Errorf("a key for what needs none: %v, %v", s, err)
	}
}

// A directory that the first format's program wrote is brought up to date.
func TestMigration(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("tar", "-C", dir, "-xzf", "testdata/format-1.tar.gz").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i := range 2 {
		var told []string
		s := open(t, Options{Dir: dir, Retention: -1, Opening: func(what string, done, total int64) {
			told = append(told, fmt.Sprintf("%s %d/%d", what, done, total))
		}})
		if i > 0 != (told == nil) || i == 0 && told[len(told)-1] != fmt.Sprintf("format 1 to %d %d/%d", format, format-1, format-1) {
			t.Errorf("it told %v", told)
		}
		has(t, s, "/a", "1", "2")
		has(t, s, "/leased", "1")
		has(t, s, "/g/2", "g")
		if v := s.Versions("/gone"); len(v) != 2 || !v[0].Time.IsZero() {
			t.Errorf("/gone was %v", v)
		}
		if h := s.History(); h.Since.IsZero() || len(s.times.marks) < 2 {
			t.Errorf("%v with %v", h, s.times.marks)
		}
		s.Close()
		if data, err := os.ReadFile(filepath.Join(dir, formatFile)); err != nil || string(data) != "quaymaster-store 3\n" {
			t.Errorf("%q, %v", data, err)
		}
	}
}

func FuzzKeyFile(f *testing.F) {
	f.Add([]byte(keyName + " " + strings.Repeat("ab", keySize)))
	f.Add([]byte(keyName + " zz"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "key")
		write(t, path, string(data))
		if key, err := readKey(path); err == nil && len(key) != keySize {
			t.Fatalf("a key of %d bytes", len(key))
		}
	})
}
