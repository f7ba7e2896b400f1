package join_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/quaymaster/quaymaster/runtime/agent/join"
)

// kept is a node that has joined a cluster of the test's and keeps its certificates, on a clock of the test's.
type kept struct {
	api     *clusterAPI
	dir     string
	creds   *join.Credentials
	serving *tls.Certificate // the first one
	clock   *clocktesting.FakeClock
	renewed chan *tls.Certificate
}

// joined is a node that has joined; between is what happens before it looks after its certificates. It does so until end,
// which the test defers: a clean-up of the test's would keep the client from being collected.
func joined(t *testing.T, between func(*kept)) (k *kept, end func()) {
	t.Helper()
	// A client's watch of its certificate's file ends when the client is collected.
	t.Cleanup(func() { runtime.GC(); runtime.GC() })
	api, url := newCluster(t, time.Hour)
	k = &kept{api: api, dir: filepath.Join(t.TempDir(), "agent"), clock: clocktesting.NewFakeClock(time.Now()), renewed: make(chan *tls.Certificate, 10)}
	var err error
	if k.creds, err = join.Join(t.Context(), join.Options{Server: url, Token: api.token(), NodeName: "n1", Dir: k.dir}); err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(k.creds.Config)
	if err != nil {
		t.Fatal(err)
	}
	names, ips := []string{"n1"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	if k.serving, err = k.creds.Serving(t.Context(), client, names, ips); err != nil {
		t.Fatal(err)
	}
	between(k)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.creds.Keep(ctx, join.KeepOptions{Client: client, Names: names, IPs: ips, Clock: k.clock, Logger: slog.New(slog.DiscardHandler), Serving: func(c *tls.Certificate) { k.renewed <- c }})
	}()
	return k, func() { cancel(); <-done; closeIdle(t, client) }
}

// own is the node's certificate as a client.
func (k *kept) own(t *testing.T) *x509.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(k.dir, "client.crt"), filepath.Join(k.dir, "client.key"))
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf
}

// next waits for a new serving certificate.
func (k *kept) next(t *testing.T) *x509.Certificate {
	t.Helper()
	select {
	case c := <-k.renewed:
		return c.Leaf
	case <-time.After(time.Minute):
		t.Fatal("no certificate was renewed")
		return nil
	}
}

func TestCertificatesAreRenewed(t *testing.T) {
	k, end := joined(t, func(*kept) {})
	defer end()
	before := k.own(t)
	for deadline := time.Now().Add(time.Minute); !k.clock.HasWaiters(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody waits for the time to come")
		}
	}
	if len(k.renewed) != 0 {
		t.Fatal("a young certificate was renewed")
	}
	k.clock.Step(40 * time.Minute) // the certificates began an hour ago and have an hour to go
	serving, after := k.next(t), k.own(t)
	if serving.SerialNumber.Cmp(k.serving.Leaf.SerialNumber) == 0 || serving.VerifyHostname("n1") != nil || serving.VerifyHostname("127.0.0.1") != nil {
		t.Errorf("the new certificate: %+v", serving.DNSNames)
	}
	if after.SerialNumber.Cmp(before.SerialNumber) == 0 || after.Subject.CommonName != "system:node:n1" {
		t.Errorf("the client's certificate: %v", after.Subject)
	}
	k.api.mu.Lock()
	defer k.api.mu.Unlock()
	if n := len(k.api.users); n < 4 || k.api.users[n-1] != "system:node:n1" || k.api.users[n-2] != "system:node:n1" {
		t.Errorf("asked by %v", k.api.users)
	}
}

// TestAuthorityIsFollowed has the cluster sign with another authority: the node
// takes it up, and has new certificates long before its own are old.
func TestAuthorityIsFollowed(t *testing.T) {
	var old, next *authority
	k, end := joined(t, func(k *kept) {
		k.api.mu.Lock()
		defer k.api.mu.Unlock()
		old, next = k.api.authority, newAuthority(t)
		k.api.authority, k.api.retired = next, old
	})
	defer end()
	serving, own := k.next(t), k.own(t)
	for name, leaf := range map[string]*x509.Certificate{"serving": serving, "client": own} {
		if err := leaf.CheckSignatureFrom(next.cert); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	stored, err := os.ReadFile(filepath.Join(k.dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(stored) || !pool.Equal(k.creds.ClientCA()) {
		t.Error("the node's clients are judged by other authorities than those in the file")
	}
	for _, a := range []*authority{old, next} {
		der, err := a.sign(own.PublicKey, own.Subject, nil, nil, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: k.creds.ClientCA()}); err != nil {
			t.Errorf("one of both is not trusted: %v", err)
		}
	}
}
