package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/volume"
)

// environment resolves a container's variables in their order: envFrom, then
// env; a later one of a name wins.
func (a *Agent) environment(ctx context.Context, pod *v1.Pod, c *v1.Container, ips []string) ([]*runtimeapi.KeyValue, error) {
	values := map[string]string{}
	var order []string
	set := func(k, v string) {
		if _, ok := values[k]; !ok {
			order = append(order, k)
		}
		values[k] = v
	}
	services, err := a.serviceLinks(pod)
	if err != nil {
		return nil, err
	}
	for _, k := range slices.Sorted(maps.Keys(services)) {
		set(k, services[k])
	}
	fetched := map[string]map[string]string{} // config maps and secrets
	for _, from := range c.EnvFrom {
		var data map[string]string
		var err error
		switch {
		case from.ConfigMapRef != nil:
			data, err = a.data(ctx, fetched, "configmap", pod.Namespace, from.ConfigMapRef.Name, from.ConfigMapRef.Optional)
		case from.SecretRef != nil:
			data, err = a.data(ctx, fetched, "secret", pod.Namespace, from.SecretRef.Name, from.SecretRef.Optional)
		}
		if err != nil {
			return nil, err
		}
		for _, k := range slices.Sorted(maps.Keys(data)) {
			set(from.Prefix+k, data[k])
		}
	}
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			set(e.Name, expand(e.Value, values))
			continue
		}
		value, ok, err := a.valueFrom(ctx, fetched, pod, c, e.ValueFrom, ips)
		if err != nil {
			return nil, err
		}
		if ok {
			set(e.Name, value)
		}
	}
	out := make([]*runtimeapi.KeyValue, 0, len(order))
	for _, k := range order {
		out = append(out, &runtimeapi.KeyValue{Key: k, Value: []byte(values[k])})
	}
	return out, nil
}

// valueFrom is not ok for an optional reference to what is not there.
func (a *Agent) valueFrom(ctx context.Context, fetched map[string]map[string]string, pod *v1.Pod, c *v1.Container, src *v1.EnvVarSource, ips []string) (value string, ok bool, err error) {
	pick := func(kind, name, key string, optional *bool) (string, bool, error) {
		data, err := a.data(ctx, fetched, kind, pod.Namespace, name, optional)
		if err != nil {
			return "", false, err
		}
		v, ok := data[key]
		if !ok && (optional == nil || !*optional) {
			title := map[string]string{"configmap": "ConfigMap", "secret": "Secret"}[kind]
			return "", false, fmt.Errorf("couldn't find key %v in %s %v/%v", key, title, pod.Namespace, name)
		}
		return v, ok, nil
	}
	switch {
	case src.ConfigMapKeyRef != nil:
		return pick("configmap", src.ConfigMapKeyRef.Name, src.ConfigMapKeyRef.Key, src.ConfigMapKeyRef.Optional)
	case src.SecretKeyRef != nil:
		return pick("secret", src.SecretKeyRef.Name, src.SecretKeyRef.Key, src.SecretKeyRef.Optional)
	case src.ResourceFieldRef != nil:
		value, err = a.containerResource(pod, c, src.ResourceFieldRef)
		return value, err == nil, err
	case src.FieldRef != nil:
		switch path := src.FieldRef.FieldPath; path {
		case "status.hostIP":
			return strings.Join(a.ips[:min(1, len(a.ips))], ""), true, nil
		case "status.hostIPs":
			return strings.Join(a.ips, ","), true, nil
		case "status.podIP":
			return strings.Join(ips[:min(1, len(ips))], ""), true, nil
		case "status.podIPs":
			return strings.Join(ips, ","), true, nil
		default:
			value, err = volume.Field(pod, path)
			return value, err == nil, err
		}
	}
	return "", false, fmt.Errorf("a variable's source is of a kind that is not supported")
}

// data fetches a config map or secret once for a container.
func (a *Agent) data(ctx context.Context, fetched map[string]map[string]string, kind, namespace, name string, optional *bool) (map[string]string, error) {
	key := kind + "/" + name
	if data, ok := fetched[key]; ok {
		return data, nil
	}
	data := map[string]string{}
	var err error
	if kind == "secret" {
		var s *v1.Secret
		if s, err = a.opts.Client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{}); err == nil {
			for k, v := range s.Data {
				data[k] = string(v)
			}
		}
	} else {
		var m *v1.ConfigMap
		if m, err = a.opts.Client.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{}); err == nil {
			data = m.Data
		}
	}
	if apierrors.IsNotFound(err) && (optional == nil || !*optional) {
		return nil, fmt.Errorf("%s %q not found", kind, name)
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, err
	}
	fetched[key] = data
	return data, nil
}

func expandAll(in []string, vars map[string]string) []string {
	var out []string
	for _, s := range in {
		out = append(out, expand(s, vars))
	}
	return out
}

// expand replaces $(NAME) where NAME is known; $$ is a dollar sign that begins
// no reference.
func expand(s string, vars map[string]string) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i == len(s)-1 {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:i])
		switch end := strings.IndexByte(s[i:], ')'); {
		case s[i+1] == '$':
			b.WriteByte('$')
			s = s[i+2:]
			continue
		case s[i+1] == '(' && end > 0:
			if v, ok := vars[s[i+2:i+end]]; ok {
				b.WriteString(v)
			} else {
				b.WriteString(s[i : i+end+1])
			}
			s = s[i+end+1:]
			continue
		}
		b.WriteByte('$')
		s = s[i+1:]
	}
}
