package apiserver

import (
	"crypto/x509"
	"net/http"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/utils/clock"
	"k8s.io/utils/lru"
)

// How long, and for how many connections, the judgement of a client certificate
// is remembered: to verify a signature costs as much as to store a pod.
const (
	certificateTTL  = time.Minute
	certificatesMax = 4096
)

// certificates remembers whom upstream took the client certificate of a
// connection for. All requests of a connection have the same parsed certificates.
type certificates struct {
	authenticator.Request
	clock clock.PassiveClock
	known *lru.Cache // *x509.Certificate to judgement
	// untrusted is when an authority ceases to be trusted, and the judgements of
	// before it end; nil: none ever does.
	untrusted func() time.Time
}

type judgement struct {
	response *authenticator.Response
	from, to time.Time
}

func newCertificates(judge authenticator.Request, clock clock.PassiveClock) *certificates {
	return &certificates{Request: judge, clock: clock, known: lru.New(certificatesMax)}
}

func (c *certificates) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, false, nil
	}
	leaf := r.TLS.PeerCertificates[0]
	now := c.clock.Now()
	if known, ok := c.known.Get(leaf); ok {
		if j := known.(judgement); !now.Before(j.from) && now.Before(j.to) {
			return j.response, true, nil
		}
	}
	response, ok, err := c.Request.AuthenticateRequest(r)
	if err == nil && ok {
		to := earliest(now.Add(certificateTTL), r.TLS.PeerCertificates)
		if c.untrusted != nil {
			if end := c.untrusted(); end.Before(to) {
				to = end
			}
		}
		c.known.Add(leaf, judgement{response, now, to})
	}
	return response, ok, err
}

// earliest of the time and the ends of the certificates.
func earliest(t time.Time, all []*x509.Certificate) time.Time {
	for _, c := range all {
		if c.NotAfter.Before(t) {
			t = c.NotAfter
		}
	}
	return t
}
