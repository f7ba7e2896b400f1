package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericfilters "k8s.io/apiserver/pkg/server/filters"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/util/flowcontrol"
	flowcontrolrequest "k8s.io/apiserver/pkg/util/flowcontrol/request"
	flowcontrolrest "k8s.io/kubernetes/pkg/registry/flowcontrol/rest"
)

// maxServed is how many requests are at work at once, shared among the priority
// levels as upstream shares it: its default for reads and writes together.
const maxServed = 600

// newFlowControl makes upstream's priority and fairness. A server without a
// port has no need of it: its clients are in the process.
func (s *Server) newFlowControl() flowcontrol.Interface {
	if !s.fair() {
		return nil
	}
	return flowcontrol.New(s.options.Informers, s.client.FlowcontrolV1(), maxServed)
}

// keepFlowControl puts back, at the start and once a minute, what was taken from
// upstream's configuration, as upstream does.
func (s *Server) keepFlowControl() error {
	name, ensure, err := flowcontrolrest.RESTStorageProvider{InformerFactory: s.options.Informers}.PostStartHook()
	if err != nil {
		return err
	}
	return s.generic.AddPostStartHook(name, func(hook genericapiserver.PostStartHookContext) error {
		go func() {
			select {
			case <-s.ready: // ensureFlowControl comes first
			case <-hook.Done():
				return
			}
			if err := ensure(hook); err != nil && hook.Err() == nil {
				s.log.Error("flow schemas and priority levels", "error", err)
			}
		}()
		return nil
	})
}

// ensureFlowControl makes upstream's flow schemas and priority levels at the
// first start, with the status that its controller would give them one by one.
func (s *Server) ensureFlowControl(ctx context.Context, d *Direct) error {
	if !s.fair() {
		return nil
	}
	levels, schemas := flowcontrolv1.SchemeGroupVersion.WithResource("prioritylevelconfigurations"), flowcontrolv1.SchemeGroupVersion.WithResource("flowschemas")
	there, err := d.list(ctx, schemas, metav1.NamespaceNone)
	if err != nil || len(there) > 0 {
		return err // keepFlowControl does the rest
	}
	for _, all := range [][]*flowcontrolv1.PriorityLevelConfiguration{bootstrap.MandatoryPriorityLevelConfigurations, bootstrap.SuggestedPriorityLevelConfigurations} {
		for _, level := range all {
			if err := (object{levels, level}).ensure(ctx, d); err != nil {
				return err
			}
		}
	}
	for _, all := range [][]*flowcontrolv1.FlowSchema{bootstrap.MandatoryFlowSchemas, bootstrap.SuggestedFlowSchemas} {
		for _, want := range all {
			made, err := d.Create(ctx, schemas, "", want)
			if err != nil {
				return fmt.Errorf("flow schema %s: %w", want.Name, err)
			}
			flow := made.(*flowcontrolv1.FlowSchema)
			flow.Status.Conditions = []flowcontrolv1.FlowSchemaCondition{{
				Type: flowcontrolv1.FlowSchemaConditionDangling, Status: flowcontrolv1.ConditionFalse, LastTransitionTime: metav1.NewTime(s.clock.Now()), Reason: "Found",
				Message: fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q and it exists", flow.Spec.PriorityLevelConfiguration.Name),
			}}
			// A conflict is the controller's, which was first.
			if _, err := d.UpdateStatus(ctx, schemas, "", flow); err != nil && !apierrors.IsConflict(err) {
				return fmt.Errorf("flow schema %s: %w", want.Name, err)
			}
		}
	}
	return nil
}

// withFlowControl lets a request wait for its turn. Lists are weighed by how
// many objects there are.
func (s *Server) withFlowControl(handler http.Handler, c *genericapiserver.Config) http.Handler {
	if c.FlowControl == nil {
		return genericfilters.WithMaxInFlightLimit(handler, c.MaxRequestsInFlight, c.MaxMutatingRequestsInFlight, c.LongRunningFunc)
	}
	estimate := flowcontrolrequest.NewWorkEstimator(s.count, c.FlowControl.GetInterestedWatchCount, flowcontrolrequest.DefaultWorkEstimatorConfig(), c.FlowControl.GetMaxSeats)
	return genericfilters.WithPriorityAndFairness(handler, c.LongRunningFunc, c.FlowControl, estimate, c.RequestTimeout/4)
}

// count tells how many objects of a resource are stored, by its name
// "resource.group". The store knows from its index.
func (s *Server) count(name string) (storage.Stats, error) {
	stored, ok := s.stored.of(schema.ParseGroupResource(name))
	if !ok {
		return storage.Stats{}, flowcontrolrequest.ObjectCountNotFoundErr
	}
	stats, err := stored.Stats(s.closing)
	if err != nil {
		return stats, errors.Join(flowcontrolrequest.ObjectCountStaleErr, err)
	}
	return stats, nil
}
