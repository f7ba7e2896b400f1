package storage

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

func keysOf(t testing.TB, files ...string) Keys {
	t.Helper()
	k, err := ReadKeys(files...)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sealedChain gives backups of an encrypted store, the full one made with a key
// before the one that is in force, and what the store holds.
func sealedChain(t *testing.T, key string) (full, increment *bytes.Buffer, want []*mvccpb.KeyValue, old string) {
	t.Helper()
	opts := Options{Dir: filepath.Join(t.TempDir(), "store"), KeyFile: key, Retention: -1}
	s := open(t, opts)
	put(t, s, "/a", secret)
	put(t, s, "/long", strings.Repeat(secret, 5000))
	full, rev := sealedBackup(t, s, 0)
	s.Close()
	old = keyID(s.key)
	if err := RotateKey(opts.Dir, key); err != nil {
		t.Fatal(err)
	}
	s = open(t, opts)
	put(t, s, "/b", secret)
	increment, _ = sealedBackup(t, s, rev)
	return full, increment, contents(t, s, 0), old
}

func sealedBackup(t testing.TB, s *Store, since int64) (*bytes.Buffer, int64) {
	t.Helper()
	var file bytes.Buffer
	rev, err := s.Backup(context.Background(), &file, since)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(file.Bytes(), []byte(secret[:16])) {
		t.Error("the secret is in the backup in the clear")
	}
	return &file, rev
}

func TestEncryptedBackups(t *testing.T) {
	base := t.TempDir()
	key, other, oldOnly, newOnly := filepath.Join(base, "store.key"), filepath.Join(base, "other.key"), filepath.Join(base, "old.key"), filepath.Join(base, "new.key")
	full, increment, want, old := sealedChain(t, key)
	if err := NewKey(other); err != nil {
		t.Fatal(err)
	}
	ring, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(ring), "\n")
	write(t, newOnly, lines[0])
	write(t, oldOnly, lines[1])
	files := []*bytes.Buffer{full, increment}

	if info, err := Verify(again(files)...); err != nil || info.Changes != 0 || info.Key == "" || info.Key == old || info.Bytes != int64(full.Len()+increment.Len()) {
		t.Errorf("without a key: %+v, %v", info, err)
	}
	if info, err := keysOf(t, key).Verify(again(files)...); err != nil || info.Changes != 3 {
		t.Errorf("with the key: %+v, %v", info, err)
	}
	if _, err := keysOf(t, newOnly).Verify(again(files)...); !errors.Is(err, ErrEncrypted) || !strings.Contains(err.Error(), old) {
		t.Errorf("with the newer key: %v, the missing one is %s", err, old)
	}

	for name, test := range map[string]struct {
		opts RestoreOptions
		want string // of the error
	}{
		"no key of the new store": {RestoreOptions{Keys: keysOf(t, key)}, ErrClear.Error()},
		"another key":             {RestoreOptions{KeyFile: other}, old},
		"no key":                  {RestoreOptions{Clear: true}, old},
		"the newer key":           {RestoreOptions{KeyFile: newOnly}, old},
		"the ring":                {RestoreOptions{KeyFile: key}, ""},
		"two files":               {RestoreOptions{KeyFile: newOnly, Keys: keysOf(t, oldOnly)}, ""},
		"a key to be made":        {RestoreOptions{KeyFile: filepath.Join(base, "made.key"), Keys: keysOf(t, key)}, ""},
		"into the clear":          {RestoreOptions{Keys: keysOf(t, key), Clear: true}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			test.opts.Dir = filepath.Join(parent, "restored")
			_, err := Restore(test.opts, again(files)...)
			if test.want != "" {
				if !errors.Is(err, ErrEncrypted) && !errors.Is(err, ErrClear) || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%v, not with %q", err, test.want)
				}
				if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
					t.Errorf("%v is left, %v", left, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if clear := test.opts.KeyFile == ""; holds(t, test.opts.Dir) != clear {
				t.Errorf("in the clear %v, and the secret is there: %v", clear, !clear)
			}
			r := open(t, Options{Dir: test.opts.Dir, KeyFile: test.opts.KeyFile, Retention: -1})
			same(t, contents(t, r, 0), want)
		})
	}

	unmade := filepath.Join(base, "unmade.key")
	if _, err := Restore(RestoreOptions{Dir: filepath.Join(base, "x"), KeyFile: unmade}, again(files)...); !errors.Is(err, ErrEncrypted) {
		t.Error(err)
	}
	if _, err := os.Stat(unmade); err == nil {
		t.Error("a key was made for nothing")
	}
}

