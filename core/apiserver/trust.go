package apiserver

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/request/headerrequest"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/retry"
	"k8s.io/kubernetes/pkg/controlplane/controller/clusterauthenticationtrust"
)

// An extension server believes the user's name in a request's headers when the
// request comes with the front proxy's certificate. Its authority signs nothing
// else, so that nobody gets such a certificate by asking the cluster's.

// frontProxyName is the common name that extension servers look for.
const frontProxyName = "front-proxy-client"

// frontProxy returns the files of the front proxy's certificate and key, made
// anew when a third of its life is left. Without a directory they are in one of
// their own, which the caller removes, and valid as long as their authority.
func (p *pki) frontProxy(dir string) (certFile, keyFile string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	life := leafLifetime
	if dir == "" {
		life = authorityLifetime
		if dir = p.proxyIn; dir == "" {
			if dir, err = os.MkdirTemp("", "quaymaster-front-proxy-"); err != nil {
				return "", "", fmt.Errorf("certificate of the front proxy: %w", err)
			}
		}
	}
	p.proxyIn = dir
	certFile, keyFile = filepath.Join(dir, frontProxyName+".crt"), filepath.Join(dir, frontProxyName+".key")
	if kept, err := readPair(certFile, keyFile); err == nil && !p.renewProxy && p.isFrontProxy(kept) {
		p.proxy = kept
		return certFile, keyFile, nil
	}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: frontProxyName}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	var made pair
	a, now := p.front.Load(), p.clock.Now()
	if made.cert, made.key, err = a.sign(now, life, template); err != nil {
		return "", "", err
	}
	made.cert = append(made.cert, headerLess(a.bridges(now)...)...)
	// Upstream reads both when one changes, and keeps what it has of two that do not belong together.
	if err := errors.Join(writeFile(keyFile, made.key), writeFile(certFile, made.cert)); err != nil {
		return "", "", fmt.Errorf("certificate of the front proxy: %w", err)
	}
	p.proxy, p.renewProxy = made, false
	return certFile, keyFile, nil
}

func readPair(certFile, keyFile string) (p pair, err error) {
	var err1, err2 error
	p.cert, err1 = os.ReadFile(certFile)
	p.key, err2 = os.ReadFile(keyFile)
	return p, errors.Join(err1, err2)
}

// isFrontProxy tells whether a pair may go on in use. One that is broken, or of
// another authority, is made anew.
func (p *pki) isFrontProxy(kept pair) bool {
	parsed, err := tls.X509KeyPair(kept.cert, kept.key)
	return err == nil && parsed.Leaf.CheckSignatureFrom(p.front.Load().cert) == nil && fresh(parsed.Leaf, p.clock.Now())
}

// frontProxyPair is what frontProxy has put into its files last.
func (p *pki) frontProxyPair() pair {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.proxy
}

// publishTrust keeps the ConfigMap kube-system/extension-apiserver-authentication,
// from which extension servers learn whom to believe.
func (a *aggregator) publishTrust(ctx context.Context) {
	// The ConfigMap is written through admission, which waits for this as well.
	if !cache.WaitFor(ctx, "", a.server.options.Informers.Core().V1().Namespaces().Informer().HasSyncedChecker()) {
		return
	}
	p := a.server.pki
	publish := clusterauthenticationtrust.NewClusterAuthenticationTrustController(clusterauthenticationtrust.ClusterAuthenticationInfo{
		ClientCA:                         trust{p, &p.cluster},
		RequestHeaderCA:                  trust{p, &p.front},
		RequestHeaderUsernameHeaders:     headerrequest.StaticStringSlice{"X-Remote-User"},
		RequestHeaderUIDHeaders:          headerrequest.StaticStringSlice{"X-Remote-Uid"},
		RequestHeaderGroupHeaders:        headerrequest.StaticStringSlice{"X-Remote-Group"},
		RequestHeaderExtraHeaderPrefixes: headerrequest.StaticStringSlice{"X-Remote-Extra-"},
		RequestHeaderAllowedNames:        headerrequest.StaticStringSlice{frontProxyName},
	}, a.server.client)
	p.onChange(func() {
		if err := a.dropTrust(ctx); err != nil && ctx.Err() == nil {
			a.server.log.Error("extension servers are still told of an authority that is no longer trusted", "error", err)
		}
		publish.Enqueue()
	})
	publish.Run(ctx, 1)
}

// trust is what upstream publishes of an authority.
type trust struct {
	pki   *pki
	which *rotating
}

var _ dynamiccertificates.CAContentProvider = trust{}

func (t trust) Name() string { return t.which.title }

func (t trust) CurrentCABundleContent() []byte { return t.which.Load().trustPEM(t.pki.clock.Now()) }

func (t trust) VerifyOptions() (x509.VerifyOptions, bool) {
	now := t.pki.clock.Now()
	return x509.VerifyOptions{Roots: t.which.Load().pool(now), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, CurrentTime: now}, true
}

// AddListener implements dynamiccertificates.CAContentProvider; see publishTrust.
func (trust) AddListener(dynamiccertificates.Listener) {}

// dropTrust takes authorities that are trusted no more from the ConfigMap:
// upstream's controller only adds, and drops what has expired. What another
// server of the cluster has added stays.
func (a *aggregator) dropTrust(ctx context.Context) error {
	const name = "extension-apiserver-authentication"
	gone := a.server.pki.gone()
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		published, err := a.server.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		changed := false
		for _, key := range []string{"client-ca-file", "requestheader-client-ca-file"} {
			all, err := cert.ParseCertsPEM([]byte(published.Data[key]))
			if err != nil {
				continue // somebody has broken it, which upstream says
			}
			left := slices.DeleteFunc(slices.Clone(all), func(c *x509.Certificate) bool { return gone[sha256.Sum256(c.Raw)] })
			if len(left) < len(all) {
				published.Data[key] = string(headerLess(left...))
				changed = true
			}
		}
		if !changed {
			return nil
		}
		_, err = a.server.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Update(ctx, published, metav1.UpdateOptions{})
		return err
	})
}
