// Package api gathers Quaymaster's own API groups: a scheme that holds them
// beside Kubernetes' types, and a typed client for them.
package api

//go:generate go run k8s.io/code-generator/cmd/deepcopy-gen@v0.36.3 --go-header-file /dev/null --output-file zz_generated.deepcopy.go ./policy/v1alpha1 ./scheduling/v1alpha1 ./decision/v1alpha1

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/gentype"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
)

// Scheme knows every versioned Kubernetes type and ours. It has no internal
// versions of Kubernetes' types: those are the API server's own.
var Scheme = newScheme()

// Codecs of Scheme.
var Codecs = serializer.NewCodecFactory(Scheme)

func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientscheme.AddToScheme,
		apiregistrationv1.AddToScheme,
		policyv1alpha1.AddToScheme,
		schedulingv1alpha1.AddToScheme,
		decisionv1alpha1.AddToScheme,
	} {
		if err := add(s); err != nil {
			panic(fmt.Sprintf("register API types: %v", err)) // two types under one name: a defect of the build
		}
	}
	return s
}

// Client reads and writes Quaymaster's own kinds.
type Client struct {
	Policies          *gentype.ClientWithList[*policyv1alpha1.Policy, *policyv1alpha1.PolicyList]
	SchedulerProfiles *gentype.ClientWithList[*schedulingv1alpha1.SchedulerProfile, *schedulingv1alpha1.SchedulerProfileList]

	decisions rest.Interface
}

// NewClient makes a client from a configuration as client-go's NewForConfig does.
func NewClient(config *rest.Config) (*Client, error) {
	policies, err := restClient(config, policyv1alpha1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	profiles, err := restClient(config, schedulingv1alpha1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	decisions, err := restClient(config, decisionv1alpha1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	params := runtime.NewParameterCodec(Scheme)
	return &Client{
		Policies: gentype.NewClientWithList(policyv1alpha1.Resource, policies, params, "",
			func() *policyv1alpha1.Policy { return &policyv1alpha1.Policy{} },
			func() *policyv1alpha1.PolicyList { return &policyv1alpha1.PolicyList{} }),
		SchedulerProfiles: gentype.NewClientWithList(schedulingv1alpha1.Resource, profiles, params, "",
			func() *schedulingv1alpha1.SchedulerProfile { return &schedulingv1alpha1.SchedulerProfile{} },
			func() *schedulingv1alpha1.SchedulerProfileList { return &schedulingv1alpha1.SchedulerProfileList{} }),
		decisions: decisions,
	}, nil
}

// Decisions reads the explanations of a namespace's pods by pod name.
func (c *Client) Decisions(namespace string) *gentype.Client[*decisionv1alpha1.Decision] {
	return gentype.NewClient(decisionv1alpha1.Resource, c.decisions, runtime.NewParameterCodec(Scheme), namespace,
		func() *decisionv1alpha1.Decision { return &decisionv1alpha1.Decision{} })
}

// FullDecision explains one pod with every failing filter of each node.
func (c *Client) FullDecision(ctx context.Context, namespace, name string) (*decisionv1alpha1.Decision, error) {
	d := &decisionv1alpha1.Decision{}
	return d, c.decisions.Get().Namespace(namespace).Resource(decisionv1alpha1.Resource).Name(name).SubResource("full").Do(ctx).Into(d)
}

// TakenDecision gives the matrix of the last decision for one pod as it was taken.
func (c *Client) TakenDecision(ctx context.Context, namespace, name string) (*decisionv1alpha1.Decision, error) {
	d := &decisionv1alpha1.Decision{}
	return d, c.decisions.Get().Namespace(namespace).Resource(decisionv1alpha1.Resource).Name(name).SubResource("taken").Do(ctx).Into(d)
}

func restClient(config *rest.Config, gv schema.GroupVersion) (rest.Interface, error) {
	c := rest.CopyConfig(config)
	c.GroupVersion = &gv
	c.APIPath = "/apis"
	c.ContentType = runtime.ContentTypeJSON // our kinds have no protobuf
	c.AcceptContentTypes = runtime.ContentTypeJSON
	c.NegotiatedSerializer = Codecs.WithoutConversion()
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", gv, err)
	}
	return client, nil
}
