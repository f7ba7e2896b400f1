package apiserver

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
)

// decisions makes the virtual resource that explains scheduling by pod name.
func decisions(r *registries) (map[string]rest.Storage, error) {
	return map[string]rest.Storage{
		"":      &decisionREST{explain: r.options.Decisions},
		"full":  &decisionREST{explain: r.options.Decisions, view: FullDecision},
		"taken": &decisionREST{explain: r.options.Decisions, view: TakenDecision},
	}, nil
}

type decisionREST struct {
	explain func(ctx context.Context, namespace, pod string, view DecisionView) (*decisionv1alpha1.Decision, error)
	view    DecisionView
}

// DecisionView is what is asked about a decision, by subresource.
type DecisionView string

// Views of a decision: on the state of now, with every failing filter, and as it
// was taken.
const (
	DecisionNow   DecisionView = ""
	FullDecision  DecisionView = "full"
	TakenDecision DecisionView = "taken"
)

var _ interface {
	rest.Storage
	rest.Getter
	rest.Scoper
	rest.SingularNameProvider
	rest.TableConvertor
} = (*decisionREST)(nil)

func (*decisionREST) New() runtime.Object     { return &decisionv1alpha1.Decision{} }
func (*decisionREST) Destroy()                {}
func (*decisionREST) NamespaceScoped() bool   { return true }
func (*decisionREST) GetSingularName() string { return "decision" }

func (d *decisionREST) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	if d.explain == nil {
		return nil, apierrors.NewServiceUnavailable("no scheduler runs in this engine")
	}
	decision, err := d.explain(ctx, apirequest.NamespaceValue(ctx), name, d.view)
	if err != nil {
		return nil, err
	}
	if decision == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{Group: decisionv1alpha1.SchemeGroupVersion.Group, Resource: decisionv1alpha1.Resource}, name)
	}
	return decision, nil
}

// ConvertToTable prints a row for each node, the best first.
func (*decisionREST) ConvertToTable(_ context.Context, object runtime.Object, options runtime.Object) (*metav1.Table, error) {
	decision, ok := object.(*decisionv1alpha1.Decision)
	if !ok {
		return nil, fmt.Errorf("a %T is not a Decision", object)
	}
	table := &metav1.Table{}
	if o, ok := options.(*metav1.TableOptions); !ok || !o.NoHeaders {
		table.ColumnDefinitions = []metav1.TableColumnDefinition{
			{Name: "Node", Type: "string", Format: "name", Description: "Node that was looked at."},
			{Name: "Chosen", Type: "string", Description: "Whether the pod goes there."},
			{Name: "Score", Type: "integer", Description: "Total of the weighted scores."},
			{Name: "Refused by", Type: "string", Description: "Filter that refused the node."},
			{Name: "Reason", Type: "string", Description: "Why it did."},
		}
	}
	chosen := decision.Node
	if decision.Taken != nil && decision.Taken.Node != "" {
		chosen = decision.Taken.Node
	}
	for _, node := range decision.Nodes {
		mark, refused, reason := "", "", ""
		if node.Name == chosen {
			mark = "*"
		}
		if node.Filter != nil {
			refused, reason = node.Filter.Plugin, node.Filter.Reason
		}
		table.Rows = append(table.Rows, metav1.TableRow{
			Cells:  []any{node.Name, mark, node.Total, refused, reason},
			Object: runtime.RawExtension{Object: &metav1.PartialObjectMetadata{ObjectMeta: decision.ObjectMeta}},
		})
	}
	return table, nil
}
