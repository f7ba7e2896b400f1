package apiserver

import (
	"bytes"
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
	"time"

	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

// retired is an authority that signs no more. Until its end it is trusted, and
// its bridge, the certificate that it has signed for its successor, leads those
// who know only it to what the successor signs.
type retired struct {
	cert, bridge *x509.Certificate
	until        time.Time
}

// untilHeader is the end of a block in a file of what is retired.
const untilHeader = "Until"

// headerLess are blocks as clients read them: they skip those with headers.
func headerLess(all ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range all {
		out = append(out, certificatePEM(c.Raw)...)
	}
	return out
}

// trusted are the authority and those before it whose time is not over.
func (a *authority) trusted(now time.Time) []*x509.Certificate {
	out := []*x509.Certificate{a.cert}
	for _, r := range a.retired {
		if now.Before(r.until) {
			out = append(out, r.cert)
		}
	}
	return out
}

// bridges lead from the authorities of before to this one.
func (a *authority) bridges(now time.Time) []*x509.Certificate {
	var out []*x509.Certificate
	for _, r := range a.retired {
		if now.Before(r.until) {
			out = append(out, r.bridge)
		}
	}
	return out
}

func (a *authority) trustPEM(now time.Time) []byte { return headerLess(a.trusted(now)...) }

func (a *authority) pool(now time.Time) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range a.trusted(now) {
		pool.AddCert(c)
	}
	return pool
}

// successor is a new authority of the same name, with this one retired.
func (a *authority) successor(now time.Time, overlap time.Duration) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	next := &authority{key: key}
	if next.keyPEM, err = keyutil.MarshalPrivateKeyToPEM(key); err != nil {
		return nil, err
	}
	if next.certPEM, err = next.selfSigned(a.cert.Subject.CommonName, now); err != nil {
		return nil, err
	}
	block, _ := pem.Decode(next.certPEM)
	if next.cert, err = x509.ParseCertificate(block.Bytes); err != nil {
		return nil, err
	}
	until := now.Add(overlap)
	if a.cert.NotAfter.Before(until) {
		until = a.cert.NotAfter
	}
	template, err := authorityTemplate(a.cert.Subject.CommonName, now)
	if err != nil {
		return nil, err
	}
	template.RawSubject, template.NotAfter = next.cert.RawSubject, until
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	bridge, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	next.retired = append([]retired{{a.cert, bridge, until}}, a.within(now)...)
	return next, nil
}

// within are the retired ones whose time is not over.
func (a *authority) within(now time.Time) (out []retired) {
	for _, r := range a.retired {
		if now.Before(r.until) {
			out = append(out, r)
		}
	}
	return out
}

// The files of an authority NAME are NAME.crt, NAME.key and NAME-retired.pem. A
// rotation writes all that is new into NAME.next, in one step, and then the
// others: settle does the second half, at the next start if need be.

func retiredFile(dir, name string) string { return filepath.Join(dir, name+"-retired.pem") }

func encodeRetired(all []retired) []byte {
	var out bytes.Buffer
	for _, r := range all {
		for _, c := range []*x509.Certificate{r.cert, r.bridge} {
			// Encode fails for headers with a colon in their name only.
			_ = pem.Encode(&out, &pem.Block{Type: cert.CertificateBlockType, Headers: map[string]string{untilHeader: r.until.UTC().Format(time.RFC3339)}, Bytes: c.Raw})
		}
	}
	return out.Bytes()
}

func readRetired(dir, name string) ([]retired, error) {
	if dir == "" {
		return nil, nil
	}
	path := retiredFile(dir, name)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return decodeRetired(path, data)
}

func decodeRetired(path string, data []byte) (out []retired, err error) {
	var last *x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		parsed, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		until, err := time.Parse(time.RFC3339, block.Headers[untilHeader])
		if err != nil {
			return nil, fmt.Errorf("read %s: header %s: %w", path, untilHeader, err)
		}
		if last == nil {
			last = parsed
			continue
		}
		if err := parsed.CheckSignatureFrom(last); err != nil {
			return nil, fmt.Errorf("read %s: a bridge is not of the authority before it: %w", path, err)
		}
		out = append(out, retired{last, parsed, until})
		last = nil
	}
	if last != nil {
		return nil, fmt.Errorf("read %s: the last authority has no bridge: restore the file", path)
	}
	return out, nil
}

// save writes the files of a new authority, so that a crash leaves the old state
// or one that settle makes into the new one.
func (a *authority) save(dir, name string) error {
	if dir == "" {
		return nil
	}
	next := append(append(append([]byte(nil), a.keyPEM...), a.certPEM...), encodeRetired(a.retired)...)
	if err := writeFile(filepath.Join(dir, name+".next"), next); err != nil {
		return err
	}
	return settle(dir, name)
}

func settle(dir, name string) error {
	if dir == "" {
		return nil
	}
	path := filepath.Join(dir, name+".next")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	key, rest := pem.Decode(data)
	if key == nil {
		return fmt.Errorf("%s holds no key: remove it", path)
	}
	crt, old := pem.Decode(rest)
	if crt == nil || crt.Type != cert.CertificateBlockType {
		return fmt.Errorf("%s holds no certificate: remove it", path)
	}
	if err := errors.Join(
		writeFile(retiredFile(dir, name), old),
		writeFile(filepath.Join(dir, name+".key"), pem.EncodeToMemory(key)),
		writeFile(filepath.Join(dir, name+".crt"), pem.EncodeToMemory(crt)),
	); err != nil {
		return err
	}
	return os.Remove(path)
}
