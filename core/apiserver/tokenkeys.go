package apiserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"gopkg.in/go-jose/go-jose.v2/jwt"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/kubernetes/pkg/serviceaccount"
	"k8s.io/utils/clock"
)

// publishAhead is how long a key of tokens is published before it signs: those
// outside who have read the keys are told that they hold for so long.
const publishAhead = time.Hour

// legacyTokens is how long tokens live that an earlier release has signed, which
// kept no record: the longest that it gave to pods.
const legacyTokens = 366 * 24 * time.Hour

// tokenKeys sign the tokens of service accounts and verify them. A rotation
// publishes another key; an hour later that one signs, and the one before
// verifies until the last token that it has signed has ended.
//
// Their files are serviceaccount.key, which signs; serviceaccount.next, which
// will; serviceaccount-retired.pem, public keys that verify; and
// serviceaccount.until, when the last token of the first of them ends.
type tokenKeys struct {
	dir   string
	clock clock.PassiveClock

	mu        sync.Mutex
	key       *ecdsa.PrivateKey
	sign      serviceaccount.TokenGenerator // with key
	until     time.Time                     // no token of key ends later; zero: none was signed
	next      *ecdsa.PrivateKey             // nil: none waits
	from      time.Time                     // when next signs
	old       []oldKey
	listeners []serviceaccount.Listener
}

type oldKey struct {
	key   *ecdsa.PublicKey
	until time.Time
}

var (
	_ serviceaccount.TokenGenerator   = (*tokenKeys)(nil)
	_ serviceaccount.PublicKeysGetter = (*tokenKeys)(nil)
)

const tokenKeyName = "serviceaccount"

// noToken is the record of a key that has signed none.
const noToken = "1970-01-01T00:00:00Z"

// forEver is the end of tokens that have none.
var forEver = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

func (k *tokenKeys) path(suffix string) string { return filepath.Join(k.dir, tokenKeyName+suffix) }

func loadTokenKeys(dir string, clock clock.PassiveClock) (*tokenKeys, error) {
	k := &tokenKeys{dir: dir, clock: clock}
	known := false
	if dir != "" {
		_, err := os.Stat(k.path(".key"))
		known = err == nil
	}
	var err error
	if k.key, _, err = loadKey(dir, tokenKeyName+".key"); err != nil {
		return nil, err
	}
	if k.sign, err = serviceaccount.JWTTokenGenerator(issuer, k.key); err != nil {
		return nil, err
	}
	if dir == "" {
		return k, nil
	}
	if err := k.read(known); err != nil {
		return nil, fmt.Errorf("keys of the cluster: %w", err)
	}
	return k, nil
}

// read reads all files but the first. known tells that the first was there.
func (k *tokenKeys) read(known bool) error {
	text, err := os.ReadFile(k.path(".until"))
	switch {
	case err == nil:
		if k.until, err = time.Parse(time.RFC3339, string(text)); err != nil {
			return fmt.Errorf("read %s: %w", k.path(".until"), err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case known:
		k.until = k.clock.Now().Add(legacyTokens)
	default:
		if err := writeFile(k.path(".until"), []byte(noToken)); err != nil {
			return err
		}
	}
	data, err := os.ReadFile(k.path("-retired.pem"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if k.old, err = decodeOldKeys(k.path("-retired.pem"), data); err != nil {
		return err
	}
	data, err = os.ReadFile(k.path(".next"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return fmt.Errorf("%s holds no key: remove it", k.path(".next"))
	}
	if k.from, err = time.Parse(time.RFC3339, block.Headers[fromHeader]); err != nil {
		return fmt.Errorf("read %s: header %s: %w", k.path(".next"), fromHeader, err)
	}
	if k.next, err = x509.ParseECPrivateKey(block.Bytes); err != nil {
		return fmt.Errorf("read %s: %w", k.path(".next"), err)
	}
	if k.next.Equal(k.key) { // the end of a promotion was cut off
		k.next = nil
		return os.Remove(k.path(".next"))
	}
	return nil
}

// fromHeader is when a key signs.
const fromHeader = "From"

func decodeOldKeys(path string, data []byte) (out []oldKey, err error) {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return out, nil
		}
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		key, ok := parsed.(*ecdsa.PublicKey)
		if !ok {
			return nil, fmt.Errorf("read %s: a %T, an ECDSA key is needed", path, parsed)
		}
		until, err := time.Parse(time.RFC3339, block.Headers[untilHeader])
		if err != nil {
			return nil, fmt.Errorf("read %s: header %s: %w", path, untilHeader, err)
		}
		out = append(out, oldKey{key, until})
	}
}

func encodeOldKeys(all []oldKey) ([]byte, error) {
	var out []byte
	for _, o := range all {
		der, err := x509.MarshalPKIXPublicKey(o.key)
		if err != nil {
			return nil, err
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: keyutil.PublicKeyBlockType, Headers: map[string]string{untilHeader: o.until.UTC().Format(time.RFC3339)}, Bytes: der})...)
	}
	return out, nil
}

// GenerateToken signs with the key whose time it is, and keeps a record of when
// the last token ends before the token is given away.
func (k *tokenKeys) GenerateToken(ctx context.Context, claims *jwt.Claims, private any) (string, error) {
	k.mu.Lock()
	if err := k.promote(); err != nil {
		k.mu.Unlock()
		return "", fmt.Errorf("the next key of tokens: %w", err)
	}
	ends := forEver
	if claims.Expiry != nil {
		ends = claims.Expiry.Time()
	}
	if ends.After(k.until) {
		// In whole days: a write a day and not one a token.
		until := ends.Add(24 * time.Hour).Truncate(24 * time.Hour)
		if k.dir != "" {
			if err := writeFile(k.path(".until"), []byte(until.UTC().Format(time.RFC3339))); err != nil {
				k.mu.Unlock()
				return "", fmt.Errorf("note when tokens end: %w", err)
			}
		}
		k.until = until
	}
	sign := k.sign
	k.mu.Unlock()
	return sign.GenerateToken(ctx, claims, private)
}

// rotate publishes a new key and returns when it signs. One that waits already
// is kept.
func (k *tokenKeys) rotate() (time.Time, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.promote(); err != nil {
		return time.Time{}, err
	}
	if k.next != nil {
		return k.from, nil
	}
	next, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return time.Time{}, err
	}
	from := k.clock.Now().Add(publishAhead)
	if k.dir != "" {
		der, err := x509.MarshalECPrivateKey(next)
		if err != nil {
			return time.Time{}, err
		}
		data := pem.EncodeToMemory(&pem.Block{Type: keyutil.ECPrivateKeyBlockType, Headers: map[string]string{fromHeader: from.UTC().Format(time.RFC3339)}, Bytes: der})
		if err := writeFile(k.path(".next"), data); err != nil {
			return time.Time{}, err
		}
	}
	k.next, k.from = next, from
	return from, nil
}

