package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
)

// retryRenewal is how long a renewal that failed waits for the next attempt.
const retryRenewal = time.Minute

// KeepOptions are those of Keep. All are needed.
type KeepOptions struct {
	Client kubernetes.Interface
	Names  []string // of the serving certificate
	IPs    []net.IP
	// Serving takes each new serving certificate. A new client certificate is
	// taken up by whoever uses Credentials.Config, from its file.
	Serving func(*tls.Certificate)
	Clock   clock.Clock
	Logger  *slog.Logger
}

// Keep renews the node's certificates before they expire, until ctx ends: when four
// fifths of their time have passed, or when another authority signs. Every ten
// minutes it asks which are to be trusted.
func (c *Credentials) Keep(ctx context.Context, opts KeepOptions) {
	for ctx.Err() == nil {
		wait, err := c.renew(ctx, opts)
		if err != nil && ctx.Err() == nil {
			opts.Logger.Warn("renew the node's certificates", "node", c.node, "err", err)
			wait = retryRenewal
		}
		timer := opts.Clock.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C():
		}
		timer.Stop()
	}
}

// renewal is when a certificate's time has come.
func renewal(leaf *x509.Certificate) time.Time {
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) * 4 / 5)
}

// renew renews what is due and returns how long there is until the next is.
func (c *Credentials) renew(ctx context.Context, opts KeepOptions) (time.Duration, error) {
	subject := pkix.Name{CommonName: "system:node:" + c.node, Organization: []string{"system:nodes"}}
	wait := askAuthorities
	signing, err := c.follow(ctx, opts)
	var errs []error
	if err != nil {
		errs = append(errs, fmt.Errorf("authorities: %w", err))
	}
	for _, k := range []struct {
		name     string
		template *x509.CertificateRequest
		signer   string
		usage    certificatesv1.KeyUsage
	}{
		{clientName, &x509.CertificateRequest{Subject: subject}, certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.UsageClientAuth},
		{servingName, &x509.CertificateRequest{Subject: subject, DNSNames: opts.Names, IPAddresses: opts.IPs}, certificatesv1.KubeletServingSignerName, certificatesv1.UsageServerAuth},
	} {
		pair, err := c.pair(k.name)
		due := err == nil && (!opts.Clock.Now().Before(renewal(pair.Leaf)) || signing != nil && pair.Leaf.CheckSignatureFrom(signing) != nil)
		if due {
			limit, cancel := context.WithTimeout(ctx, retryRenewal)
			err = request(limit, opts.Client, c.dir, k.name, k.template, k.signer, k.usage)
			cancel()
			if err == nil {
				if pair, err = c.pair(k.name); err == nil {
					opts.Logger.Info("a certificate of the node was renewed", "node", c.node, "certificate", k.name, "until", pair.Leaf.NotAfter)
					if k.name == servingName {
						opts.Serving(pair)
					}
				}
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("certificate %s: %w", k.name, err))
			continue
		}
		// At least a while, so that a cluster that signs for very short never makes this a loop.
		wait = min(wait, max(renewal(pair.Leaf).Sub(opts.Clock.Now()), time.Second))
	}
	return wait, errors.Join(errs...)
}

func (c *Credentials) pair(name string) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(c.dir, name+".crt"), filepath.Join(c.dir, name+".key"))
	return &pair, err
}
