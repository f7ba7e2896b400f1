package core

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// Where the API server tells of its certificates. Whom a role allows the
// non-resource URL may ask.
const (
	// CertificatesPath lists them: GET, answered with Certificates as JSON.
	CertificatesPath = "/certificates"
	// RotateCertificatesPath makes them anew: POST of a Rotation, answered with Rotated.
	RotateCertificatesPath = "/certificates/rotate"
	// AuthoritiesPath has the authorities that are to be trusted, PEM, the one that
	// signs first. All who are authenticated may read it.
	AuthoritiesPath = apiserver.AuthoritiesPath
)

// What the paths speak of.
type (
	Certificate = apiserver.Certificate
	Rotation    = apiserver.Rotation
	Rotated     = apiserver.Rotated
)

// DefaultOverlap is that of a Rotation.
const DefaultOverlap = apiserver.DefaultOverlap

// RotateCredentials makes certificates and keys anew on the running engine;
// nobody is cut off. See Rotation.
func (e *Engine) RotateCredentials(r Rotation) (Rotated, error) {
	return e.parts.server.RotateCredentials(r)
}

// Certificates lists what the engine keeps of them.
func (e *Engine) Certificates() ([]Certificate, error) { return e.parts.server.Certificates() }

// CredentialsChanged is closed at the next rotation, and when an authority of
// before is no longer trusted: Kubeconfig and JoinToken then have others.
func (e *Engine) CredentialsChanged() <-chan struct{} { return e.parts.server.CredentialsChanged() }

func (p *parts) certificates(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		http.Error(w, "list certificates with GET", http.StatusMethodNotAllowed)
		return
	}
	all, err := p.server.Certificates()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, all)
}

func (p *parts) rotateCertificates(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		http.Error(w, "rotate certificates with POST", http.StatusMethodNotAllowed)
		return
	}
	var wanted Rotation
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&wanted); err != nil {
		http.Error(w, fmt.Sprintf("what to rotate: %v", err), http.StatusBadRequest)
		return
	}
	done, err := p.server.RotateCredentials(wanted)
	switch {
	case errors.Is(err, apiserver.ErrOverlap):
		http.Error(w, err.Error(), http.StatusBadRequest)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		writeJSON(w, done)
	}
}

func (p *parts) authorities(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		http.Error(w, "read authorities with GET", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "application/x-pem-file")
	_, _ = w.Write(p.server.CAPEM()) // the client is gone
}

func writeJSON(w http.ResponseWriter, what any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(what) // the client is gone
}
