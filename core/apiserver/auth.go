package apiserver

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/group"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/union"
	"k8s.io/apiserver/pkg/authentication/request/websocket"
	x509request "k8s.io/apiserver/pkg/authentication/request/x509"
	tokencache "k8s.io/apiserver/pkg/authentication/token/cache"
	tokenunion "k8s.io/apiserver/pkg/authentication/token/union"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	authorizerunion "k8s.io/apiserver/pkg/authorization/union"
	tokengetter "k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/serviceaccount"
	"k8s.io/kubernetes/plugin/pkg/auth/authenticator/token/bootstrap"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac"

	"github.com/quaymaster/quaymaster/core/apiserver/nodeaccess"
)

// issuer of service account tokens, and their default audience.
const issuer = "https://kubernetes.default.svc.cluster.local"

// tokenCacheTTL is how long an accepted token is not looked at again; upstream's.
const tokenCacheTTL = 10 * time.Second

// newAuthentication accepts, in this order: users of in-memory requests, client
// certificates of our authority, service account tokens, bootstrap tokens and
// tokens of the issuers in Options.AuthenticationConfig.
// Only the health paths are open to everyone.
func (s *Server) newAuthentication() error {
	s.audiences = authenticator.Audiences{issuer}
	var err error
	s.tokens, s.tokenKeys = s.pki.tokens, s.pki.tokens
	core := s.options.Informers.Core().V1()
	objects := tokengetter.NewGetterFromClient(s.client, core.Secrets().Lister(), core.ServiceAccounts().Lister(), core.Pods().Lister(), core.Nodes().Lister())
	accepted := []authenticator.Token{
		serviceaccount.JWTTokenAuthenticator([]string{issuer}, s.tokenKeys, s.audiences, serviceaccount.NewValidator(objects)),
		authenticator.WrapAudienceAgnosticToken(s.audiences, bootstrap.NewTokenAuthenticator(core.Secrets().Lister().Secrets(metav1.NamespaceSystem))),
	}
	if path := s.options.AuthenticationConfig; path != "" {
		if s.outsiders, err = s.newOutsiders(path); err != nil {
			return err
		}
		accepted = append(accepted, s.outsiders)
	}
	tokens := tokencache.New(tokenunion.New(accepted...), true, tokenCacheTTL, 0)

	certificates := newCertificates(x509request.NewDynamic(trust{s.pki, &s.pki.cluster}.VerifyOptions, x509request.CommonNameUserConversion), s.clock)
	certificates.untrusted = s.pki.nextEnd
	s.pki.onChange(certificates.known.Clear)

	var open []apiserver.AnonymousAuthCondition
	for _, path := range openPaths {
		open = append(open, apiserver.AnonymousAuthCondition{Path: path})
	}
	s.authenticator = union.NewFailOnError(
		group.NewAuthenticatedGroupAdder(union.New(
			authenticator.RequestFunc(authenticateCaller),
			certificates,
			bearertoken.New(tokens),
			websocket.NewProtocolAuthenticator(tokens),
		)),
		anonymous.NewAuthenticator(open),
	)
	return nil
}

// openPaths are answered to everyone.
var openPaths = []string{"/healthz", "/livez", "/readyz"}

// newAuthorization asks, in this order: is it system:masters, is it a node and
// within its own business, do roles allow it.
func (s *Server) newAuthorization() error {
	informers := s.options.Informers
	roles := informers.Rbac().V1()
	byRole := rbac.New(
		&rbac.RoleGetter{Lister: roles.Roles().Lister()},
		&rbac.RoleBindingLister{Lister: roles.RoleBindings().Lister()},
		&rbac.ClusterRoleGetter{Lister: roles.ClusterRoles().Lister()},
		&rbac.ClusterRoleBindingLister{Lister: roles.ClusterRoleBindings().Lister()},
	)
	byNode := nodeaccess.New(informers, s.served, s.closing.Done())
	s.authorizer = authorizerunion.New(authorizerfactory.NewPrivilegedGroups(user.SystemPrivilegedGroup), byNode, byRole)
	s.rules = authorizerunion.NewRuleResolvers(byNode, byRole)
	return nil
}
