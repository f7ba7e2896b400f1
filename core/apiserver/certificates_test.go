package apiserver

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	testclock "k8s.io/utils/clock/testing"
)

// TestCertificatesAreJudgedAgain has a connection ask again and again, over a
// minute, past its certificate's end, and with a clock that goes back.
func TestCertificatesAreJudgedAgain(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	clock := testclock.NewFakePassiveClock(start)
	judged, valid := 0, true
	c := newCertificates(authenticator.RequestFunc(func(*http.Request) (*authenticator.Response, bool, error) {
		judged++
		return &authenticator.Response{User: &user.DefaultInfo{Name: "ada"}}, valid, nil
	}), clock)
	connection := func(end time.Time) *http.Request {
		return &http.Request{TLS: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{NotAfter: end}}}}
	}
	long, short := connection(start.Add(time.Hour)), connection(start.Add(90*time.Second))
	for _, step := range []struct {
		at     time.Duration
		r      *http.Request
		valid  bool
		judged int // so far
	}{
		{0, long, true, 1},
		{59 * time.Second, long, true, 1},
		{time.Minute, long, true, 2},
		{time.Minute, short, true, 3}, // another connection
		{89 * time.Second, short, true, 3},
		{90 * time.Second, short, false, 4}, // its end, within the minute
		{91 * time.Second, short, false, 5}, // a refusal is not remembered
		{30 * time.Second, long, true, 6},   // before it was judged
	} {
		clock.SetTime(start.Add(step.at))
		valid = step.valid
		response, ok, err := c.AuthenticateRequest(step.r)
		if err != nil || ok != step.valid || judged != step.judged || ok && response.User.GetName() != "ada" {
			t.Errorf("after %v: %v, %v, %v, judged %d times, want %v and %d", step.at, response, ok, err, judged, step.valid, step.judged)
		}
	}
	judged = 0
	for _, r := range []*http.Request{{}, {TLS: &tls.ConnectionState{}}} {
		if _, ok, err := c.AuthenticateRequest(r); ok || err != nil || judged > 0 {
			t.Errorf("without a certificate: %v, %v, judged %d times", ok, err, judged)
		}
	}
}
