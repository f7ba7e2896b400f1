package apiserver

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/apiserver/pkg/admission/plugin/namespace/lifecycle"
	mutatingpolicy "k8s.io/apiserver/pkg/admission/plugin/policy/mutating"
	validatingpolicy "k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/resourcequota"
	webhookinit "k8s.io/apiserver/pkg/admission/plugin/webhook/initializer"
	mutatingwebhook "k8s.io/apiserver/pkg/admission/plugin/webhook/mutating"
	validatingwebhook "k8s.io/apiserver/pkg/admission/plugin/webhook/validating"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	quotainstall "k8s.io/kubernetes/pkg/quota/v1/install"
	"k8s.io/kubernetes/plugin/pkg/admission/alwayspullimages"
	"k8s.io/kubernetes/plugin/pkg/admission/antiaffinity"
	"k8s.io/kubernetes/plugin/pkg/admission/certificates/approval"
	certificatesigning "k8s.io/kubernetes/plugin/pkg/admission/certificates/signing"
	"k8s.io/kubernetes/plugin/pkg/admission/certificates/subjectrestriction"
	"k8s.io/kubernetes/plugin/pkg/admission/defaulttolerationseconds"
	"k8s.io/kubernetes/plugin/pkg/admission/extendedresourcetoleration"
	"k8s.io/kubernetes/plugin/pkg/admission/gc"
	"k8s.io/kubernetes/plugin/pkg/admission/limitranger"
	"k8s.io/kubernetes/plugin/pkg/admission/network/defaultingressclass"
	"k8s.io/kubernetes/plugin/pkg/admission/network/denyserviceexternalips"
	"k8s.io/kubernetes/plugin/pkg/admission/noderestriction"
	"k8s.io/kubernetes/plugin/pkg/admission/nodetaint"
	"k8s.io/kubernetes/plugin/pkg/admission/podgroup"
	"k8s.io/kubernetes/plugin/pkg/admission/podnodeselector"
	"k8s.io/kubernetes/plugin/pkg/admission/podresize"
	"k8s.io/kubernetes/plugin/pkg/admission/podtolerationrestriction"
	"k8s.io/kubernetes/plugin/pkg/admission/podtopologylabels"
	"k8s.io/kubernetes/plugin/pkg/admission/priority"
	"k8s.io/kubernetes/plugin/pkg/admission/runtimeclass"
	"k8s.io/kubernetes/plugin/pkg/admission/scheduling/podgroupprotection"
	"k8s.io/kubernetes/plugin/pkg/admission/security/podsecurity"
	"k8s.io/kubernetes/plugin/pkg/admission/serviceaccount"
	"k8s.io/kubernetes/plugin/pkg/admission/storage/persistentvolume/resize"
	"k8s.io/kubernetes/plugin/pkg/admission/storage/storageclass/setdefault"
	"k8s.io/kubernetes/plugin/pkg/admission/storage/storageobjectinuseprotection"
)

// plugin is one of upstream's admission plugins.
type plugin struct {
	name     string
	register func(*admission.Plugins)
	// use says whether it is in force. Upstream's defaults are, and
	// NodeRestriction, without which a node could speak for another.
	use use
}

type use int

const (
	byDefault use = iota
	byName        // only when Options.EnableAdmission has its name
)

