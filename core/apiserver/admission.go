package apiserver

import (
	"fmt"

	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/apiserver/pkg/admission/plugin/namespace/lifecycle"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/kubernetes/plugin/pkg/admission/certificates/approval"
	certificatesigning "k8s.io/kubernetes/plugin/pkg/admission/certificates/signing"
	"k8s.io/kubernetes/plugin/pkg/admission/certificates/subjectrestriction"
	"k8s.io/kubernetes/plugin/pkg/admission/defaulttolerationseconds"
	"k8s.io/kubernetes/plugin/pkg/admission/limitranger"
	"k8s.io/kubernetes/plugin/pkg/admission/network/defaultingressclass"
	"k8s.io/kubernetes/plugin/pkg/admission/noderestriction"
	"k8s.io/kubernetes/plugin/pkg/admission/nodetaint"
	"k8s.io/kubernetes/plugin/pkg/admission/priority"
	"k8s.io/kubernetes/plugin/pkg/admission/runtimeclass"
	"k8s.io/kubernetes/plugin/pkg/admission/serviceaccount"
	"k8s.io/kubernetes/plugin/pkg/admission/storage/persistentvolume/resize"
)

// plugin is one of upstream's admission plugins.
type plugin struct {
	name     string
	register func(*admission.Plugins)
}

// plugins in upstream's order; ours follow.
var plugins = []plugin{
	{lifecycle.PluginName, lifecycle.Register},
	{noderestriction.PluginName, noderestriction.Register},
	{nodetaint.PluginName, nodetaint.Register},
	{limitranger.PluginName, limitranger.Register},
	{serviceaccount.PluginName, serviceaccount.Register},
	{priority.PluginName, priority.Register},
	{defaulttolerationseconds.PluginName, defaulttolerationseconds.Register},
	{resize.PluginName, resize.Register},
	{runtimeclass.PluginName, runtimeclass.Register},
	{approval.PluginName, approval.Register},
	{certificatesigning.PluginName, certificatesigning.Register},
	{subjectrestriction.PluginName, subjectrestriction.Register},
	{defaultingressclass.PluginName, defaultingressclass.Register},
}

// newAdmission makes the chain: all mutate in order, then all validate in order.
func (s *Server) newAdmission() error {
	initialize := admission.PluginInitializers{initializer.New(s.client, nil, s.options.Informers, s.authorizer,
		utilfeature.DefaultFeatureGate, s.version(), s.closing.Done(), nil)}
	registered := admission.NewPlugins()
	names := make([]string, len(plugins))
	for i, p := range plugins {
		names[i] = p.name
		p.register(registered)
	}
	config, err := admission.ReadAdmissionConfiguration(nil, "", nil)
	if err != nil {
		return err
	}
	upstream, err := registered.NewFromPlugins(names, config, initialize, admission.Decorators{})
	if err != nil {
		return fmt.Errorf("admission: %w", err)
	}
	chain := []admission.Interface{upstream}
	for _, ours := range s.options.Admission {
		initialize.Initialize(ours)
		if err := admission.ValidateInitialization(ours); err != nil {
			return fmt.Errorf("admission: %w", err)
		}
		chain = append(chain, ours)
	}
	s.admission = admission.NewChainHandler(chain...)
	return nil
}
