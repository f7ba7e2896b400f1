package apiserver

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/apis/apiserver/install"
	"k8s.io/apiserver/pkg/apis/apiserver/validation"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	authenticationcel "k8s.io/apiserver/pkg/authentication/cel"
	tokenunion "k8s.io/apiserver/pkg/authentication/token/union"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/plugin/pkg/authenticator/token/oidc"
)

// readAuthenticationConfig reads a file with an AuthenticationConfiguration of
// apiserver.config.k8s.io, upstream's own format.
func readAuthenticationConfig(path string, data []byte) (*apiserver.AuthenticationConfiguration, error) {
	scheme := runtime.NewScheme()
	install.Install(scheme)
	utilruntime.Must(apiserver.AddToScheme(scheme))
	object, err := runtime.Decode(serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDecoder(), data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	config, ok := object.(*apiserver.AuthenticationConfiguration)
	if !ok {
		return nil, fmt.Errorf("%s holds a %s, not an AuthenticationConfiguration", path, object.GetObjectKind().GroupVersionKind().Kind)
	}
	if err := validation.ValidateAuthenticationConfiguration(authenticationcel.NewDefaultCompiler(), config, []string{issuer}).ToAggregate(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if config.Anonymous != nil {
		return nil, fmt.Errorf("%s: anonymous: Forbidden: only %s are open to everyone", path, strings.Join(openPaths, ", "))
	}
	return config, nil
}

// authenticationPoll is how often the file is looked at. issuersWait is how long
// the keys of a new one's issuers are waited for before it is taken as it is, and
// oldIssuers how long requests under way may use those of before: upstream's.
const (
	authenticationPoll = 5 * time.Second
	issuersWait        = 10 * time.Second
	oldIssuers         = time.Minute
)

// outsiders accept tokens of the issuers in the file, as it is.
type outsiders struct {
	server *Server
	path   string
	now    atomic.Pointer[issuers]
}

// issuers of one version of the file.
type issuers struct {
	authenticator.Token
	content []byte
	ready   []func() error // an issuer's keys are there
	end     context.CancelFunc
}

// newOutsiders reads the file. An issuer that cannot be reached yet is asked again
// until the server closes.
func (s *Server) newOutsiders(path string) (*outsiders, error) {
	o := &outsiders{server: s, path: path}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("authentication configuration: %w", err)
	}
	first, err := o.load(content)
	if err != nil {
		return nil, fmt.Errorf("authentication configuration: %w", err)
	}
	o.now.Store(first)
	return o, nil
}

// AuthenticateToken implements authenticator.Token.
func (o *outsiders) AuthenticateToken(ctx context.Context, token string) (*authenticator.Response, bool, error) {
	return o.now.Load().AuthenticateToken(ctx, token)
}

func (o *outsiders) load(content []byte) (*issuers, error) {
	config, err := readAuthenticationConfig(o.path, content)
	if err != nil {
		return nil, err
	}
	made := &issuers{content: content}
	var ctx context.Context
	ctx, made.end = context.WithCancel(o.server.closing)
	var all []authenticator.Token
	for _, one := range config.JWT {
		options := oidc.Options{JWTAuthenticator: one, SupportedSigningAlgs: oidc.AllValidSigningAlgorithms(), DisallowedIssuers: []string{issuer}}
		if one.Issuer.CertificateAuthority != "" {
			options.CAContentProvider, err = dynamiccertificates.NewStaticCAContent("issuer "+one.Issuer.URL, []byte(one.Issuer.CertificateAuthority))
		}
		var a oidc.AuthenticatorTokenWithHealthCheck
		if err == nil {
			a, err = oidc.New(ctx, options)
		}
		if err != nil {
			made.end()
			return nil, fmt.Errorf("%s: issuer %s: %w", o.path, one.Issuer.URL, err)
		}
		all, made.ready = append(all, a), append(made.ready, a.HealthCheck)
	}
	made.Token = authenticator.WrapAudienceAgnosticToken(o.server.audiences, tokenunion.NewFailOnError(all...))
	return made, nil
}

// follow takes the file's new versions until the context ends. One that is broken
// changes nothing, and is told of.
func (o *outsiders) follow(ctx context.Context) {
	ticker := time.NewTicker(authenticationPoll)
	defer ticker.Stop()
	var refused []byte
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		content, err := os.ReadFile(o.path)
		old := o.now.Load()
		if err == nil && (bytes.Equal(content, old.content) || bytes.Equal(content, refused)) {
			continue
		}
		var next *issuers
		if err == nil {
			next, err = o.load(content)
			refused = content
		}
		if err != nil {
			o.server.log.Error("the authentication configuration stays as it was", "error", err)
			continue
		}
		refused = nil
		// Its issuers' keys are there before those of old go, if they come in time.
		_ = wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, issuersWait, true, func(context.Context) (bool, error) {
			return !slices.ContainsFunc(next.ready, func(ready func() error) bool { return ready() != nil }), nil
		})
		o.now.Store(next)
		time.AfterFunc(oldIssuers, old.end)
		o.server.log.Info("the authentication configuration has changed", "file", o.path)
	}
}