// promote lets the next key sign when its time has come. k.mu is held.
func (k *tokenKeys) promote() error {
	if k.next == nil || k.clock.Now().Before(k.from) {
		return nil
	}
	sign, err := serviceaccount.JWTTokenGenerator(issuer, k.next)
	if err != nil {
		return err
	}
	old := slices.Clone(k.old)
	if k.clock.Now().Before(k.until) {
		old = append([]oldKey{{&k.key.PublicKey, k.until}}, old...)
	}
	if k.dir != "" {
		// In this order a crash leaves a key that verifies twice, and never one that is lost.
		data, err := encodeOldKeys(old)
		if err != nil {
			return err
		}
		signing, err := keyutil.MarshalPrivateKeyToPEM(k.next)
		if err != nil {
			return err
		}
		if err := writeFile(k.path("-retired.pem"), data); err != nil {
			return err
		}
		if err := errors.Join(writeFile(k.path(".until"), []byte(noToken)), writeFile(k.path(".key"), signing)); err != nil {
			return err
		}
		if err := os.Remove(k.path(".next")); err != nil {
			return err
		}
	}
	k.key, k.sign, k.next, k.old, k.until = k.next, sign, nil, old, time.Time{}
	return nil
}

// sweep does what the clock asks for, and tells whether something has changed.
func (k *tokenKeys) sweep() (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	waited := k.next != nil
	if err := k.promote(); err != nil {
		return false, err
	}
	now := k.clock.Now()
	left := slices.DeleteFunc(slices.Clone(k.old), func(o oldKey) bool { return !now.Before(o.until) })
	if len(left) == len(k.old) {
		return waited && k.next == nil, nil
	}
	if k.dir != "" {
		data, err := encodeOldKeys(left)
		if err != nil {
			return false, err
		}
		if err := writeFile(k.path("-retired.pem"), data); err != nil {
			return false, err
		}
	}
	k.old = left
	return true, nil
}

// AddListener implements serviceaccount.PublicKeysGetter.
func (k *tokenKeys) AddListener(l serviceaccount.Listener) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.listeners = append(k.listeners, l)
}

func (k *tokenKeys) tell() {
	k.mu.Lock()
	listeners := slices.Clone(k.listeners)
	k.mu.Unlock()
	for _, l := range listeners {
		l.Enqueue()
	}
}

// GetCacheAgeMaxSeconds implements serviceaccount.PublicKeysGetter.
func (k *tokenKeys) GetCacheAgeMaxSeconds() int { return int(publishAhead.Seconds()) }

// GetPublicKeys implements serviceaccount.PublicKeysGetter.
func (k *tokenKeys) GetPublicKeys(ctx context.Context, id string) []serviceaccount.PublicKey {
	k.mu.Lock()
	now := k.clock.Now()
	keys := []any{k.key.Public()}
	if k.next != nil {
		keys = append(keys, k.next.Public())
	}
	for _, o := range k.old {
		if now.Before(o.until) {
			keys = append(keys, o.key)
		}
	}
	k.mu.Unlock()
	static, err := serviceaccount.StaticPublicKeysGetter(keys)
	if err != nil { // a key that cannot be marshalled: none of ours
		return nil
	}
	return static.GetPublicKeys(ctx, id)
}
