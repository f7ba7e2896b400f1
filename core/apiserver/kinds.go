package apiserver

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/featuregate"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	// Each group's types, conversions and defaults.
	"k8s.io/kube-aggregator/pkg/apis/apiregistration/install"
	_ "k8s.io/kubernetes/pkg/apis/admissionregistration/install"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/authentication/install"
	_ "k8s.io/kubernetes/pkg/apis/authorization/install"
	_ "k8s.io/kubernetes/pkg/apis/autoscaling/install"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	_ "k8s.io/kubernetes/pkg/apis/certificates/install"
	_ "k8s.io/kubernetes/pkg/apis/coordination/install"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	_ "k8s.io/kubernetes/pkg/apis/discovery/install"
	_ "k8s.io/kubernetes/pkg/apis/events/install"
	_ "k8s.io/kubernetes/pkg/apis/flowcontrol/install"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	_ "k8s.io/kubernetes/pkg/apis/node/install"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	_ "k8s.io/kubernetes/pkg/apis/rbac/install"
	_ "k8s.io/kubernetes/pkg/apis/resource/install"
	_ "k8s.io/kubernetes/pkg/apis/scheduling/install"
	_ "k8s.io/kubernetes/pkg/apis/storage/install"
	"k8s.io/kubernetes/pkg/features"
	mutatingwebhookstore "k8s.io/kubernetes/pkg/registry/admissionregistration/mutatingwebhookconfiguration/storage"
	validatingwebhookstore "k8s.io/kubernetes/pkg/registry/admissionregistration/validatingwebhookconfiguration/storage"
	controllerrevisionstore "k8s.io/kubernetes/pkg/registry/apps/controllerrevision/storage"
	daemonsetstore "k8s.io/kubernetes/pkg/registry/apps/daemonset/storage"
	hpastore "k8s.io/kubernetes/pkg/registry/autoscaling/horizontalpodautoscaler/storage"
	cronjobstore "k8s.io/kubernetes/pkg/registry/batch/cronjob/storage"
	jobstore "k8s.io/kubernetes/pkg/registry/batch/job/storage"
	leasestore "k8s.io/kubernetes/pkg/registry/coordination/lease/storage"
	configmapstore "k8s.io/kubernetes/pkg/registry/core/configmap/storage"
	limitrangestore "k8s.io/kubernetes/pkg/registry/core/limitrange/storage"
	pvstore "k8s.io/kubernetes/pkg/registry/core/persistentvolume/storage"
	pvcstore "k8s.io/kubernetes/pkg/registry/core/persistentvolumeclaim/storage"
	podtemplatestore "k8s.io/kubernetes/pkg/registry/core/podtemplate/storage"
	resourcequotastore "k8s.io/kubernetes/pkg/registry/core/resourcequota/storage"
	endpointslicestore "k8s.io/kubernetes/pkg/registry/discovery/endpointslice/storage"
	flowschemastore "k8s.io/kubernetes/pkg/registry/flowcontrol/flowschema/storage"
	prioritylevelstore "k8s.io/kubernetes/pkg/registry/flowcontrol/prioritylevelconfiguration/storage"
	ingressstore "k8s.io/kubernetes/pkg/registry/networking/ingress/storage"
	ingressclassstore "k8s.io/kubernetes/pkg/registry/networking/ingressclass/storage"
	ipaddressstore "k8s.io/kubernetes/pkg/registry/networking/ipaddress/storage"
	networkpolicystore "k8s.io/kubernetes/pkg/registry/networking/networkpolicy/storage"
	servicecidrstore "k8s.io/kubernetes/pkg/registry/networking/servicecidr/storage"
	runtimeclassstore "k8s.io/kubernetes/pkg/registry/node/runtimeclass/storage"
	pdbstore "k8s.io/kubernetes/pkg/registry/policy/poddisruptionbudget/storage"
	deviceclassstore "k8s.io/kubernetes/pkg/registry/resource/deviceclass/storage"
	resourceslicestore "k8s.io/kubernetes/pkg/registry/resource/resourceslice/storage"
	priorityclassstore "k8s.io/kubernetes/pkg/registry/scheduling/priorityclass/storage"
	workloadstore "k8s.io/kubernetes/pkg/registry/scheduling/workload/storage"
	storageclassstore "k8s.io/kubernetes/pkg/registry/storage/storageclass/storage"
	volumeattributesclassstore "k8s.io/kubernetes/pkg/registry/storage/volumeattributesclass/storage"
	"k8s.io/metrics/pkg/apis/metrics"
	metricsinstall "k8s.io/metrics/pkg/apis/metrics/install"

	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/informer"
)

