package apiserver

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"path/filepath"
	"time"

	"k8s.io/client-go/util/cert"
)

// Certificate is one that the server keeps, or a key of tokens.
type Certificate struct {
	Name    string `json:"name"`
	Subject string `json:"subject"`
	// File is below the directory of keys; "(memory)" is made anew at each start.
	File string `json:"file"`
	// Expires is when it ends, or when it is trusted no more if that is earlier.
	Expires time.Time `json:"expires,omitzero"`
	// Renewed is when the server makes it anew by itself; zero: never.
	Renewed  time.Time `json:"renewed,omitzero"`
	SignedBy string    `json:"signedBy"`
}

const onlyMemory = "(memory)"

// Certificates are all that the server keeps, the signing ones first.
func (s *Server) Certificates() ([]Certificate, error) {
	p, now := s.pki, s.clock.Now()
	file := func(name string) string {
		if p.dir == "" {
			return onlyMemory
		}
		return filepath.Join(p.dir, name)
	}
	var out []Certificate
	for _, which := range []*rotating{&p.cluster, &p.front} {
		a := which.Load()
		out = append(out, describe(which.title, file(which.name+".crt"), a.cert))
		for _, r := range a.within(now) {
			old := describe(which.title+", retired", file(which.name+"-retired.pem"), r.cert)
			old.Expires = r.until
			out = append(out, old)
		}
	}
	if s.options.Listener != nil {
		serving, err := p.serving(s.options.Listener.Addr())
		if err != nil {
			return nil, err
		}
		out = append(out, leafOf("the API server", onlyMemory, serving.Leaf))
	}
	nodes, err := p.kubeletClient()
	if err != nil {
		return nil, err
	}
	out = append(out, leafOf("requests to nodes", onlyMemory, nodes.Leaf))
	if proxy := p.frontProxyPair(); proxy.cert != nil {
		parsed, err := cert.ParseCertsPEM(proxy.cert)
		if err != nil {
			return nil, err
		}
		out = append(out, leafOf("front proxy", file(frontProxyName+".crt"), parsed[0]))
	}
	return append(out, p.tokens.inventory(file)...), nil
}

func describe(name, file string, c *x509.Certificate) Certificate {
	return Certificate{Name: name, Subject: c.Subject.String(), File: file, Expires: c.NotAfter, SignedBy: c.Issuer.String()}
}

func leafOf(name, file string, c *x509.Certificate) Certificate {
	out := describe(name, file, c)
	out.Renewed = renewal(c)
	return out
}

func (k *tokenKeys) inventory(file func(string) string) []Certificate {
	k.mu.Lock()
	defer k.mu.Unlock()
	id := func(key any) string { // upstream's, as in the tokens' headers
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			return ""
		}
		sum := sha256.Sum256(der)
		return "kid=" + base64.RawURLEncoding.EncodeToString(sum[:])
	}
	out := []Certificate{{Name: "key of tokens", Subject: id(k.key.Public()), File: file(tokenKeyName + ".key")}}
	if k.next != nil {
		out = append(out, Certificate{Name: "key of tokens, from " + k.from.UTC().Format(time.RFC3339), Subject: id(k.next.Public()), File: file(tokenKeyName + ".next")})
	}
	for _, o := range k.old {
		out = append(out, Certificate{Name: "key of tokens, retired", Subject: id(o.key), File: file(tokenKeyName + "-retired.pem"), Expires: o.until})
	}
	for i := range out {
		out[i].SignedBy = cmp.Or(out[i].SignedBy, "-")
	}
	return out
}
