package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/quaymaster/quaymaster/core"
)

// cluster is the running server that a command talks to.
type cluster struct {
	kubeconfig, namespace string
}

func (c *cluster) flags(command *cobra.Command) {
	c.kubeconfigFlag(command)
	command.Flags().StringVarP(&c.namespace, "namespace", "n", "", "namespace (default: the kubeconfig's)")
}

func (c *cluster) kubeconfigFlag(command *cobra.Command) {
	command.Flags().StringVar(&c.kubeconfig, "kubeconfig", "", "kubeconfig file (default: KUBECONFIG, then ~/.kube/config)")
}

// config of clients, and the namespace to use.
func (c *cluster) config() (*rest.Config, string, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules() // KUBECONFIG as kubectl has it
	rules.ExplicitPath = c.kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil)
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, "", fmt.Errorf("find the server: %w; set --kubeconfig or KUBECONFIG to DIR/kubeconfig", err)
	}
	namespace := c.namespace
	if namespace == "" {
		namespace, _, err = loader.Namespace()
	}
	return config, namespace, err
}

// client is one of the server, with the configuration that it was made of.
func (c *cluster) client() (*kubernetes.Clientset, *rest.Config, error) {
	config, _, err := c.config()
	if err != nil {
		return nil, nil, err
	}
	client, err := kubernetes.NewForConfig(config)
	return client, config, err
}

func newMapper(config *rest.Config) (meta.RESTMapper, error) {
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	cached := memory.NewMemCacheClient(client)
	return restmapper.NewShortcutExpander(restmapper.NewDeferredDiscoveryRESTMapper(cached), cached, nil), nil
}

// resource finds a kind as kubectl does: pod, po, deployments.apps, Policy.
func resource(config *rest.Config, kind string) (*meta.RESTMapping, error) {
	mapper, err := newMapper(config)
	if err != nil {
		return nil, err
	}
	full, short := schema.ParseResourceArg(strings.ToLower(kind))
	if full != nil {
		if found, err := mapper.KindFor(*full); err == nil {
			return mapper.RESTMapping(found.GroupKind(), found.Version)
		}
	}
	found, err := mapper.KindFor(short.WithVersion(""))
	switch {
	case meta.IsNoMatchError(err):
		return nil, fmt.Errorf("there is no kind %q; quaymaster kubectl api-resources lists what there is", kind)
	case err != nil:
		return nil, fmt.Errorf("kind %q: %w", kind, err)
	}
	return mapper.RESTMapping(found.GroupKind(), found.Version)
}

// object is what a command is asked about: KIND [NAMESPACE/]NAME, each maybe
// missing.
type object struct {
	mapping         *meta.RESTMapping
	namespace, name string
}

func (c *cluster) object(config *rest.Config, namespace string, args []string) (o object, err error) {
	if len(args) == 0 {
		return object{namespace: c.namespace}, nil // everything, or what a flag says
	}
	kind, name := args[0], ""
	if len(args) > 1 {
		name = args[1]
	} else if before, after, ok := strings.Cut(kind, "/"); ok { // pod/web
		kind, name = before, after
	}
	if o.mapping, err = resource(config, kind); err != nil {
		return o, err
	}
	o.name = name
	if o.mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		o.namespace = c.namespace
		if before, after, ok := strings.Cut(name, "/"); ok {
			o.namespace, o.name = before, after
		} else if name != "" {
			o.namespace = namespace
		}
	}
	return o, nil
}

// one is the single object that a command is about.
func (c *cluster) one(cmd *cobra.Command, args []string) (*rest.Config, object, error) {
	config, namespace, err := c.config()
	if err != nil {
		return nil, object{}, err
	}
	o, err := c.object(config, namespace, args)
	if err == nil && o.name == "" {
		err = fmt.Errorf("which one? say %s %s NAME", cmd.Name(), args[0])
	}
	return config, o, err
}

// in gives the objects of a resource, in a namespace when it has namespaces.
func in(client dynamic.Interface, mapping *meta.RESTMapping, namespace string) dynamic.ResourceInterface {
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return client.Resource(mapping.Resource).Namespace(namespace)
	}
	return client.Resource(mapping.Resource)
}

func (o object) String() string {
	if o.namespace == "" {
		return o.mapping.Resource.Resource + " " + o.name
	}
	return o.mapping.Resource.Resource + " " + o.namespace + "/" + o.name
}

// query names the object to core.HistoryPath.
func (o object) query() url.Values {
	query := url.Values{}
	if o.mapping != nil {
		query.Set("group", o.mapping.Resource.Group)
		query.Set("version", o.mapping.Resource.Version)
		query.Set("resource", o.mapping.Resource.Resource)
	}
	if o.namespace != "" {
		query.Set("namespace", o.namespace)
	}
	if o.name != "" {
		query.Set("name", o.name)
	}
	return query
}

// open reads a path of the server's beside the API.
func open(cmd *cobra.Command, config *rest.Config, path string, query url.Values) (io.ReadCloser, error) {
	config = rest.CopyConfig(config)
	config.Timeout = 0
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	server, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, err
	}
	server = server.JoinPath(path)
	server.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(cmd.Context(), http.MethodGet, server.String(), nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		defer client.CloseIdleConnections()
		defer response.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10)) // what there is of it is shown
		return nil, fmt.Errorf("the server answered %s: %s", response.Status, strings.TrimSpace(string(text)))
	}
	return body{response.Body, client}, nil
}

type body struct {
	io.ReadCloser
	client *http.Client
}

func (b body) Close() error {
	defer b.client.CloseIdleConnections()
	return b.ReadCloser.Close()
}

// readHistory calls do for every entry of an answer of core.HistoryPath.
func readHistory(cmd *cobra.Command, config *rest.Config, query url.Values, do func(core.HistoryHead, core.HistoryEntry) error) (head core.HistoryHead, err error) {
	answer, err := open(cmd, config, core.HistoryPath, query)
	if err != nil {
		return head, err
	}
	defer answer.Close()
	lines := json.NewDecoder(answer)
	if err := lines.Decode(&head); err != nil {
		return head, fmt.Errorf("read the server's answer: %w", err)
	}
	for {
		var entry core.HistoryEntry
		if err := lines.Decode(&entry); errors.Is(err, io.EOF) {
			return head, nil
		} else if err != nil {
			return head, fmt.Errorf("read the server's answer: %w", err)
		}
		if err := do(head, entry); err != nil {
			return head, err
		}
	}
}
