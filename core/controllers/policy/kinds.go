package policy

import (
	"context"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/gentype"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/quaymaster/quaymaster/core/api"
	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
)

// kind is what the syncer must know of one of the two kinds.
type kind struct {
	list           func(context.Context) ([]object, error)
	create, update func(context.Context, object) (object, error)
	delete         func(context.Context, object) error
	is             func(object) bool
	equal          func(a, b object) bool // their specs
	take           func(to, from object)  // the spec
}

func policyKind(c *api.Client) kind {
	return kindOf(c.Policies,
		func(l *policyv1alpha1.PolicyList) (out []*policyv1alpha1.Policy) {
			for i := range l.Items {
				out = append(out, &l.Items[i])
			}
			return out
		},
		func(p *policyv1alpha1.Policy) *policyv1alpha1.PolicySpec { return &p.Spec })
}

func profileKind(c *api.Client) kind {
	return kindOf(c.SchedulerProfiles,
		func(l *schedulingv1alpha1.SchedulerProfileList) (out []*schedulingv1alpha1.SchedulerProfile) {
			for i := range l.Items {
				out = append(out, &l.Items[i])
			}
			return out
		},
		func(p *schedulingv1alpha1.SchedulerProfile) *schedulingv1alpha1.SchedulerProfileSpec { return &p.Spec })
}

type listObject interface {
	runtime.Object
	metav1.ListInterface
}

func kindOf[T object, L listObject, S any](client *gentype.ClientWithList[T, L], items func(L) []T, spec func(T) *S) kind {
	return kind{
		list: func(ctx context.Context) ([]object, error) {
			l, err := client.List(ctx, metav1.ListOptions{LabelSelector: LabelManaged + "=" + ManagedByFiles})
			if err != nil {
				return nil, err
			}
			var out []object
			for _, o := range items(l) {
				out = append(out, o)
			}
			return out, nil
		},
		create: func(ctx context.Context, o object) (object, error) {
			return client.Create(ctx, o.(T), metav1.CreateOptions{})
		},
		update: func(ctx context.Context, o object) (object, error) {
			return client.Update(ctx, o.(T), metav1.UpdateOptions{})
		},
		delete: func(ctx context.Context, o object) error {
			uid := o.GetUID()
			return client.Delete(ctx, o.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
		},
		is:    func(o object) bool { _, ok := o.(T); return ok },
		equal: func(a, b object) bool { return apiequality.Semantic.DeepEqual(spec(a.(T)), spec(b.(T))) },
		take:  func(to, from object) { *spec(to.(T)) = *spec(from.DeepCopyObject().(T)) },
	}
}
