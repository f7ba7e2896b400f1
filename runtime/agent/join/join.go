// Package join makes a machine a cluster's node: from a join token it gets the
// cluster's CA, checks it by the token's hash, asks for the node's certificates
// and keeps them with a kubeconfig in the agent's folder, for its owner only.
package join

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/certificate/csr"
	"k8s.io/klog/v2"
)

// Errors of a token that leads nowhere. Each message is one line that says what to do.
var (
	ErrToken   = errors.New(`a join token looks like qm1.<id>.<secret>.<hash>: copy all of the file join-token in the server's data directory`)
	ErrCA      = errors.New("the server's CA is not the one of the join token: the token is of another cluster, or somebody stands in between")
	ErrRefused = errors.New("the server refuses the join token: it is wrong or has expired; take the one in the server's data directory")
)

// Token is a parsed join token.
type Token struct {
	Bootstrap string // id.secret, an upstream bootstrap token
	CAHash    [sha256.Size]byte
}

var tokenForm = regexp.MustCompile(`^qm1\.([a-z0-9]{6}\.[a-z0-9]{16})\.([0-9a-f]{64})$`)

// ParseToken takes a token apart.
func ParseToken(s string) (Token, error) {
	m := tokenForm.FindStringSubmatch(strings.TrimSpace(s))
	if m == nil {
		return Token{}, ErrToken
	}
	t := Token{Bootstrap: m[1]}
	_, err := hex.Decode(t.CAHash[:], []byte(m[2]))
	return t, err
}

// Options of Join. All are needed, Token only where the folder holds no valid certificate.
type Options struct {
	Server   string // URL of the API server
	Token    string
	NodeName string
	Dir      string
}

// Credentials are a node's.
type Credentials struct {
	Config *rest.Config // the node's own; clients of it read the files again

	dir, node string
	trusted   atomic.Pointer[x509.CertPool]
}

// ClientCA are the authorities of the node's clients now.
func (c *Credentials) ClientCA() *x509.CertPool { return c.trusted.Load() }

// Files in the agent's folder.
const (
	caFile      = "ca.crt"
	clientName  = "client" // client.crt, client.key
	servingName = "serving"
	// KubeconfigFile is the node's kubeconfig in its folder.
	KubeconfigFile = "kubeconfig"
)

// Join returns the credentials that the folder holds, or gets new ones by the
// token, waiting until the cluster has signed them.
func Join(ctx context.Context, opts Options) (*Credentials, error) {
	u, err := url.Parse(opts.Server)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("server %q: want a URL like https://HOST:PORT", opts.Server)
	}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("join the cluster: %w", err)
	}
	if c, err := load(opts); err == nil {
		return c, nil
	} else if opts.Token == "" {
		return nil, fmt.Errorf("a join token is needed: %w", err)
	}
	token, err := ParseToken(opts.Token)
	if err != nil {
		return nil, err
	}
	ca, err := fetchCA(ctx, u, token.CAHash)
	if err != nil {
		return nil, err
	}
	if err := writeFile(opts.Dir, caFile, ca); err != nil {
		return nil, err
	}
	bootstrap, err := kubernetes.NewForConfig(&rest.Config{
		Host: opts.Server, BearerToken: token.Bootstrap, TLSClientConfig: rest.TLSClientConfig{CAData: ca},
	})
	if err != nil {
		return nil, err
	}
	subject := pkix.Name{CommonName: "system:node:" + opts.NodeName, Organization: []string{"system:nodes"}}
	err = request(ctx, bootstrap, opts.Dir, clientName, &x509.CertificateRequest{Subject: subject},
		certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.UsageClientAuth)
	if apierrors.IsUnauthorized(err) {
		return nil, ErrRefused
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s for the certificate of node %s: %w", opts.Server, opts.NodeName, err)
	}
	if err := writeKubeconfig(opts); err != nil {
		return nil, err
	}
	return load(opts)
}

// fetchCA takes the CA from the chain that the server shows, checks its hash,
// and the server's certificate against it.
func fetchCA(ctx context.Context, u *url.URL, hash [sha256.Size]byte) ([]byte, error) {
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), "443")
	}
	// Nothing is sent before the chain has been checked, below.
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, ServerName: u.Hostname()}}
	conn, err := d.DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, fmt.Errorf("reach the server %s: %w", host, err)
	}
	chain := conn.(*tls.Conn).ConnectionState().PeerCertificates
	_ = conn.Close()
	for _, c := range chain {
		if sha256.Sum256(c.Raw) != hash || !c.IsCA {
			continue
		}
		roots, bridges := x509.NewCertPool(), x509.NewCertPool()
		roots.AddCert(c)
		for _, other := range chain[1:] { // where a rotation is under way, one leads to the authority that signs now
			bridges.AddCert(other)
		}
		if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: bridges, DNSName: u.Hostname()}); err != nil {
			return nil, fmt.Errorf("the certificate of %s: %w", host, err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), nil
	}
	return nil, fmt.Errorf("%s: %w", host, ErrCA)
}

