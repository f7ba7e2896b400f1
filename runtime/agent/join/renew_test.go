package join_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
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

func TestCertificatesAreRenewed(t *testing.T) {
	// A client's watch of its certificate's file ends when the client is collected.
	t.Cleanup(func() { runtime.GC(); runtime.GC() })
	c, url := newCluster(t, time.Hour)
	dir := filepath.Join(t.TempDir(), "agent")
	creds, err := join.Join(t.Context(), join.Options{Server: url, Token: c.token(), NodeName: "n1", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(creds.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer closeIdle(t, client)
	names, ips := []string{"n1"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	first, err := creds.Serving(t.Context(), client, names, ips)
	if err != nil {
		t.Fatal(err)
	}
	before, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key"))
	if err != nil {
		t.Fatal(err)
	}
	clock := clocktesting.NewFakeClock(time.Now())
	renewed := make(chan *tls.Certificate, 10)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		creds.Keep(ctx, join.KeepOptions{Client: client, Names: names, IPs: ips, Clock: clock, Logger: slog.New(slog.DiscardHandler), Serving: func(c *tls.Certificate) { renewed <- c }})
	}()
	defer func() { cancel(); <-done }()
	wait := func() {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !clock.HasWaiters(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("nobody waits for the time to come")
			}
		}
	}
	wait()
	if len(renewed) != 0 {
		t.Fatal("a young certificate was renewed")
	}
	clock.Step(40 * time.Minute) // the certificates began an hour ago and have an hour to go
	var serving *tls.Certificate
	select {
	case serving = <-renewed:
	case <-time.After(time.Minute):
		t.Fatal("no certificate was renewed")
	}
	if serving.Leaf.SerialNumber.Cmp(first.Leaf.SerialNumber) == 0 || serving.Leaf.VerifyHostname("n1") != nil || serving.Leaf.VerifyHostname("127.0.0.1") != nil {
		t.Errorf("the new certificate: %+v", serving.Leaf.DNSNames)
	}
	after, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key"))
	if err != nil || after.Leaf.SerialNumber.Cmp(before.Leaf.SerialNumber) == 0 || after.Leaf.Subject.CommonName != "system:node:n1" {
		t.Errorf("the client's certificate: %v", errors.Join(err))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.users); n < 4 || c.users[n-1] != "system:node:n1" || c.users[n-2] != "system:node:n1" {
		t.Errorf("asked by %v", c.users)
	}
}

// TestAuthorityIsFollowed has the cluster sign with another authority: the node
// takes it up, and has new certificates long before its own are old.
func TestAuthorityIsFollowed(t *testing.T) {
	t.Cleanup(func() { runtime.GC(); runtime.GC() })
	c, url := newCluster(t, time.Hour)
	dir := filepath.Join(t.TempDir(), "agent")
	creds, err := join.Join(t.Context(), join.Options{Server: url, Token: c.token(), NodeName: "n1", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(creds.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer closeIdle(t, client)
	names, ips := []string{"n1"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	if _, err := creds.Serving(t.Context(), client, names, ips); err != nil {
		t.Fatal(err)
	}
	old, next := c.authority, newAuthority(t)
	c.mu.Lock()
	c.authority, c.retired = next, old
	c.mu.Unlock()
	clock := clocktesting.NewFakeClock(time.Now())
	renewed := make(chan *tls.Certificate, 10)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		creds.Keep(ctx, join.KeepOptions{Client: client, Names: names, IPs: ips, Clock: clock, Logger: slog.New(slog.DiscardHandler), Serving: func(c *tls.Certificate) { renewed <- c }})
	}()
	defer func() { cancel(); <-done }()
	var serving *tls.Certificate
	select {
	case serving = <-renewed:
	case <-time.After(time.Minute):
		t.Fatal("no certificate of the new authority")
	}
	own, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key"))
	if err != nil {
		t.Fatal(err)
	}
	for name, leaf := range map[string]*x509.Certificate{"serving": serving.Leaf, "client": own.Leaf} {
		if err := leaf.CheckSignatureFrom(next.cert); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	kept, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(kept) || !pool.Equal(creds.ClientCA()) {
		t.Error("the node's clients are judged by other authorities than those in the file")
	}
	for _, a := range []*authority{old, next} {
		der, err := a.sign(own.Leaf.PublicKey, own.Leaf.Subject, nil, nil, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: creds.ClientCA()}); err != nil {
			t.Errorf("one of both is not trusted: %v", err)
		}
	}
}
