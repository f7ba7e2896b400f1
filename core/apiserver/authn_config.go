package apiserver

import (
	"fmt"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
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
func readAuthenticationConfig(path string) (*apiserver.AuthenticationConfiguration, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
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

// jwtAuthenticators accept tokens of the issuers in the file. An issuer that
// cannot be reached yet is asked again until the server closes.
func (s *Server) jwtAuthenticators(path string) (authenticator.Token, error) {
	config, err := readAuthenticationConfig(path)
	if err != nil {
		return nil, fmt.Errorf("authentication configuration: %w", err)
	}
	var all []authenticator.Token
	for _, one := range config.JWT {
		options := oidc.Options{JWTAuthenticator: one, SupportedSigningAlgs: oidc.AllValidSigningAlgorithms(), DisallowedIssuers: []string{issuer}}
		if one.Issuer.CertificateAuthority != "" {
			if options.CAContentProvider, err = dynamiccertificates.NewStaticCAContent("issuer "+one.Issuer.URL, []byte(one.Issuer.CertificateAuthority)); err != nil {
				return nil, fmt.Errorf("authentication configuration: %s: issuer %s: %w", path, one.Issuer.URL, err)
			}
		}
		made, err := oidc.New(s.closing, options)
		if err != nil {
			return nil, fmt.Errorf("authentication configuration: %s: issuer %s: %w", path, one.Issuer.URL, err)
		}
		all = append(all, made)
	}
	return authenticator.WrapAudienceAgnosticToken(s.audiences, tokenunion.NewFailOnError(all...)), nil
}