// plugins in upstream's order. Those of Options.Admission come before
// ResourceQuota, which must judge last: it charges what it admits.
var plugins = []plugin{
	{lifecycle.PluginName, lifecycle.Register, byDefault},
	{antiaffinity.PluginName, antiaffinity.Register, byName},
	{limitranger.PluginName, limitranger.Register, byDefault},
	{serviceaccount.PluginName, registerServiceAccount, byDefault},
	{noderestriction.PluginName, noderestriction.Register, byDefault},
	{nodetaint.PluginName, nodetaint.Register, byDefault},
	{alwayspullimages.PluginName, alwayspullimages.Register, byName},
	{podsecurity.PluginName, podsecurity.Register, byDefault},
	{podnodeselector.PluginName, podnodeselector.Register, byName},
	{priority.PluginName, priority.Register, byDefault},
	{defaulttolerationseconds.PluginName, defaulttolerationseconds.Register, byDefault},
	{podtolerationrestriction.PluginName, podtolerationrestriction.Register, byName},
	{extendedresourcetoleration.PluginName, extendedresourcetoleration.Register, byName},
	{setdefault.PluginName, setdefault.Register, byDefault},
	{storageobjectinuseprotection.PluginName, storageobjectinuseprotection.Register, byDefault},
	{podgroupprotection.PluginName, podgroupprotection.Register, byDefault},
	{gc.PluginName, gc.Register, byName},
	{resize.PluginName, resize.Register, byDefault},
	{runtimeclass.PluginName, runtimeclass.Register, byDefault},
	{approval.PluginName, approval.Register, byDefault},
	{certificatesigning.PluginName, certificatesigning.Register, byDefault},
	{subjectrestriction.PluginName, subjectrestriction.Register, byDefault},
	{defaultingressclass.PluginName, defaultingressclass.Register, byDefault},
	{denyserviceexternalips.PluginName, denyserviceexternalips.Register, byName},
	{podtopologylabels.PluginName, podtopologylabels.Register, byDefault},
	{podgroup.PluginName, podgroup.Register, byDefault}, // both only with the feature gate GenericWorkload
	{podresize.PluginName, podresize.Register, byDefault},
	{mutatingpolicy.PluginName, nil, byDefault}, // nil: made late, see late.go
	{mutatingwebhook.PluginName, nil, byDefault},
	{validatingpolicy.PluginName, nil, byDefault},
	{validatingwebhook.PluginName, nil, byDefault},
	{resourcequota.PluginName, nil, byDefault},
}

// AdmissionPlugins are the names of upstream's plugins in the order of the
// chain: those that are in force by default, and those that
// Options.EnableAdmission may name.
func AdmissionPlugins() (standard, more []string) {
	for _, p := range plugins {
		if p.use == byDefault {
			standard = append(standard, p.name)
		} else {
			more = append(more, p.name)
		}
	}
	return standard, more
}

// chosen are the plugins that are in force.
func chosen(enable, disable []string) ([]plugin, error) {
	for _, name := range slices.Concat(enable, disable) {
		if !slices.ContainsFunc(plugins, func(p plugin) bool { return p.name == name }) {
			names := make([]string, len(plugins))
			for i, p := range plugins {
				names[i] = p.name
			}
			return nil, fmt.Errorf("there is no plugin %q; there are %s", name, strings.Join(names, ", "))
		}
	}
	var out []plugin
	for _, p := range plugins {
		if (p.use == byDefault || slices.Contains(enable, p.name)) && !slices.Contains(disable, p.name) {
			out = append(out, p)
		}
	}
	return out, nil
}

// newAdmission makes the chain: all mutate in order, then all validate in order.
func (s *Server) newAdmission() error {
	use, err := chosen(s.options.EnableAdmission, s.options.DisableAdmission)
	if err != nil {
		return fmt.Errorf("admission: %w", err)
	}
	initialize, err := s.admissionInitializers()
	if err != nil {
		return fmt.Errorf("admission: %w", err)
	}
	registered := admission.NewPlugins()
	var names []string
	add := func(name string, register func(*admission.Plugins)) {
		names = append(names, name)
		register(registered)
	}
	const addresses = "quaymaster.dev/addresses"
	add(addresses, made(addresses, newWaitForAddresses(s)))
	const devices = "quaymaster.dev/devices"
	add(devices, made(devices, newDevicesGuard(s.authorizer)))
	late := s.latePlugins(initialize)
	quota := func(p plugin) bool { return p.name == resourcequota.PluginName }
	last := slices.IndexFunc(use, quota)
	if last < 0 {
		last = len(use)
	}
	for i := range use {
		if use[i].register == nil {
			use[i].register = made(use[i].name, late[use[i].name])
		}
	}
	for _, p := range use[:last] {
		add(p.name, p.register)
	}
	for i, ours := range s.options.Admission {
		name := fmt.Sprintf("quaymaster.dev/%d", i)
		add(name, made(name, ours))
	}
	for _, p := range use[last:] {
		add(p.name, p.register)
	}
	config, err := admission.ReadAdmissionConfiguration(nil, "", nil)
	if err != nil {
		return err
	}
	chain, err := registered.NewFromPlugins(names, config, initialize, admission.Decorators{})
	if err != nil {
		return fmt.Errorf("admission: %w", err)
	}
	s.admission = judging{chain, &s.judged}
	return nil
}

