package apiserver

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/utils/clock"
)

// Rotation says what to make anew while the server runs. The certificates of the
// server itself always are.
type Rotation struct {
	// Authority of the cluster: the one before is trusted for Overlap.
	Authority bool `json:"authority,omitempty"`
	// FrontProxy authority, in the same way.
	FrontProxy bool `json:"frontProxy,omitempty"`
	// TokenKey of service accounts: the next one signs an hour later, and the one
	// before verifies until the last token that it has signed has ended.
	TokenKey bool `json:"tokenKey,omitempty"`
	// Overlap is at least MinOverlap; 0 is DefaultOverlap.
	Overlap time.Duration `json:"overlap,omitempty"`
}

const (
	// DefaultOverlap leaves a weekend for what has to be carried by hand.
	DefaultOverlap = 7 * 24 * time.Hour
	// MinOverlap is what agents need, which ask every ten minutes.
	MinOverlap = time.Hour
)

// ErrOverlap is of a Rotation whose Overlap is too short.
var ErrOverlap = fmt.Errorf("an overlap of less than %s: nodes would be shut out before they have asked for certificates of the new authority", MinOverlap)

// Rotated tells of a rotation.
type Rotated struct {
	// TrustedUntil is the end of the authorities before; zero if none was rotated.
	TrustedUntil time.Time `json:"trustedUntil,omitzero"`
	// SignsFrom is when the next key of tokens signs; zero if none was made.
	SignsFrom time.Time `json:"signsFrom,omitzero"`
}

// RotateCredentials makes keys and certificates anew. Nobody who is connected is
// cut off, and who knows an authority of before reaches the server as long as
// that is trusted: the new one has a certificate of it, which the server shows.
// After an error some may have been made anew; to try again is safe.
func (s *Server) RotateCredentials(r Rotation) (Rotated, error) {
	if r.Overlap == 0 {
		r.Overlap = DefaultOverlap
	}
	if r.Overlap < MinOverlap {
		return Rotated{}, ErrOverlap
	}
	p := s.pki
	p.turning.Lock()
	defer p.turning.Unlock()
	defer p.tell()
	var done Rotated
	for which, wanted := range map[*rotating]bool{&p.cluster: r.Authority, &p.front: r.FrontProxy} {
		if !wanted {
			continue
		}
		next, err := which.Load().successor(p.clock.Now(), r.Overlap)
		if err == nil {
			err = next.save(p.dir, which.name)
		}
		if err != nil {
			return done, fmt.Errorf("rotate the %s: %w", which.title, err)
		}
		which.Store(next)
		if end := next.retired[0].until; end.After(done.TrustedUntil) {
			done.TrustedUntil = end
		}
	}
	if r.TokenKey {
		from, err := p.tokens.rotate()
		if err != nil {
			return done, fmt.Errorf("rotate the key of service account tokens: %w", err)
		}
		done.SignsFrom = from
	}
	p.mu.Lock()
	p.renewProxy = true
	p.mu.Unlock()
	s.log.Info("credentials are rotated", "authority", r.Authority, "frontProxy", r.FrontProxy, "tokenKey", r.TokenKey, "trustedUntil", done.TrustedUntil)
	return done, nil
}

// CredentialsChanged is closed at the next change of what is trusted or signed
// with: at a rotation, and when an authority of before is no longer trusted.
func (s *Server) CredentialsChanged() <-chan struct{} {
	s.pki.mu.Lock()
	defer s.pki.mu.Unlock()
	return s.pki.changed
}

// onChange has do called at each change, after it.
func (p *pki) onChange(do func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.follow = append(p.follow, do)
}

// tell makes the leaves anew and tells all who follow.
func (p *pki) tell() {
	p.mu.Lock()
	p.leaves = map[string]*tls.Certificate{}
	follow, changed, dir := slices.Clone(p.follow), p.changed, p.proxyIn
	p.changed = make(chan struct{})
	p.mu.Unlock()
	if dir != "" {
		// An error is seen again, and told, by keepCredentials.
		_, _, _ = p.frontProxy(p.dir)
	}
	p.tokens.tell()
	for _, do := range follow {
		do()
	}
	close(changed)
}

// nextEnd is when an authority ceases to be trusted; a far time if none does.
func (p *pki) nextEnd() time.Time {
	end, now := forEver, p.clock.Now()
	for _, r := range p.cluster.Load().within(now) {
		if r.until.Before(end) {
			end = r.until
		}
	}
	return end
}

// gone are the authorities that are kept and trusted no more, by their SHA-256.
func (p *pki) gone() map[[sha256.Size]byte]bool {
	out, now := map[[sha256.Size]byte]bool{}, p.clock.Now()
	for _, which := range []*rotating{&p.cluster, &p.front} {
		for _, r := range which.Load().retired {
			if !now.Before(r.until) {
				out[sha256.Sum256(r.cert.Raw)] = true
			}
		}
	}
	return out
}

// sweepInterval is how late, at most, what is written follows the clock. What is
// believed follows at once.
const sweepInterval = time.Minute

// keepCredentials does what the clock asks for, until the context ends.
func (s *Server) keepCredentials(ctx context.Context) {
	timed, ok := s.clock.(clock.WithTicker)
	if !ok {
		timed = clock.RealClock{}
	}
	ticker := timed.NewTicker(sweepInterval)
	defer ticker.Stop()
	over := map[[sha256.Size]byte]bool{} // already told; those of before the start are not in it
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
		if err := s.pki.sweep(over); err != nil {
			s.log.Error("credentials are not renewed", "error", err)
		}
	}
}

// sweep tells once of each authority that is trusted no more, whose files keep it
// as the record for those who ask, and keeps keys and the front proxy's files up.
func (p *pki) sweep(over map[[sha256.Size]byte]bool) error {
	p.turning.Lock()
	defer p.turning.Unlock()
	changed, err := p.tokens.sweep()
	for sum := range p.gone() {
		if !over[sum] {
			over[sum], changed = true, true
		}
	}
	if p.proxyIn != "" {
		_, _, failed := p.frontProxy(p.dir)
		err = errors.Join(err, failed)
	}
	if changed {
		p.tell()
	}
	return err
}
