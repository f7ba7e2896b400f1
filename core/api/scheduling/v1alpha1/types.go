package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +k8s:openapi-gen=true

// SchedulerProfile says which filters and scores decide for the pods of one
// spec.schedulerName. It is cluster scoped. A scheduler name without a profile
// is not served, but "default-scheduler" always is.
type SchedulerProfile struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec SchedulerProfileSpec `json:"spec"`
}

// +k8s:openapi-gen=true

// SchedulerProfileSpec has the shape of a profile of upstream's
// KubeSchedulerConfiguration.
type SchedulerProfileSpec struct {
	// SchedulerName that the profile serves. Default: the object's name.
	SchedulerName string `json:"schedulerName,omitempty"`
	// Plugins change the default set.
	Plugins Plugins `json:"plugins,omitempty"`
	// Args of the built-in plugins.
	Args *PluginArgs `json:"args,omitempty"`
	// Queue of the profile's pods.
	Queue *Queue `json:"queue,omitempty"`
}

// +k8s:openapi-gen=true

// Plugins of a profile, by extension point.
type Plugins struct {
	Filter PluginSet `json:"filter,omitempty"`
	Score  PluginSet `json:"score,omitempty"`
}

// +k8s:openapi-gen=true

// PluginSet enables and disables plugins of one extension point.
type PluginSet struct {
	// Enabled plugins, called after the default ones that are not disabled.
	// +listType=atomic
	Enabled []PluginRef `json:"enabled,omitempty"`
	// Disabled default plugins; the name "*" disables all of them.
	// +listType=atomic
	Disabled []PluginRef `json:"disabled,omitempty"`
}

// +k8s:openapi-gen=true

// PluginRef names a built-in plugin or a Policy; exactly one is set.
type PluginRef struct {
	// Name of a built-in plugin, today's or the classic one.
	Name string `json:"name,omitempty"`
	// Policy is the name of a Policy object.
	Policy string `json:"policy,omitempty"`
	// Weight of a score, 1 to 100. Default 1 (NodePreferAvoidPods: 10,000).
	Weight *int32 `json:"weight,omitempty"`
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +k8s:openapi-gen=true

// SchedulerProfileList is a list of profiles.
type SchedulerProfileList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []SchedulerProfile `json:"items"`
}
