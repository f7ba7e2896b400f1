package join

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/cert"
)

// authoritiesPath is where the server has the authorities that are to be
// trusted, PEM, the one that signs first.
const authoritiesPath = "/certificates/authorities"

// askAuthorities is how often a node asks for them: a rotation leaves it an hour
// at least.
const askAuthorities = 10 * time.Minute

// follow takes up the authorities that the server names, and returns the one
// that signs; nil if the server does not name any.
func (c *Credentials) follow(ctx context.Context, opts KeepOptions) (*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, retryRenewal)
	defer cancel()
	data, err := opts.Client.CoreV1().RESTClient().Get().AbsPath(authoritiesPath).DoRaw(ctx)
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) { // an earlier release
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	named, err := cert.ParseCertsPEM(data)
	if err != nil {
		return nil, fmt.Errorf("the server's answer: %w", err)
	}
	pool := x509.NewCertPool()
	for _, one := range named {
		if !one.IsCA {
			return nil, errors.New("the server's answer: a certificate of no authority")
		}
		pool.AddCert(one)
	}
	kept, err := os.ReadFile(filepath.Join(c.dir, caFile))
	if err != nil || !bytes.Equal(kept, data) {
		if err := writeFile(c.dir, caFile, data); err != nil {
			return nil, err
		}
		c.trusted.Store(pool)
		opts.Logger.Info("the cluster's authorities are others", "node", c.node, "signing", named[0].Subject.String(), "trusted", len(named))
	}
	return named[0], nil
}
