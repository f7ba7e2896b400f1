package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// SchemeGroupVersion is the group and version of these types.
var SchemeGroupVersion = schema.GroupVersion{Group: "scheduling.quaymaster.dev", Version: "v1alpha1"}

// Resource is the plural resource name served for SchedulerProfile.
const Resource = "schedulerprofiles"

// AddToScheme registers the types under their version and as the internal
// version: storage and service use the same Go types.
func AddToScheme(s *runtime.Scheme) error {
	for _, version := range []string{SchemeGroupVersion.Version, runtime.APIVersionInternal} {
		s.AddKnownTypes(schema.GroupVersion{Group: SchemeGroupVersion.Group, Version: version}, &SchedulerProfile{}, &SchedulerProfileList{})
	}
	metav1.AddToGroupVersion(s, SchemeGroupVersion)
	return nil
}