// request makes a key, has the cluster sign its certificate and stores both.
func request(ctx context.Context, client kubernetes.Interface, dir, name string, template *x509.CertificateRequest, signer string, usage certificatesv1.KeyUsage) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return err
	}
	ctx = klog.NewContext(ctx, logr.Discard())
	data := pem.EncodeToMemory(&pem.Block{Type: cert.CertificateRequestBlockType, Bytes: der})
	id, uid, err := csr.RequestCertificateWithContext(ctx, client, data, "", signer, nil,
		[]certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, usage}, key)
	if err != nil {
		return err
	}
	signed, err := csr.WaitForCertificate(ctx, client, id, uid)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	if err := writeFile(dir, name+".key", pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})); err != nil {
		return err
	}
	return writeFile(dir, name+".crt", signed)
}

// writeFile replaces a file as a whole; its owner alone may read it.
func writeFile(dir, name string, data []byte) error {
	f, err := os.CreateTemp(dir, "."+name+"-*") // 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func writeKubeconfig(opts Options) error {
	const name = "quaymaster"
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: opts.Server, CertificateAuthority: caFile}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{
		ClientCertificate: clientName + ".crt", ClientKey: clientName + ".key", // beside the kubeconfig, as the authority
	}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	data, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	return writeFile(opts.Dir, KubeconfigFile, data)
}

// load reads what an earlier join left, if it is this node's at this server and still valid.
func load(opts Options) (*Credentials, error) {
	ca, err := os.ReadFile(filepath.Join(opts.Dir, caFile))
	if err != nil {
		return nil, err
	}
	leaf, err := valid(opts.Dir, clientName)
	if err != nil {
		return nil, err
	}
	if want := "system:node:" + opts.NodeName; leaf.Subject.CommonName != want {
		return nil, fmt.Errorf("the certificate in %s is of %s, not of %s", opts.Dir, leaf.Subject.CommonName, want)
	}
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(opts.Dir, KubeconfigFile))
	if err != nil {
		return nil, err
	}
	if config.Host != opts.Server {
		return nil, fmt.Errorf("the credentials in %s are for %s", opts.Dir, config.Host)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s in %s holds no certificate", caFile, opts.Dir)
	}
	if len(config.CAData) > 0 { // of an earlier release, which had it in the kubeconfig
		if err := writeKubeconfig(opts); err != nil {
			return nil, err
		}
		config.CAData, config.CAFile = nil, filepath.Join(opts.Dir, caFile)
	}
	c := &Credentials{Config: config, dir: opts.Dir, node: opts.NodeName}
	c.trusted.Store(pool)
	return c, nil
}

// valid returns a stored certificate that goes with its key and has not expired.
func valid(dir, name string) (*x509.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"))
	if err != nil {
		return nil, err
	}
	if now := time.Now(); now.Before(pair.Leaf.NotBefore) || now.After(pair.Leaf.NotAfter) {
		return nil, fmt.Errorf("the certificate %s in %s is valid from %s to %s", name, dir, pair.Leaf.NotBefore, pair.Leaf.NotAfter)
	}
	return pair.Leaf, nil
}

// Serving returns the node's serving certificate for its names and addresses: the
// stored one where it fits, else one that the cluster signs now.
func (c *Credentials) Serving(ctx context.Context, client kubernetes.Interface, names []string, ips []net.IP) (*tls.Certificate, error) {
	if leaf, err := valid(c.dir, servingName); err != nil || !covers(leaf, names, ips) {
		err := request(ctx, client, c.dir, servingName, &x509.CertificateRequest{
			Subject:  pkix.Name{CommonName: "system:node:" + c.node, Organization: []string{"system:nodes"}},
			DNSNames: names, IPAddresses: ips,
		}, certificatesv1.KubeletServingSignerName, certificatesv1.UsageServerAuth)
		if err != nil {
			return nil, fmt.Errorf("ask for the serving certificate of node %s: %w", c.node, err)
		}
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(c.dir, servingName+".crt"), filepath.Join(c.dir, servingName+".key"))
	return &pair, err
}

func covers(leaf *x509.Certificate, names []string, ips []net.IP) bool {
	for _, n := range names {
		if leaf.VerifyHostname(n) != nil {
			return false
		}
	}
	for _, ip := range ips {
		if leaf.VerifyHostname(ip.String()) != nil {
			return false
		}
	}
	return true
}
