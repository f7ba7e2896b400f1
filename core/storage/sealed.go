package storage

import (
	"bufio"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"filippo.io/age"
	"golang.org/x/crypto/chacha20poly1305"
)

// An encrypted backup is a backup in the clear within age's file format
// (age-encryption.org/v1), within the records of a backup of its own: what its
// head says, and that it is whole, can be told without the key. The one stanza of
// age's header is
//
//	-> quaymaster-store-key ID SALT
//	file key, sealed with ChaCha20-Poly1305 and no nonce, with the key that
//	HKDF-SHA-256 makes of the store's key, SALT (16 bytes, base64) and stanzaInfo
const (
	stanzaType = keyName
	stanzaInfo = "quaymaster backup file key"
	idInfo     = "quaymaster store key id"
)

// keyID names a key and tells nothing of it.
func keyID(key []byte) string {
	id, err := hkdf.Key(sha256.New, key, nil, idInfo, 8)
	if err != nil {
		panic(err) // eight bytes are not too many
	}
	return hex.EncodeToString(id)
}

// Keys encrypt backups, the first of them, and open them, each. The zero value
// does neither.
type Keys struct{ keys [][]byte }

// ReadKeys reads the keys of files as Options.KeyFile names them: the present
// one and those before it.
func ReadKeys(files ...string) (k Keys, err error) {
	for _, file := range files {
		keys, err := readKeys(file)
		if err != nil {
			return k, fmt.Errorf("storage: read a key: %w", err)
		}
		k.keys = append(k.keys, keys...)
	}
	return k, nil
}

// find gives the key of that name, or says which is missing.
func (k Keys) find(id string) ([]byte, error) {
	have := make([]string, len(k.keys))
	for i, key := range k.keys {
		if have[i] = keyID(key); have[i] == id {
			return key, nil
		}
	}
	if len(have) == 0 {
		return nil, fmt.Errorf("%w with key %s: name the file that holds it", ErrEncrypted, id)
	}
	return nil, fmt.Errorf("%w with key %s, which is not among those given: %s", ErrEncrypted, id, strings.Join(have, ", "))
}

// Verify reads backups, an increment after what it follows, and tells what they
// hold. Without keys it tells of an encrypted one whether it is whole, and does
// not look into it: Info.Changes is 0. It fails with ErrDamaged, ErrOrder,
// ErrNewerFormat, or ErrEncrypted when there are keys and none is the right one.
// The first may be an increment. A reader with a method Name() string is called
// by that name.
func (k Keys) Verify(files ...io.Reader) (Info, error) {
	return chain{keys: k, closed: len(k.keys) == 0}.read(files, func(*restored) error { return nil })
}

// Encrypt verifies a backup and copies it to w, encrypted with the first key. One
// that is encrypted is copied as it is, and so is any when there are no keys.
func (k Keys) Encrypt(w io.Writer, backup io.Reader) (Info, error) {
	to := &turnout{}
	c := chain{keys: k, closed: len(k.keys) == 0, head: func(info Info) error {
		if info.Key != "" || len(k.keys) == 0 {
			return to.turn(w, nil)
		}
		sealed, err := newSealer(w, info, k.keys[0])
		if err != nil {
			return err
		}
		return to.turn(sealed, sealed)
	}}
	info, err := c.read([]io.Reader{io.TeeReader(backup, to)}, func(*restored) error { return nil })
	if err == nil && to.close != nil {
		if err = to.close.Close(); err == nil {
			info.Key = keyID(k.keys[0])
		}
	}
	return info, err
}

// turnout keeps what is written until it is known where to.
type turnout struct {
	kept  []byte
	to    io.Writer
	close io.Closer
}

func (t *turnout) Write(b []byte) (int, error) {
	if t.to == nil {
		t.kept = append(t.kept, b...)
		return len(b), nil
	}
	return t.to.Write(b)
}

func (t *turnout) turn(to io.Writer, closer io.Closer) error {
	t.to, t.close = to, closer
	_, err := to.Write(t.kept)
	t.kept = nil
	return err
}

// sealer encrypts the backup that is written to it. What it writes is complete
// after Close.
type sealer struct {
	out    *encoder
	gather *bufio.Writer // gathers age's small writes into records
	age    io.WriteCloser
}

func newSealer(w io.Writer, info Info, key []byte) (*sealer, error) {
	s := &sealer{out: &encoder{w: w}}
	info.Key = keyID(key)
	s.out.head(&info)
	s.gather = bufio.NewWriterSize(recordWriter{s.out}, 256<<10)
	var err error
	s.age, err = age.Encrypt(s.gather, storeKey(key))
	return s, err
}

