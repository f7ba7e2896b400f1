package storage

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apiserver/pkg/storage/etcd3/testserver"
)

// certificates makes an authority and a certificate of it, for server and client.
func certificates(t *testing.T) (ca, cert, key string) {
	t.Helper()
	dir := t.TempDir()
	file := func(name, kind string, der []byte, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		write(t, path, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
		return path
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	authority := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, caKey.Public(), caKey)
	ca = file("ca.crt", "CERTIFICATE", der, err)
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "leaf"}, NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err = x509.CreateCertificate(rand.Reader, leaf, authority, leafKey.Public(), caKey)
	cert = file("leaf.crt", "CERTIFICATE", der, err)
	der, err = x509.MarshalECPrivateKey(leafKey)
	key = file("leaf.key", "EC PRIVATE KEY", der, err)
	return ca, cert, key
}

func dial(t testing.TB, options RemoteOptions) *Remote {
	t.Helper()
	r, err := Dial(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func endpoints(t testing.TB) []string {
	client := testserver.RunEtcd(t, nil)
	defer client.Close()
	return client.Endpoints()
}

func TestRemoteTLS(t *testing.T) {
	ca, cert, key := certificates(t)
	config := testserver.NewTestConfig(t)
	config.ListenClientUrls[0].Scheme, config.AdvertiseClientUrls[0].Scheme = "https", "https"
	config.ClientTLSInfo.CertFile, config.ClientTLSInfo.KeyFile = cert, key
	config.ClientTLSInfo.TrustedCAFile, config.ClientTLSInfo.ClientCertAuth = ca, true
	client := testserver.RunEtcd(t, config)
	where := client.Endpoints()
	client.Close()

	r := dial(t, RemoteOptions{Endpoints: where, CAFile: ca, CertFile: cert, KeyFile: key})
	if got := r.Commit(t.Context(), []Write{{Key: "/a", Value: []byte("1")}})[0]; got.Err != nil {
		t.Fatal(got.Err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	plain := "http" + strings.TrimPrefix(where[0], "https")
	for text, options := range map[string]RemoteOptions{
		"--etcd-certfile": {Endpoints: where, CAFile: ca},
		"--etcd-cafile":   {Endpoints: where, CertFile: cert, KeyFile: key},
		"by https?":       {Endpoints: []string{plain}},
		"refused":         {Endpoints: []string{"https://127.0.0.1:1"}, CAFile: ca},
	} {
		if r, err := Dial(ctx, options); err == nil || !strings.Contains(err.Error(), options.Endpoints[0]) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, %v", text, r, err)
		}
	}
	for name, options := range map[string]RemoteOptions{
		"no such file": {Endpoints: where, CAFile: "/nowhere/ca.crt"},
		"no authority": {Endpoints: where, CAFile: key},
		"no key":       {Endpoints: where, CAFile: ca, CertFile: cert},
		"no endpoint":  {},
	} {
		if r, err := Dial(t.Context(), options); err == nil {
			t.Errorf("%s: %v", name, r)
		}
	}
}

// Commits mean the same on a real etcd as on the store: conflicts are told with
// the present revision, leases stay, and what belongs together is made together.
func TestRemoteCommits(t *testing.T) {
	ctx := t.Context()
	remote := dial(t, RemoteOptions{Endpoints: endpoints(t), Prefix: "/here"})
	local := open(t, Options{})
	for name, s := range map[string]interface {
		Commit(context.Context, []Write) []Result
		CommitAll(context.Context, []Write) ([]int64, error)
		Revision() int64
	}{"etcd": remote, "store": local} {
		t.Run(name, func(t *testing.T) {
			client := local.Etcd()
			if name == "etcd" {
				client = remote.Etcd()
			}
			lease, err := client.Grant(ctx, 600)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.Put(ctx, "/leased", "1", clientv3.WithLease(lease.ID)); err != nil {
				t.Fatal(err)
			}
			made := s.Commit(ctx, []Write{{Key: "/a", Value: []byte("1")}, {Key: "/b", Value: []byte("1")}, {Key: "", Value: []byte("x")}})
			if made[0].Err != nil || made[1].Err != nil || made[2].Err == nil {
				t.Fatal(made)
			}
			at, err := client.KV.Get(ctx, "/leased")
			if err != nil {
				t.Fatal(err)
			}
			var conflict *ConflictError
			next := s.Commit(ctx, []Write{
				{Key: "/a", Value: []byte("2"), Expect: made[0].Revision},
				{Key: "/b", Value: []byte("2")},            // it exists
				{Key: "/c", Value: []byte("2"), Expect: 1}, // it does not
				{Key: "/leased", Value: []byte("2"), Expect: at.Kvs[0].ModRevision},
				{Key: "/a", Value: []byte("3"), Expect: made[0].Revision}, // too late
			})
			if next[0].Err != nil || next[3].Err != nil || next[0].Revision <= made[0].Revision {
				t.Error(next)
			}
			for i, want := range map[int]int64{1: made[1].Revision, 2: 0, 4: next[0].Revision} {
				if !errors.As(next[i].Err, &conflict) || conflict.Current != want {
					t.Errorf("write %d: %v, not a conflict with %d", i, next[i].Err, want)
				}
			}
			if kept, err := client.KV.Get(ctx, "/leased"); err != nil || kept.Kvs[0].Lease != int64(lease.ID) {
				t.Errorf("the lease: %v, %v", kept, err)
			}
			if _, err := s.CommitAll(ctx, []Write{{Key: "/d", Value: []byte("1")}, {Key: "/a", Value: []byte("4"), Expect: 1}}); !errors.As(err, &conflict) || conflict.Key != "/a" || conflict.Current != next[0].Revision {
				t.Errorf("all or nothing: %v", err)
			}
			if r, err := client.KV.Get(ctx, "/d"); err != nil || len(r.Kvs) != 0 {
				t.Errorf("half of it was made: %v, %v", r, err)
			}
			both, err := s.CommitAll(ctx, []Write{{Key: "/d", Value: []byte("1")}, {Key: "/a", Expect: next[0].Revision}})
			if err != nil || len(both) != 2 || s.Revision() < both[1] {
				t.Errorf("%v, %v", both, err)
			}
			finish := func(stored, value []byte) []byte { return []byte(string(stored) + string(value)) }
			before := s.Commit(ctx, []Write{{Key: "/f", Value: []byte("1")}, {Key: "/g", Value: []byte("1")}})
			if finished := s.Commit(ctx, []Write{{Key: "/f", Value: []byte("2"), Expect: before[0].Revision, Finish: finish}, {Key: "/g", Value: []byte("2"), Expect: 1, Finish: finish}}); finished[0].Err != nil || finished[1].Err == nil {
				t.Error(finished)
			}
			if _, err := s.CommitAll(ctx, []Write{{Key: "/g", Value: []byte("3"), Expect: before[1].Revision, Finish: finish}}); err != nil {
				t.Error(err)
			}
			for key, want := range map[string]string{"/f": "12", "/g": "13"} {
				if r, err := client.KV.Get(ctx, key); err != nil || string(r.Kvs[0].Value) != want {
					t.Errorf("%s: %v, %v, not %s", key, r, err, want)
				}
			}
			many := make([]Write, 300)
			for i := range many {
				many[i] = Write{Key: "/many/" + string(rune('a'+i%26)) + string(rune('0'+i/26)), Value: payload}
			}
			for i, r := range s.Commit(ctx, many) {
				if r.Err != nil {
					t.Fatalf("write %d of many: %v", i, r.Err)
				}
			}
			if r, err := client.KV.Get(ctx, "/many/", clientv3.WithPrefix(), clientv3.WithCountOnly()); err != nil || r.Count != 300 {
				t.Errorf("%v, %v", r, err)
			}
		})
	}
}
