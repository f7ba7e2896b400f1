package storage

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// A store's master key encrypts the data keys, by AES-256, that Badger makes
// every ten days and encrypts what it writes with. It is in a file of its own: a
// line with keyName and 32 bytes in hexadecimal. Lines below it are keys that
// came before it: they open backups.
const (
	keyName     = "quaymaster-store-key"
	keySize     = 32
	keyRotation = 10 * 24 * time.Hour
	nextKey     = ".next" // suffix of the new key while it takes the old one's place
)

// readKeys reads a key file, which nobody but its owner may be able to read. The
// first key is the one in force.
func readKeys(path string) (keys [][]byte, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s may be read by others than its owner (mode %#o): chmod 600 it", path, info.Mode().Perm())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(strings.TrimSpace(string(data))) {
		text, ok := strings.CutPrefix(strings.TrimSpace(line), keyName+" ")
		key, err := hex.DecodeString(text)
		if !ok || err != nil || len(key) != keySize {
			return nil, fmt.Errorf("%s holds no key: a line must be %q and %d bytes in hexadecimal", path, keyName, keySize)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s is empty: it must be a line of %q and %d bytes in hexadecimal", path, keyName, keySize)
	}
	return keys, nil
}

func readKey(path string) ([]byte, error) {
	keys, err := readKeys(path)
	if err != nil {
		return nil, err
	}
	return keys[0], nil
}

// NewKey makes a key file, which must not exist, for Options.KeyFile and Keys.
func NewKey(path string) error {
	if _, err := makeKey(path); err != nil {
		return fmt.Errorf("storage: make a key: %w", err)
	}
	return nil
}

// makeKey writes a new key to a file that must not exist, above those that were
// before it.
func makeKey(path string, before ...[]byte) (key []byte, err error) {
	key = make([]byte, keySize)
	rand.Read(key)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	for _, k := range slices.Concat([][]byte{key}, before) {
		_, failed := fmt.Fprintf(file, "%s %s\n", keyName, hex.EncodeToString(k))
		err = errors.Join(err, failed)
	}
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return nil, err
	}
	return key, syncDir(filepath.Dir(path))
}

// fits tells whether a key, or none, opens a directory's data keys.
func fits(dir string, key []byte) error {
	registry, err := badger.OpenKeyRegistry(badger.KeyRegistryOptions{
		Dir: dir, ReadOnly: true, EncryptionKey: key, EncryptionKeyRotationDuration: keyRotation,
	})
	if err == nil {
		err = registry.Close()
	}
	return err
}

// unlock gives the master key of a directory, nil when it is not encrypted. The
// key of a new store is made when its file is missing. A rotation that was cut
// short is finished.
func unlock(dir, path string) ([]byte, error) {
	fresh := false
	if _, err := os.Stat(filepath.Join(dir, badger.KeyRegistryFileName)); errors.Is(err, fs.ErrNotExist) {
		fresh = true
	}
	if path == "" {
		if !fresh && errors.Is(fits(dir, nil), badger.ErrEncryptionKeyMismatch) {
			return nil, fmt.Errorf("storage: %s is %w: name the file with its key (--store-key FILE)", dir, ErrEncrypted)
		}
		return nil, nil
	}
	key, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) && fresh {
		if key, err = makeKey(path); err == nil {
			return key, nil
		}
	}
	next, nextErr := readKey(path + nextKey)
	if fresh && err == nil {
		return key, nil
	}
	if err == nil && fits(dir, key) == nil {
		return key, nil
	}
	if nextErr == nil && fits(dir, next) == nil {
		if err := os.Rename(path+nextKey, path); err != nil {
			return nil, fmt.Errorf("storage: key of %s: %w", dir, err)
		}
		return next, syncDir(filepath.Dir(path))
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("storage: key of %s: %w", dir, err)
	case fits(dir, nil) == nil:
		return nil, fmt.Errorf("storage: %s is not encrypted: encrypt it first, or name no key", dir)
	default:
		return nil, fmt.Errorf("storage: %s: %w: %s is not its key", dir, ErrEncrypted, path)
	}
}

// RotateKey gives a store a new master key, which takes the old one's place in
// the file; the old one stays below it, for the backups that it encrypts, until
// somebody removes its line. The store must be closed. What is stored is not written anew: the
// keys it is encrypted with are encrypted with the new key. Rewrite does both. A
// rotation that is cut short is finished by the next Open.
func RotateKey(dir, path string) error {
	unlocked, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer unlocked()
	if path == "" {
		return errors.New("storage: rotate the key: name its file")
	}
	old, err := unlock(dir, path)
	if err != nil {
		return err
	}
	if err := os.Remove(path + nextKey); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("storage: rotate the key: %w", err)
	}
	before, err := readKeys(path)
	if err != nil {
		return fmt.Errorf("storage: rotate the key: %w", err)
	}
	fresh, err := makeKey(path+nextKey, before...)
	if err != nil {
		return fmt.Errorf("storage: rotate the key: %w", err)
	}
	options := badger.KeyRegistryOptions{Dir: dir, ReadOnly: true, EncryptionKey: old, EncryptionKeyRotationDuration: keyRotation}
	registry, err := badger.OpenKeyRegistry(options)
	if err == nil {
		options.EncryptionKey = fresh
		err = errors.Join(badger.WriteKeyRegistry(registry, options), registry.Close())
	}
	if err == nil {
		err = os.Rename(path+nextKey, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("storage: rotate the key: %w", err)
	}
	return nil
}
