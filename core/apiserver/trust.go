package apiserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apiserver/pkg/authentication/request/headerrequest"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/client-go/tools/cache"
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
		if dir, err = os.MkdirTemp("", "quaymaster-front-proxy-"); err != nil {
			return "", "", fmt.Errorf("certificate of the front proxy: %w", err)
		}
	}
	certFile, keyFile = filepath.Join(dir, frontProxyName+".crt"), filepath.Join(dir, frontProxyName+".key")
	if kept, err := readPair(certFile, keyFile); err == nil && p.isFrontProxy(kept) {
		p.proxy = kept
		return certFile, keyFile, nil
	}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: frontProxyName}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	var made pair
	if made.cert, made.key, err = p.front.sign(p.clock.Now(), life, template); err != nil {
		return "", "", err
	}
	// Upstream reads both when one changes, and keeps what it has of two that do not belong together.
	if err := errors.Join(writeFile(keyFile, made.key), writeFile(certFile, made.cert)); err != nil {
		return "", "", fmt.Errorf("certificate of the front proxy: %w", err)
	}
	p.proxy = made
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
	return err == nil && parsed.Leaf.CheckSignatureFrom(p.front.cert) == nil && fresh(parsed.Leaf, p.clock.Now())
}

// frontProxyPair is what frontProxy has put into its files last.
func (p *pki) frontProxyPair() pair {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.proxy
}

// renewFrontProxy keeps the files fresh until the context ends; upstream reads them again.
func (a *aggregator) renewFrontProxy(ctx context.Context, dir string) {
	ticker := time.NewTicker(12 * time.Hour)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if _, _, err := a.server.pki.frontProxy(dir); err != nil {
				a.server.log.Error("the front proxy's certificate is not renewed", "error", err)
			}
		}
	}
}

// publishTrust keeps the ConfigMap kube-system/extension-apiserver-authentication,
// from which extension servers learn whom to believe.
func (a *aggregator) publishTrust(ctx context.Context) {
	// The ConfigMap is written through admission, which waits for this as well.
	if !cache.WaitFor(ctx, "", a.server.options.Informers.Core().V1().Namespaces().Informer().HasSyncedChecker()) {
		return
	}
	clientCA, err1 := dynamiccertificates.NewStaticCAContent("client-ca", a.server.pki.cluster.certPEM)
	frontCA, err2 := dynamiccertificates.NewStaticCAContent("front-proxy-ca", a.server.pki.front.certPEM)
	if err := errors.Join(err1, err2); err != nil {
		a.server.log.Error("extension servers are not told whom to believe", "error", err)
		return
	}
	clusterauthenticationtrust.NewClusterAuthenticationTrustController(clusterauthenticationtrust.ClusterAuthenticationInfo{
		ClientCA:                         clientCA,
		RequestHeaderCA:                  frontCA,
		RequestHeaderUsernameHeaders:     headerrequest.StaticStringSlice{"X-Remote-User"},
		RequestHeaderUIDHeaders:          headerrequest.StaticStringSlice{"X-Remote-Uid"},
		RequestHeaderGroupHeaders:        headerrequest.StaticStringSlice{"X-Remote-Group"},
		RequestHeaderExtraHeaderPrefixes: headerrequest.StaticStringSlice{"X-Remote-Extra-"},
		RequestHeaderAllowedNames:        headerrequest.StaticStringSlice{frontProxyName},
	}, a.server.client).Run(ctx, 1)
}
