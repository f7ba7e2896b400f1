package apiserver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/util/keyutil"
	"k8s.io/utils/clock"
)

const (
	authorityLifetime = 10 * 365 * 24 * time.Hour
	leafLifetime      = 365 * 24 * time.Hour
	// backdate makes a certificate valid for clients whose clock is behind.
	backdate = 5 * time.Minute
)

// pki is the cluster's own certificate authority, that of the front proxy, and
// the keys of service account tokens. Leaf certificates are made when they are
// needed and live in memory, but for the front proxy's.
type pki struct {
	dir     string
	clock   clock.PassiveClock
	cluster rotating
	front   rotating
	tokens  *tokenKeys

	mu         sync.Mutex
	leaves     map[string]*tls.Certificate // by purpose; replaced before they expire
	proxy      pair                        // the front proxy's, as in its files
	proxyIn    string                      // the folder of these files
	renewProxy bool                        // whether they are made anew, however fresh
	changed    chan struct{}               // closed at the next change of what is trusted or signed with
	follow     []func()                    // called at each such change
	turning    sync.Mutex                  // one rotation at a time
}

// rotating is an authority that others take the place of.
type rotating struct {
	atomic.Pointer[authority]
	name, title string // of its files; for people
}

// loadPKI reads the authorities from the directory, or makes them there. An empty
// directory name keeps everything in memory.
func loadPKI(dir string, clock clock.PassiveClock) (*pki, error) {
	p := &pki{dir: dir, clock: clock, leaves: map[string]*tls.Certificate{}, changed: make(chan struct{})}
	p.cluster.name, p.cluster.title = "ca", "authority of the cluster"
	p.front.name, p.front.title = "front-proxy-ca", "authority of the front proxy"
	if dir != "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("keys of the cluster: %w", err)
		}
	}
	for which, commonName := range map[*rotating]string{&p.cluster: "quaymaster", &p.front: "quaymaster-front-proxy"} {
		a, err := loadAuthority(dir, which.name, commonName, clock.Now())
		if err != nil {
			return nil, err
		}
		which.Store(a)
	}
	var err error
	p.tokens, err = loadTokenKeys(dir, clock)
	return p, err
}

// loadKey reads a private key, or makes it with mode 0600.
func loadKey(dir, name string) (*ecdsa.PrivateKey, []byte, error) {
	path := filepath.Join(dir, name)
	if dir != "" {
		data, err := os.ReadFile(path)
		if err == nil {
			key, err := keyutil.ParsePrivateKeyPEM(data)
			if err != nil {
				return nil, nil, fmt.Errorf("keys of the cluster: read %s: %w", path, err)
			}
			ec, ok := key.(*ecdsa.PrivateKey)
			if !ok {
				return nil, nil, fmt.Errorf("keys of the cluster: %s holds a %T, an ECDSA key is needed", path, key)
			}
			return ec, data, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, fmt.Errorf("keys of the cluster: %w", err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("keys of the cluster: make %s: %w", name, err)
	}
	data, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return nil, nil, fmt.Errorf("keys of the cluster: make %s: %w", name, err)
	}
	if dir != "" {
		if err := writeFile(path, data); err != nil {
			return nil, nil, fmt.Errorf("keys of the cluster: %w", err)
		}
	}
	return key, data, nil
}

// writeFile writes a new file of mode 0600 so that a crash leaves the old state
// or the whole of the new one.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	return serial, nil
}

// caHash is what a join token pins: SHA-256 over the authority's certificate, DER.
func (p *pki) caHash() string {
	sum := sha256.Sum256(p.cluster.Load().cert.Raw)
	return hex.EncodeToString(sum[:])
}

// sign makes a key and a certificate of the cluster's authority for it. Bridges
// come after the certificate, for whoever knows an earlier authority only.
func (p *pki) sign(subject pkix.Name, usage x509.ExtKeyUsage, dns []string, ips []net.IP) (certPEM, keyPEM []byte, err error) {
	a, now := p.cluster.Load(), p.clock.Now()
	certPEM, keyPEM, err = a.sign(now, leafLifetime, &x509.Certificate{Subject: subject, ExtKeyUsage: []x509.ExtKeyUsage{usage}, DNSNames: dns, IPAddresses: ips})
	return append(certPEM, headerLess(a.bridges(now)...)...), keyPEM, err
}

// leaf returns the certificate kept for the purpose, made anew by make when
// less than a third of its life is left.
func (p *pki) leaf(purpose string, make func() (certPEM, keyPEM []byte, err error)) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if kept := p.leaves[purpose]; kept != nil {
		if fresh(kept.Leaf, p.clock.Now()) {
			return kept, nil
		}
	}
	certPEM, keyPEM, err := make()
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate for %s: %w", purpose, err)
	}
	p.leaves[purpose] = &cert
	return &cert, nil
}

// serving is the server's own certificate: for every name and address under
// which it may be reached.
func (p *pki) serving(listener net.Addr) (*tls.Certificate, error) {
	return p.leaf("the API server", func() ([]byte, []byte, error) {
		dns := []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
		ips := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback, serviceAddress()}
		if host, err := os.Hostname(); err == nil && !slices.Contains(dns, host) {
			dns = append(dns, host)
		}
		if tcp, ok := listener.(*net.TCPAddr); ok && !tcp.IP.IsUnspecified() {
			ips = append(ips, tcp.IP)
		} else if addresses, err := net.InterfaceAddrs(); err == nil {
			for _, address := range addresses {
				if ip, ok := address.(*net.IPNet); ok {
					ips = append(ips, ip.IP)
				}
			}
		}
		certPEM, keyPEM, err := p.sign(pkix.Name{CommonName: "kube-apiserver"}, x509.ExtKeyUsageServerAuth, dns, ips)
		return append(certPEM, p.trustPEM()...), keyPEM, err // an agent that joins knows the authority by its hash only
	})
}

// trustPEM is the cluster's authority, and those of before that are still trusted.
func (p *pki) trustPEM() []byte { return p.cluster.Load().trustPEM(p.clock.Now()) }

// kubeletClient is the certificate that the server shows to nodes.
func (p *pki) kubeletClient() (*tls.Certificate, error) {
	return p.leaf("requests to nodes", func() ([]byte, []byte, error) {
		return p.sign(pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}}, x509.ExtKeyUsageClientAuth, nil, nil)
	})
}
