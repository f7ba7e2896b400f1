package core

import (
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// Audit says which requests are logged, and where. With it, the engine's own
// controllers create and delete pods by requests too, so that the log has them.
type Audit = apiserver.Audit

// API configures the API server. The zero value serves every kind to clients
// with a certificate or a token of the cluster and logs nothing.
type API struct {
	// Audit logs requests; nil logs none.
	Audit *Audit
	// AuthenticationConfig is a file with an AuthenticationConfiguration of
	// apiserver.config.k8s.io/v1: OpenID Connect issuers whose tokens are accepted.
	AuthenticationConfig string
	// EnableAdmission and DisableAdmission name admission plugins of upstream that
	// are in force beyond the default ones, see MoreAdmissionPlugins, and that are not.
	EnableAdmission, DisableAdmission []string
	// WatchCache names resources that get upstream's watch cache, as
	// "widgets.example.com": one decoding and encoding of a change for all who watch,
	// for the memory of all objects. It pays where a hundred clients watch all of a
	// resource; on a real etcd for pods, with many agents on other machines.
	WatchCache []string
	// Without names kinds that are not served, as "horizontalpodautoscalers.autoscaling":
	// nothing follows them, their controllers do not run, and what is stored of them is
	// as if it were not there. Kinds that the engine needs, such as pods, are refused.
	Without []string
}

// MoreAdmissionPlugins are those that API.EnableAdmission may name.
func MoreAdmissionPlugins() []string {
	_, more := apiserver.AdmissionPlugins()
	return more
}

// cached tells which resources get a watch cache.
func (p *parts) cached(resource schema.GroupResource) bool {
	return slices.Contains(p.options.API.WatchCache, resource.String())
}