// kind is one served resource. Its short names, categories, columns, scope and
// verbs are those of its storage.
type kind struct {
	group string
	// versions served, the preferred one first; that one is stored.
	versions []string
	kind     string
	resource string
	scope    scope
	// storage makes the resource and its subresources: "" is the resource itself.
	storage constructor
	// prefix of its keys below /registry; empty means the resource's name.
	prefix string
}

type scope int

const (
	namespaced scope = iota
	cluster
	virtual // not stored: reviews, bindings, decisions
)

// constructor makes the storages of a kind by subresource name.
type constructor func(*registries) (map[string]rest.Storage, error)

var (
	v1       = []string{"v1"}
	v1alpha1 = []string{"v1alpha1"}
)

func init() { // the others do so themselves
	install.Install(legacyscheme.Scheme)
	metricsinstall.Install(legacyscheme.Scheme)
}

// kinds is the table of all that is served. To serve another upstream kind, add
// its line. Within a group the order is that of the preferred versions.
var kinds = []kind{
	{"", v1, "Namespace", "namespaces", cluster, namespaces, ""},
	{"", v1, "Node", "nodes", cluster, nodes, "minions"},
	{"", v1, "Pod", "pods", namespaced, pods, ""},
	{"", v1, "Binding", "bindings", virtual, legacyBindings, ""},
	{"", v1, "Service", "services", namespaced, services, "services/specs"},
	{"", v1, "ServiceAccount", "serviceaccounts", namespaced, serviceAccounts, ""},
	{"", v1, "Event", "events", namespaced, events, ""},
	{"", v1, "ConfigMap", "configmaps", namespaced, one(configmapstore.NewREST), ""},
	{"", v1, "Secret", "secrets", namespaced, secrets, ""},
	{"", v1, "Endpoints", "endpoints", namespaced, endpoints, "services/endpoints"},
	{"", v1, "LimitRange", "limitranges", namespaced, one(limitrangestore.NewREST), ""},
	{"", v1, "ResourceQuota", "resourcequotas", namespaced, two(resourcequotastore.NewREST), ""},
	{"", v1, "PersistentVolume", "persistentvolumes", cluster, two(pvstore.NewREST), ""},
	{"", v1, "PersistentVolumeClaim", "persistentvolumeclaims", namespaced, two(pvcstore.NewREST), ""},
	{"", v1, "PodTemplate", "podtemplates", namespaced, one(podtemplatestore.NewREST), ""},
	{"", v1, "ReplicationController", "replicationcontrollers", namespaced, replicationControllers, "controllers"},
	{"", v1, "ComponentStatus", "componentstatuses", virtual, componentStatuses, ""},

	{"events.k8s.io", v1, "Event", "events", namespaced, events, ""},

	{"apps", v1, "Deployment", "deployments", namespaced, deployments, ""},
	{"apps", v1, "ReplicaSet", "replicasets", namespaced, replicaSets, ""},
	{"apps", v1, "StatefulSet", "statefulsets", namespaced, statefulSets, ""},
	{"apps", v1, "DaemonSet", "daemonsets", namespaced, two(daemonsetstore.NewREST), ""},
	{"apps", v1, "ControllerRevision", "controllerrevisions", namespaced, one(controllerrevisionstore.NewREST), ""},

	{"batch", v1, "Job", "jobs", namespaced, two(jobstore.NewREST), ""},
	{"batch", v1, "CronJob", "cronjobs", namespaced, two(cronjobstore.NewREST), ""},

	{"autoscaling", []string{"v2", "v1"}, "HorizontalPodAutoscaler", "horizontalpodautoscalers", namespaced, two(hpastore.NewREST), ""},

	{"policy", v1, "PodDisruptionBudget", "poddisruptionbudgets", namespaced, two(pdbstore.NewREST), ""},

	{"scheduling.k8s.io", v1, "PriorityClass", "priorityclasses", cluster, one(priorityclassstore.NewREST), ""},

	{"coordination.k8s.io", v1, "Lease", "leases", namespaced, one(leasestore.NewREST), ""},

	{"discovery.k8s.io", v1, "EndpointSlice", "endpointslices", namespaced, one(endpointslicestore.NewREST), ""},

	{"networking.k8s.io", v1, "Ingress", "ingresses", namespaced, two(ingressstore.NewREST), "ingress"},
	{"networking.k8s.io", v1, "IngressClass", "ingressclasses", cluster, one(ingressclassstore.NewREST), ""},
	{"networking.k8s.io", v1, "NetworkPolicy", "networkpolicies", namespaced, one(networkpolicystore.NewREST), ""},

	{"networking.k8s.io", v1, "ServiceCIDR", "servicecidrs", cluster, two(servicecidrstore.NewREST), ""},
	{"networking.k8s.io", v1, "IPAddress", "ipaddresses", cluster, one(ipaddressstore.NewREST), ""},

	{"node.k8s.io", v1, "RuntimeClass", "runtimeclasses", cluster, one(runtimeclassstore.NewREST), ""},

	{"storage.k8s.io", v1, "StorageClass", "storageclasses", cluster, one(storageclassstore.NewREST), ""},
	{"storage.k8s.io", v1, "VolumeAttachment", "volumeattachments", cluster, volumeAttachments, ""},
	{"storage.k8s.io", v1, "CSIDriver", "csidrivers", cluster, csiDrivers, ""},
	{"storage.k8s.io", v1, "CSINode", "csinodes", cluster, csiNodes, ""},
	{"storage.k8s.io", v1, "CSIStorageCapacity", "csistoragecapacities", namespaced, csiStorageCapacities, ""},
	{"storage.k8s.io", v1, "VolumeAttributesClass", "volumeattributesclasses", cluster, one(volumeattributesclassstore.NewREST), ""},

	{"resource.k8s.io", v1, "DeviceClass", "deviceclasses", cluster, one(deviceclassstore.NewREST), ""},
	{"resource.k8s.io", v1, "ResourceClaim", "resourceclaims", namespaced, resourceClaims, ""},
	{"resource.k8s.io", v1, "ResourceClaimTemplate", "resourceclaimtemplates", namespaced, resourceClaimTemplates, ""},
	{"resource.k8s.io", v1, "ResourceSlice", "resourceslices", cluster, one(resourceslicestore.NewREST), ""},

	{"flowcontrol.apiserver.k8s.io", v1, "FlowSchema", "flowschemas", cluster, two(flowschemastore.NewREST), ""},
	{"flowcontrol.apiserver.k8s.io", v1, "PriorityLevelConfiguration", "prioritylevelconfigurations", cluster, two(prioritylevelstore.NewREST), ""},

	{"admissionregistration.k8s.io", v1, "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", cluster, one(validatingwebhookstore.NewREST), ""},
	{"admissionregistration.k8s.io", v1, "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", cluster, one(mutatingwebhookstore.NewREST), ""},
	{"admissionregistration.k8s.io", v1, "ValidatingAdmissionPolicy", "validatingadmissionpolicies", cluster, validatingAdmissionPolicies, ""},
	{"admissionregistration.k8s.io", v1, "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", cluster, validatingAdmissionPolicyBindings, ""},
	{"admissionregistration.k8s.io", v1, "MutatingAdmissionPolicy", "mutatingadmissionpolicies", cluster, mutatingAdmissionPolicies, ""},
	{"admissionregistration.k8s.io", v1, "MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings", cluster, mutatingAdmissionPolicyBindings, ""},

	{"rbac.authorization.k8s.io", v1, "ClusterRole", "clusterroles", cluster, clusterRoles, ""},
	{"rbac.authorization.k8s.io", v1, "ClusterRoleBinding", "clusterrolebindings", cluster, clusterRoleBindings, ""},
	{"rbac.authorization.k8s.io", v1, "Role", "roles", namespaced, roles, ""},
	{"rbac.authorization.k8s.io", v1, "RoleBinding", "rolebindings", namespaced, roleBindings, ""},

	{"certificates.k8s.io", v1, "CertificateSigningRequest", "certificatesigningrequests", cluster, certificateSigningRequests, ""},

	{apiregistrationv1.GroupName, v1, "APIService", "apiservices", cluster, apiServices, apiregistrationv1.GroupName + "/apiservices"},

	{metrics.GroupName, []string{"v1beta1"}, "NodeMetrics", "nodes", virtual, nodeMetrics, ""},
	{metrics.GroupName, []string{"v1beta1"}, "PodMetrics", "pods", virtual, podMetrics, ""},

	{"authentication.k8s.io", v1, "TokenReview", "tokenreviews", virtual, tokenReviews, ""},
	{"authentication.k8s.io", v1, "SelfSubjectReview", "selfsubjectreviews", virtual, selfSubjectReviews, ""},

	{"authorization.k8s.io", v1, "SubjectAccessReview", "subjectaccessreviews", virtual, subjectAccessReviews, ""},
	{"authorization.k8s.io", v1, "LocalSubjectAccessReview", "localsubjectaccessreviews", virtual, localSubjectAccessReviews, ""},
	{"authorization.k8s.io", v1, "SelfSubjectAccessReview", "selfsubjectaccessreviews", virtual, selfSubjectAccessReviews, ""},
	{"authorization.k8s.io", v1, "SelfSubjectRulesReview", "selfsubjectrulesreviews", virtual, selfSubjectRulesReviews, ""},

	{policyv1alpha1.SchemeGroupVersion.Group, v1alpha1, "Policy", policyv1alpha1.Resource, cluster, policies, policyv1alpha1.SchemeGroupVersion.Group + "/" + policyv1alpha1.Resource},
	{schedulingv1alpha1.SchemeGroupVersion.Group, v1alpha1, "SchedulerProfile", schedulingv1alpha1.Resource, cluster, schedulerProfiles, schedulingv1alpha1.SchemeGroupVersion.Group + "/" + schedulingv1alpha1.Resource},
	{decisionv1alpha1.SchemeGroupVersion.Group, v1alpha1, "Decision", decisionv1alpha1.Resource, virtual, decisions, ""},
}

