package apiserver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

// pair is a certificate and its key, PEM.
type pair struct{ cert, key []byte }

// authority signs certificates. It is never changed: a rotation makes another,
// which has those before it among its retired ones for a while.
type authority struct {
	cert    *x509.Certificate
	certPEM []byte
	key     *ecdsa.PrivateKey
	keyPEM  []byte
	retired []retired
}

// loadAuthority reads name.crt and name.key from the directory, or makes them
// there. An empty directory name keeps them in memory.
func loadAuthority(dir, name, commonName string, now time.Time) (*authority, error) {
	if err := settle(dir, name); err != nil {
		return nil, fmt.Errorf("keys of the cluster: end the rotation of %s: %w", name, err)
	}
	var a authority
	var err error
	if a.retired, err = readRetired(dir, name); err != nil {
		return nil, fmt.Errorf("keys of the cluster: %w", err)
	}
	if a.key, a.keyPEM, err = loadKey(dir, name+".key"); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, name+".crt")
	if dir != "" {
		if a.certPEM, err = os.ReadFile(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("keys of the cluster: %w", err)
		}
	}
	if a.certPEM == nil {
		if a.certPEM, err = a.selfSigned(commonName, now); err != nil {
			return nil, fmt.Errorf("keys of the cluster: make %s: %w", path, err)
		}
		if dir != "" {
			if err := writeFile(path, a.certPEM); err != nil {
				return nil, fmt.Errorf("keys of the cluster: %w", err)
			}
		}
	}
	block, _ := pem.Decode(a.certPEM)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("keys of the cluster: %s holds no certificate: restore it, or remove it and its key to start with a new authority", path)
	}
	if a.cert, err = x509.ParseCertificate(block.Bytes); err != nil {
		return nil, fmt.Errorf("keys of the cluster: read %s: %w", path, err)
	}
	if !a.key.PublicKey.Equal(a.cert.PublicKey) {
		return nil, fmt.Errorf("keys of the cluster: %[1]s.crt and %[1]s.key in %[2]s do not belong together: restore both from the same backup", name, dir)
	}
	return &a, nil
}

func (a *authority) selfSigned(commonName string, now time.Time) ([]byte, error) {
	template, err := authorityTemplate(commonName, now)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	return certificatePEM(der), nil
}

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: cert.CertificateBlockType, Bytes: der})
}

// authorityTemplate has a number in its name, so that two of the same common
// name are told apart by whoever looks for an issuer.
func authorityTemplate(commonName string, now time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: commonName, SerialNumber: serial.Text(16)},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(authorityLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}, nil
}

// sign makes a key and a certificate for it, with the template's subject, usage
// and names. It lives no longer than the authority.
func (a *authority) sign(now time.Time, life time.Duration, template *x509.Certificate) (certPEM, keyPEM []byte, err error) {
	fail := func(err error) ([]byte, []byte, error) {
		return nil, nil, fmt.Errorf("certificate of %s: %w", template.Subject.CommonName, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail(err)
	}
	if template.SerialNumber, err = newSerial(); err != nil {
		return fail(err)
	}
	template.NotBefore, template.NotAfter = now.Add(-backdate), now.Add(life)
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return fail(err)
	}
	if keyPEM, err = keyutil.MarshalPrivateKeyToPEM(key); err != nil {
		return fail(err)
	}
	return certificatePEM(der), keyPEM, nil
}

// fresh tells whether more than a third of the certificate's life is left.
func fresh(cert *x509.Certificate, now time.Time) bool { return now.Before(renewal(cert)) }

// renewal is when a certificate is made anew.
func renewal(cert *x509.Certificate) time.Time {
	return cert.NotAfter.Add(-cert.NotAfter.Sub(cert.NotBefore) / 3)
}