// made registers a plugin that is there already.
func made(name string, plugin admission.Interface) func(*admission.Plugins) {
	return func(plugins *admission.Plugins) {
		plugins.Register(name, func(io.Reader) (admission.Interface, error) { return plugin, nil })
	}
}

// admissionInitializers hand plugins what they ask for.
func (s *Server) admissionInitializers() (admission.PluginInitializers, error) {
	informers := s.options.Informers
	any, err := dynamic.NewForConfig(s.loopback())
	if err != nil {
		return nil, err
	}
	quotas, err := quotainstall.NewQuotaConfigurationForAdmission(informers, nil)
	if err != nil {
		return nil, err
	}
	var virtuals []schema.GroupResource // no policy may judge who asks what they may do
	for _, k := range allKinds() {
		if k.scope == virtual && strings.HasPrefix(k.group, "auth") {
			virtuals = append(virtuals, k.groupResource())
		}
	}
	return admission.PluginInitializers{
		webhookinit.NewPluginInitializer(s.webhooks.authentication, s.webhooks),
		// Requests that are under way when the server closes are still judged: plugins end with aborted.
		initializer.New(s.client, any, informers, s.authorizer, utilfeature.DefaultFeatureGate, s.version(), s.aborted.Done(), s.mapper),
		initialize(func(plugin admission.Interface) {
			if wants, ok := plugin.(initializer.WantsQuotaConfiguration); ok {
				wants.SetQuotaConfiguration(quotas)
			}
			if wants, ok := plugin.(initializer.WantsExcludedAdmissionResources); ok {
				wants.SetExcludedAdmissionResources(virtuals)
			}
		}),
	}, nil
}

// initialize is a function that is an admission.PluginInitializer.
type initialize func(admission.Interface)

func (f initialize) Initialize(plugin admission.Interface) { f(plugin) }

// latePlugins are made when the first object that they obey is seen.
func (s *Server) latePlugins(initialize admission.PluginInitializers) map[string]admission.Interface {
	registered := admission.NewPlugins()
	mutatingpolicy.Register(registered)
	mutatingwebhook.Register(registered)
	validatingpolicy.Register(registered)
	validatingwebhook.Register(registered)
	resourcequota.Register(registered)
	objects := s.options.Informers.Admissionregistration().V1()
	of := func(name string, obeys ...cache.SharedIndexInformer) *latePlugin {
		return newLatePlugin(obeys, func() (admission.Interface, error) {
			return registered.InitPlugin(name, nil, initialize)
		})
	}
	return map[string]admission.Interface{
		mutatingpolicy.PluginName:    lateMutation{of(mutatingpolicy.PluginName, objects.MutatingAdmissionPolicyBindings().Informer(), objects.MutatingAdmissionPolicies().Informer())},
		mutatingwebhook.PluginName:   lateMutation{of(mutatingwebhook.PluginName, objects.MutatingWebhookConfigurations().Informer())},
		validatingpolicy.PluginName:  lateValidation{of(validatingpolicy.PluginName, objects.ValidatingAdmissionPolicyBindings().Informer(), objects.ValidatingAdmissionPolicies().Informer())},
		validatingwebhook.PluginName: lateValidation{of(validatingwebhook.PluginName, objects.ValidatingWebhookConfigurations().Informer())},
		resourcequota.PluginName:     lateValidation{of(resourcequota.PluginName, s.options.Informers.Core().V1().ResourceQuotas().Informer())},
	}
}
