package apiserver

import (
	"crypto/x509"
	"net"
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
	}{"serving": {serving, p.cluster}, "requests to nodes": {kubelets, p.cluster}, "front proxy": {front, p.front}} {
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
