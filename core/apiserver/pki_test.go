package apiserver

import (
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/util/cert"
	testclock "k8s.io/utils/clock/testing"
)

// TestCertificatesAreRenewed moves the clock: leaf certificates are made anew
// before they end, under the same authority, and not before.
func TestCertificatesAreRenewed(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	clock := testclock.NewFakePassiveClock(start)
	dir := filepath.Join(t.TempDir(), "pki")
	p, err := loadPKI(dir, clock)
	if err != nil {
		t.Fatal(err)
	}
	serving := func() *x509.Certificate {
		t.Helper()
		c, err := p.serving(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf
	}
	kubelets := func() *x509.Certificate {
		t.Helper()
		c, err := p.kubeletClient()
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf
	}
	front := func() *x509.Certificate {
		t.Helper()
		certFile, keyFile, err := p.frontProxy(dir)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := readPair(certFile, keyFile)
		if err != nil || !p.isFrontProxy(pair) {
			t.Fatalf("the front proxy's files: %v", err)
		}
		return parse(t, pair.cert)
	}
	for name, one := range map[string]struct {
		get       func() *x509.Certificate
		authority *authority
	}{"serving": {serving, p.cluster.Load()}, "requests to nodes": {kubelets, p.cluster.Load()}, "front proxy": {front, p.front.Load()}} {
		clock.SetTime(start)
		first := one.get()
		clock.SetTime(start.Add(leafLifetime / 2))
		if got := one.get(); !got.Equal(first) {
			t.Errorf("%s: another certificate after half of its life", name)
		}
		clock.SetTime(first.NotAfter.Add(-leafLifetime / 4))
		second := one.get()
		if second.Equal(first) || !second.NotAfter.After(first.NotAfter) {
			t.Errorf("%s: the same certificate with a quarter of its life left", name)
		}
		if err := second.CheckSignatureFrom(one.authority.cert); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func parse(t *testing.T, certPEM []byte) *x509.Certificate {
	t.Helper()
	certs, err := cert.ParseCertsPEM(certPEM)
	if err != nil {
		t.Fatal(err)
	}
	return certs[0]
}

// TestRotationSurvives reads what a rotation has left, whole or cut off.
func TestRotationSurvives(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	clock := testclock.NewFakePassiveClock(now)
	dir := filepath.Join(t.TempDir(), "pki")
	p, err := loadPKI(dir, clock)
	if err != nil {
		t.Fatal(err)
	}
	first := p.cluster.Load()
	second, err := first.successor(now, 3*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	// Cut off between the one step and the rest.
	next := append(append(append([]byte(nil), second.keyPEM...), second.certPEM...), encodeRetired(second.retired)...)
	if err := writeFile(filepath.Join(dir, "ca.next"), next); err != nil {
		t.Fatal(err)
	}
	if p, err = loadPKI(dir, clock); err != nil {
		t.Fatal(err)
	}
	if got := p.cluster.Load(); !got.cert.Equal(second.cert) || len(got.trusted(now)) != 2 || !got.trusted(now)[1].Equal(first.cert) {
		t.Error("the rotation was not ended at the next start")
	}
	third, err := p.cluster.Load().successor(now, 2*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := third.save(dir, "ca"); err != nil {
		t.Fatal(err)
	}
	if p, err = loadPKI(dir, clock); err != nil {
		t.Fatal(err)
	}
	// Who knows the first reaches what the third has signed over two bridges.
	leaf, err := p.kubeletClient()
	if err != nil {
		t.Fatal(err)
	}
	bridges, roots := x509.NewCertPool(), x509.NewCertPool()
	for _, der := range leaf.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		bridges.AddCert(c)
	}
	roots.AddCert(first.cert)
	verify := func(at time.Time) error {
		_, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: bridges, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		return err
	}
	if err := verify(now); err != nil {
		t.Errorf("over two bridges: %v", err)
	}
	if verify(now.Add(4*time.Hour)) == nil {
		t.Error("a bridge holds beyond the overlap")
	}
	for at, want := range map[time.Duration]int{0: 3, 150 * time.Minute: 2, 4 * time.Hour: 1} {
		if got := len(third.trusted(now.Add(at))); got != want {
			t.Errorf("after %s: %d authorities are trusted, want %d", at, got, want)
		}
	}
	for _, name := range []string{"ca.crt", "ca.key", "ca-retired.pem", "serviceaccount.until"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}

	// Keys of tokens.
	from, err := p.tokens.rotate()
	if err != nil || !from.Equal(now.Add(time.Hour)) {
		t.Fatalf("%v, %v", from, err)
	}
	before := p.tokens.key
	if p, err = loadPKI(dir, clock); err != nil {
		t.Fatal(err)
	}
	if p.tokens.next == nil || !p.tokens.from.Equal(from) || !p.tokens.key.Equal(before) {
		t.Error("the next key of tokens is lost")
	}
	p.tokens.until = now.Add(48 * time.Hour) // as a token would
	clock.SetTime(from)
	if _, err := p.tokens.sweep(); err != nil {
		t.Fatal(err)
	}
	if p, err = loadPKI(dir, clock); err != nil {
		t.Fatal(err)
	}
	if p.tokens.key.Equal(before) || p.tokens.next != nil || len(p.tokens.old) != 1 || !p.tokens.old[0].key.Equal(before.Public()) {
		t.Errorf("after the promotion: %+v", p.tokens)
	}
	clock.SetTime(now.Add(48 * time.Hour))
	if changed, err := p.tokens.sweep(); err != nil || !changed || len(p.tokens.old) != 0 {
		t.Errorf("after the last token: %v, %v, %v", changed, err, p.tokens.old)
	}
}

// FuzzRetired reads files that somebody has had in an editor.
func FuzzRetired(f *testing.F) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	p, err := loadPKI("", testclock.NewFakePassiveClock(now))
	if err != nil {
		f.Fatal(err)
	}
	second, err := p.cluster.Load().successor(now, time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encodeRetired(second.retired))
	keys, err := encodeOldKeys([]oldKey{{&p.tokens.key.PublicKey, now}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(keys)
	f.Fuzz(func(t *testing.T, data []byte) {
		if all, err := decodeRetired("f", data); err == nil {
			again, err := decodeRetired("f", encodeRetired(all))
			if err != nil || len(again) != len(all) {
				t.Errorf("written and read again: %d of %d, %v", len(again), len(all), err)
			}
		}
		if all, err := decodeOldKeys("f", data); err == nil {
			if encoded, err := encodeOldKeys(all); err != nil {
				t.Error(err)
			} else if again, err := decodeOldKeys("f", encoded); err != nil || len(again) != len(all) {
				t.Errorf("written and read again: %d of %d, %v", len(again), len(all), err)
			}
		}
	})
}
