package server

import (
	"crypto/sha256"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// tokenTime is how long the cluster's word on a token is believed, as upstream's kubelet does.
const tokenTime = 2 * time.Minute

// maxTokens is how many tokens are remembered.
const maxTokens = 1000

// user is who calls.
type user struct{ authenticationv1.UserInfo }

func (u user) extra() map[string]authorizationv1.ExtraValue {
	out := map[string]authorizationv1.ExtraValue{}
	for k, v := range u.Extra {
		out[k] = authorizationv1.ExtraValue(v)
	}
	return out
}

type known struct {
	user  user
	until time.Time
}

// reviewer asks the cluster whose a token is.
type reviewer struct {
	client kubernetes.Interface

	mu    sync.Mutex
	known map[[sha256.Size]byte]known
}

// caller is not ok for somebody whom neither a certificate nor a token vouches for.
func (t *reviewer) caller(r *http.Request) (user, bool) {
	if len(r.TLS.VerifiedChains) > 0 {
		subject := r.TLS.VerifiedChains[0][0].Subject
		return user{authenticationv1.UserInfo{
			Username: subject.CommonName, Groups: append([]string{"system:authenticated"}, subject.Organization...),
		}}, true
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || token == "" {
		return user{}, false
	}
	key, now := sha256.Sum256([]byte(token)), time.Now()
	t.mu.Lock()
	k, ok := t.known[key]
	t.mu.Unlock()
	if ok && now.Before(k.until) {
		return k.user, true
	}
	review, err := t.client.AuthenticationV1().TokenReviews().Create(r.Context(), &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token},
	}, metav1.CreateOptions{})
	if err != nil || !review.Status.Authenticated {
		return user{}, false
	}
	who := user{review.Status.User}
	if !slices.Contains(who.Groups, "system:authenticated") {
		who.Groups = append(who.Groups, "system:authenticated")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.known) >= maxTokens {
		clear(t.known)
	}
	t.known[key] = known{who, now.Add(tokenTime)}
	return who, true
}