// A backup in the clear is encrypted on its way; a fork's is as its parent's.
func TestEncryptBackups(t *testing.T) {
	key := filepath.Join(t.TempDir(), "store.key")
	if err := NewKey(key); err != nil {
		t.Fatal(err)
	}
	if err := NewKey(key); !errors.Is(err, os.ErrExist) {
		t.Errorf("a key was overwritten: %v", err)
	}
	keys := keysOf(t, key)
	s := open(t, Options{Retention: -1})
	put(t, s, "/a", secret)
	clear, _ := backup(t, s, 0)
	var sealed, twice, none bytes.Buffer
	info, err := keys.Encrypt(&sealed, bytes.NewReader(clear.Bytes()))
	if err != nil || info.Key != keyID(keys.keys[0]) || info.Changes != 1 || bytes.Contains(sealed.Bytes(), []byte(secret)) {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := keys.Encrypt(&twice, bytes.NewReader(sealed.Bytes())); err != nil || !bytes.Equal(twice.Bytes(), sealed.Bytes()) {
		t.Errorf("encrypted twice: %v", err)
	}
	if _, err := (Keys{}).Encrypt(&none, bytes.NewReader(clear.Bytes())); err != nil || !bytes.Equal(none.Bytes(), clear.Bytes()) {
		t.Errorf("copied: %v", err)
	}
	if _, err := keys.Encrypt(io.Discard, bytes.NewReader(clear.Bytes()[:clear.Len()-1])); !errors.Is(err, ErrDamaged) {
		t.Errorf("what is cut short: %v", err)
	}
	dir := filepath.Join(t.TempDir(), "restored")
	if _, err := Restore(RestoreOptions{Dir: dir, KeyFile: key}, &sealed); err != nil {
		t.Fatal(err)
	}
	r := open(t, Options{Dir: dir, KeyFile: key, Retention: -1})
	same(t, contents(t, r, 0), contents(t, s, 0))

	f, err := r.Fork(r.Revision(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sealedBackup(t, f, 0)
}

func TestEncryptedBackupDamageIsFound(t *testing.T) {
	key := filepath.Join(t.TempDir(), "store.key")
	_, file, _, _ := sealedChain(t, key)
	keys := keysOf(t, key)
	data := file.Bytes()
	for at := range data {
		bad := bytes.Clone(data)
		bad[at] ^= 1
		for _, k := range []Keys{{}, keys} {
			if _, err := k.Verify(bytes.NewReader(bad)); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat) {
				t.Errorf("byte %d: %v", at, err)
			}
			if _, err := k.Verify(bytes.NewReader(data[:at])); !errors.Is(err, ErrDamaged) {
				t.Errorf("cut at %d: %v", at, err)
			}
		}
	}
	if _, err := keys.Verify(bytes.NewReader(append(bytes.Clone(data), 0))); !errors.Is(err, ErrDamaged) {
		t.Errorf("more: %v", err)
	}
	// Who makes the checksums right again is found out by the key.
	for at := len(backupMagic) + 2; at < len(data); {
		n := int(binary.LittleEndian.Uint32(data[at+1:]))
		for i := at + recordFrame; i < at+recordFrame+n; i++ {
			bad := bytes.Clone(data)
			bad[i] ^= 1
			resum(bad)
			if _, err := keys.Verify(bytes.NewReader(bad)); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrEncrypted) {
				t.Errorf("byte %d, resummed: %v", i, err)
			}
		}
		at += recordFrame + n + 4
	}
	// What fails to be read is not damage.
	lost := errors.New("the network is gone")
	cut := io.MultiReader(bytes.NewReader(data[:len(data)/2]), iotest.ErrReader(lost))
	if _, err := keys.Verify(cut); !errors.Is(err, lost) || errors.Is(err, ErrDamaged) {
		t.Errorf("%v", err)
	}
}

func FuzzVerifyEncrypted(f *testing.F) {
	key := filepath.Join(f.TempDir(), "store.key")
	if err := NewKey(key); err != nil {
		f.Fatal(err)
	}
	keys := keysOf(f, key)
	s := open(f, Options{Retention: -1})
	put(f, s, "/a", "x")
	file, _ := backup(f, s, 0)
	var sealed bytes.Buffer
	if _, err := keys.Encrypt(&sealed, file); err != nil {
		f.Fatal(err)
	}
	f.Add(sealed.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		info, err := keys.Verify(bytes.NewReader(data))
		if err == nil && info.Bytes != int64(len(data)) {
			t.Errorf("%+v of %d bytes", info, len(data))
		}
	})
}
