package apiserver

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
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
	spec := field.NewPath("spec")
	if name := p.Spec.SchedulerName; name != "" {
		for _, message := range utilvalidation.IsDNS1123Subdomain(name) {
			all = append(all, field.Invalid(spec.Child("schedulerName"), name, message))
		}
	}
	all = append(all, validatePluginSet(p.Spec.Plugins.Filter, false, spec.Child("plugins", "filter"))...)
	return append(all, validatePluginSet(p.Spec.Plugins.Score, true, spec.Child("plugins", "score"))...)
}

const maxWeight = 100

func validatePluginSet(set schedulingv1alpha1.PluginSet, weighted bool, path *field.Path) (all field.ErrorList) {
	check := func(refs []schedulingv1alpha1.PluginRef, enabled bool, path *field.Path) {
		for i, ref := range refs {
			at := path.Index(i)
			switch {
			case ref.Name == "" && ref.Policy == "":
				all = append(all, field.Required(at, "set one of name, policy"))
			case ref.Name != "" && ref.Policy != "":
				all = append(all, field.Forbidden(at, "only one of name, policy may be set"))
			case ref.Name == "*" && enabled:
				all = append(all, field.Invalid(at.Child("name"), ref.Name, `"*" may only be disabled`))
			}
			if slices.ContainsFunc(refs[:i], func(o schedulingv1alpha1.PluginRef) bool { return o.Name == ref.Name && o.Policy == ref.Policy }) {
				all = append(all, field.Duplicate(at, ref.Name+ref.Policy))
			}
			switch {
			case ref.Weight == nil:
			case !weighted || !enabled:
				all = append(all, field.Forbidden(at.Child("weight"), "only an enabled score has a weight"))
			case *ref.Weight < 1 || *ref.Weight > maxWeight:
				all = append(all, field.Invalid(at.Child("weight"), *ref.Weight, "must be between 1 and 100, inclusive"))
			}
		}
	}
	check(set.Enabled, true, path.Child("enabled"))
	check(set.Disabled, false, path.Child("disabled"))
	return all
}