// gatedKinds are served while upstream's feature gate for them is on, which
// is alpha and off by default.
var gatedKinds = []struct {
	gate featuregate.Feature
	kind
}{
	{features.GenericWorkload, kind{"scheduling.k8s.io", []string{"v1alpha2"}, "Workload", "workloads", namespaced, one(workloadstore.NewREST), ""}},
	{features.GenericWorkload, kind{"scheduling.k8s.io", []string{"v1alpha2"}, "PodGroup", "podgroups", namespaced, podGroups, ""}},
}

// allKinds is the table with the kinds behind gates that are on.
func allKinds() []kind {
	list := kinds
	for _, k := range gatedKinds {
		if utilfeature.DefaultFeatureGate.Enabled(k.gate) {
			list = append(slices.Clip(list), k.kind)
		}
	}
	return list
}

// SchedulesPodGroups says that PodGroups are served and that a scheduler is to
// honour them.
func SchedulesPodGroups(without ...string) bool {
	return utilfeature.DefaultFeatureGate.Enabled(features.GangScheduling) &&
		slices.ContainsFunc(allKinds(), func(k kind) bool { return k.resource == "podgroups" && !slices.Contains(without, k.name()) })
}

// own tells Quaymaster's kinds, which live in api.Scheme, from upstream's.
func (k kind) own() bool { return strings.HasSuffix(k.group, ".quaymaster.dev") }

func (k kind) groupResource() schema.GroupResource {
	return schema.GroupResource{Group: k.group, Resource: k.resource}
}

// keys is the path of the kind's keys below /registry.
func (k kind) keys() string {
	if k.prefix != "" {
		return k.prefix
	}
	return k.resource
}

// name is the kind's name in Options.Without: "resource.group".
func (k kind) name() string { return k.groupResource().String() }

// Resources lists what is stored, under the version that it is stored in: one
// entry for each key prefix. Without leaves out what Options.Without does.
func Resources(without ...string) []informer.Resource {
	out := make([]informer.Resource, 0, len(kinds))
	seen := make(map[string]bool, len(kinds))
	for _, k := range allKinds() {
		if k.scope == virtual || seen[k.keys()] || slices.Contains(without, k.name()) {
			continue
		}
		seen[k.keys()] = true
		out = append(out, informer.Resource{
			GroupVersionResource: k.groupResource().WithVersion(k.versions[0]),
			Kind:                 k.kind,
			Namespaced:           k.scope == namespaced,
			Prefix:               registryPrefix + "/" + k.keys() + "/",
		})
	}
	return out
}