func (s *sealer) Write(b []byte) (int, error) { return s.age.Write(b) }

func (s *sealer) Close() error {
	if err := errors.Join(s.age.Close(), s.gather.Flush()); err != nil {
		return err
	}
	s.out.trailer()
	return s.out.flush()
}

// recordWriter makes a record of every write, which is not above maxPayload.
type recordWriter struct{ *encoder }

func (w recordWriter) Write(b []byte) (int, error) {
	w.open(recordSealed)
	w.buf = append(w.buf, b...)
	w.close()
	return len(b), w.flush()
}

// storeKey is age's recipient and identity of a store's key.
type storeKey []byte

func (k storeKey) wrapper(salt []byte) ([]byte, error) {
	return hkdf.Key(sha256.New, k, salt, stanzaInfo, chacha20poly1305.KeySize)
}

// Wrap implements age.Recipient.
func (k storeKey) Wrap(fileKey []byte) ([]*age.Stanza, error) {
	salt := make([]byte, 16)
	rand.Read(salt)
	wrapper, err := k.wrapper(salt)
	if err != nil {
		return nil, err
	}
	aead, err := chacha20poly1305.New(wrapper)
	if err != nil {
		return nil, err
	}
	body := aead.Seal(nil, make([]byte, aead.NonceSize()), fileKey, nil) // the key is used once
	return []*age.Stanza{{Type: stanzaType, Args: []string{keyID(k), base64.RawStdEncoding.EncodeToString(salt)}, Body: body}}, nil
}

// Unwrap implements age.Identity.
func (k storeKey) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	for _, s := range stanzas {
		if s.Type != stanzaType || len(s.Args) != 2 || s.Args[0] != keyID(k) {
			continue
		}
		salt, err := base64.RawStdEncoding.DecodeString(s.Args[1])
		if err != nil {
			return nil, err
		}
		wrapper, err := k.wrapper(salt)
		if err != nil {
			return nil, err
		}
		aead, err := chacha20poly1305.New(wrapper)
		if err != nil {
			return nil, err
		}
		return aead.Open(nil, make([]byte, aead.NonceSize()), s.Body, nil)
	}
	return nil, age.ErrIncorrectIdentity
}

// sealedReader reads what the records of an encrypted backup hold.
type sealedReader struct {
	d    *decoder
	left []byte
	err  error
}

func (r *sealedReader) Read(b []byte) (int, error) {
	for len(r.left) == 0 && r.err == nil {
		var kind byte
		switch kind, r.left, r.err = r.d.record(); {
		case r.err != nil:
		case kind == recordTrailer:
			if r.err = r.d.end(r.left); r.err == nil {
				r.err = io.EOF
			}
			r.left = nil
		case kind != recordSealed:
			r.err = damaged("record %d is of the kind %q among encrypted ones", r.d.count, kind)
		}
	}
	if r.err != nil {
		return 0, r.err
	}
	n := copy(b, r.left)
	r.left = r.left[n:]
	return n, nil
}

// openedReader tells damage, which is age's to find, from what its source says.
type openedReader struct {
	io.Reader
	from *sealedReader
}

func (r openedReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	return n, r.from.cause(err)
}

func (r *sealedReader) cause(err error) error {
	switch {
	case err == nil, err == io.EOF && errors.Is(r.err, io.EOF): //nolint:errorlint // age wraps the one that is damage
		return err
	case r.err != nil && !errors.Is(r.err, io.EOF):
		return r.err
	}
	return damaged("%w", err)
}

// sealed reads the rest of an encrypted backup: through to what it holds with its
// key, else as far as it is whole when that is enough.
func (d *decoder) sealed(c chain, do func(*restored) error) error {
	from := &sealedReader{d: d}
	key, err := c.keys.find(d.info.Key)
	if err != nil {
		if c.closed {
			_, err = io.Copy(io.Discard, from)
		}
		return err
	}
	opened, err := age.Decrypt(from, storeKey(key))
	if err != nil {
		return from.cause(err)
	}
	in := &decoder{r: bufio.NewReaderSize(openedReader{opened, from}, 256<<10), done: d.done}
	if err := in.head(); err != nil {
		return err
	}
	out := d.info
	if in.info.Key != "" || in.info.Store != out.Store || in.info.Since != out.Since || in.info.Revision != out.Revision || !in.info.Created.Equal(out.Created) {
		return damaged("its head is not the one that was encrypted")
	}
	err = in.records(do)
	d.info.Changes = in.info.Changes
	return err
}

// with adds the keys of a file, if it has been made.
func (k Keys) with(file string) Keys {
	keys, err := readKeys(file)
	if err != nil {
		return k
	}
	return Keys{slices.Concat(k.keys, keys)}
}
