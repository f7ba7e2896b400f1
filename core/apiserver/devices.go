package apiserver

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	api "k8s.io/kubernetes/pkg/apis/core"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
)

// devicesGuard refuses who may not bind pods to say which devices a pod has: a
// device plugin or runtime hook believes the annotation, as an agent does
// spec.nodeName. The scheduler's binds do not come by here.
type devicesGuard struct {
	*admission.Handler
	authorizer authorizer.Authorizer
}

func newDevicesGuard(a authorizer.Authorizer) *devicesGuard {
	return &devicesGuard{admission.NewHandler(admission.Create, admission.Update), a}
}

// Validate implements admission.ValidationInterface.
func (g *devicesGuard) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() != api.Resource("pods") {
		return nil
	}
	pod, ok := a.GetObject().(*api.Pod)
	if !ok {
		return nil
	}
	value, has := pod.Annotations[schedulingv1alpha1.DevicesAnnotation]
	if old, ok := a.GetOldObject().(*api.Pod); ok && a.GetOperation() == admission.Update {
		if before, had := old.Annotations[schedulingv1alpha1.DevicesAnnotation]; had == has && before == value {
			return nil
		}
	} else if !has {
		return nil
	} else if pod.Spec.NodeName == "" || metav1.GetControllerOf(pod) != nil { // what a template says is its author's word, not the controller's
		return admission.NewForbidden(a, fmt.Errorf("metadata.annotations[%s]: the scheduler writes it with the bind; a pod is made without it", schedulingv1alpha1.DevicesAnnotation))
	}
	decision, reason, err := g.authorizer.Authorize(ctx, authorizer.AttributesRecord{
		User: a.GetUserInfo(), Verb: "create", APIVersion: "v1", Resource: "pods", Subresource: "binding",
		Namespace: a.GetNamespace(), Name: a.GetName(), ResourceRequest: true,
	})
	if decision == authorizer.DecisionAllow {
		return nil
	}
	if err == nil && reason != "" {
		err = fmt.Errorf("%s", reason)
	}
	why := fmt.Errorf("metadata.annotations[%s]: only who may create pods/binding may set or change it", schedulingv1alpha1.DevicesAnnotation)
	if err != nil {
		why = fmt.Errorf("%w: %w", why, err)
	}
	return admission.NewForbidden(a, why)
}
