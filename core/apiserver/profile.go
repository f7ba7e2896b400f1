package apiserver

import (
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
)

// schedulerProfiles makes the storage of the kind SchedulerProfile.
func schedulerProfiles(r *registries) (map[string]rest.Storage, error) {
	return newOwn(r, ownKind[*schedulingv1alpha1.SchedulerProfile]{
		gvk:        schedulingv1alpha1.SchemeGroupVersion.WithKind("SchedulerProfile"),
		resource:   schedulingv1alpha1.Resource,
		shortNames: []string{"sprof"},
		create:     func(*schedulingv1alpha1.SchedulerProfile) {},
		update:     func(_, _ *schedulingv1alpha1.SchedulerProfile, _ bool) {},
		check:      validateProfile,
		same: func(p, old *schedulingv1alpha1.SchedulerProfile) bool {
			return equality.Semantic.DeepEqual(p.Spec, old.Spec)
		},
		columns: []metav1.TableColumnDefinition{
			{Name: "Scheduler", Type: "string", Description: "Value of spec.schedulerName of the pods that the profile serves."},
			{Name: "Filters", Type: "string", Description: "Filters beyond the default ones."},
			{Name: "Scores", Type: "string", Description: "Scores beyond the default ones."},
		},
		cells: func(p *schedulingv1alpha1.SchedulerProfile) []any {
			return []any{servedScheduler(p), pluginNames(p.Spec.Plugins.Filter), pluginNames(p.Spec.Plugins.Score)}
		},
	}, false)
}

func servedScheduler(p *schedulingv1alpha1.SchedulerProfile) string {
	if p.Spec.SchedulerName != "" {
		return p.Spec.SchedulerName
	}
	return p.Name
}

func pluginNames(set schedulingv1alpha1.PluginSet) string {
	names := make([]string, 0, len(set.Enabled)+len(set.Disabled))
	for _, ref := range set.Enabled {
		names = append(names, ref.Name+ref.Policy) // exactly one is set
	}
	for _, ref := range set.Disabled {
		names = append(names, "-"+ref.Name+ref.Policy)
	}
	return strings.Join(names, ",")
}

func validateProfile(p *schedulingv1alpha1.SchedulerProfile) field.ErrorList {
	all := validation.ValidateObjectMeta(&p.ObjectMeta, false, validation.NameIsDNSSubdomain, field.NewPath("metadata"))
	return append(all, p.Spec.Validate(field.NewPath("spec"))...)
}
