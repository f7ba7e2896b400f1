// Package static runs pods from manifests on the node itself: files in a folder,
// or a URL. They need no API server to run; where there is one, it shows a
// mirror of each.
package static

import (
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"
)

// Upstream's annotations of static pods and their mirrors.
const (
	annotationHash   = "kubernetes.io/config.hash"
	annotationMirror = "kubernetes.io/config.mirror"
	annotationSource = "kubernetes.io/config.source"
)

// maxManifest is how much is read of a manifest, in bytes.
const maxManifest = 10 << 20

// Parse reads the pods of one manifest, in JSON or YAML: a Pod or a list of pods. Each gets the node's name
// behind its own, an identity from its content, and upstream's defaults. source is "file" or "http".
func Parse(data []byte, node, source string) ([]*v1.Pod, error) {
	if len(data) > maxManifest {
		return nil, fmt.Errorf("a manifest of more than %d bytes", maxManifest)
	}
	body, err := yaml.YAMLToJSON(data)
	if err != nil {
		return nil, fmt.Errorf("couldn't parse as pod(%w), please check config file", err)
	}
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("couldn't parse as pod(%w), please check config file", err)
	}
	var pods []*v1.Pod
	switch o := object.(type) {
	case *v1.Pod:
		pods = []*v1.Pod{o}
	case *v1.PodList:
		for i := range o.Items {
			pods = append(pods, &o.Items[i])
		}
	case *v1.List:
		for _, item := range o.Items {
			p, ok, err := podOf(item)
			if err != nil || !ok {
				return nil, errors.Join(errors.New("a list of a manifest holds what is no pod"), err)
			}
			pods = append(pods, p)
		}
	default:
		return nil, fmt.Errorf("a manifest of kind %s: want Pod or PodList", object.GetObjectKind().GroupVersionKind().Kind)
	}
	for _, p := range pods {
		if err := complete(p, node, source); err != nil {
			return nil, fmt.Errorf("pod %q: %w", p.Name, err)
		}
	}
	return pods, nil
}

func podOf(item runtime.RawExtension) (*v1.Pod, bool, error) {
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(item.Raw, nil, nil)
	p, ok := object.(*v1.Pod)
	return p, ok, err
}

// complete gives a pod its identity and defaults, and refuses what cannot run.
func complete(p *v1.Pod, node, source string) error {
	if err := check(p); err != nil {
		return err
	}
	text, err := json.Marshal(p.Spec)
	if err != nil {
		return err
	}
	if p.UID == "" {
		sum := md5.New()
		fmt.Fprintf(sum, "host:%s\nname:%s\nnamespace:%s\n", node, p.Name, p.Namespace)
		sum.Write(text)
		meta, _ := json.Marshal([]any{p.Labels, p.Annotations})
		sum.Write(meta)
		p.UID = types.UID(hex.EncodeToString(sum.Sum(nil)))
	}
	p.Name += "-" + strings.ToLower(node)
	if p.Namespace == "" {
		p.Namespace = metav1.NamespaceDefault
	}
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	p.Annotations[annotationHash], p.Annotations[annotationSource] = string(p.UID), source
	p.ResourceVersion, p.DeletionTimestamp, p.Status = "", nil, v1.PodStatus{Phase: v1.PodPending}
	p.Spec.NodeName = node
	if source == "file" { // such a pod stays whatever befalls the node
		p.Spec.Tolerations = append(p.Spec.Tolerations, v1.Toleration{Operator: v1.TolerationOpExists, Effect: v1.TaintEffectNoExecute})
	}
	setDefaults(p)
	return nil
}

func check(p *v1.Pod) error {
	var errs []error
	if p.Name == "" {
		errs = append(errs, errors.New("metadata.name: Required value"))
	}
	for _, e := range validation.IsDNS1123Subdomain(p.Name) {
		errs = append(errs, fmt.Errorf("metadata.name: Invalid value: %q: %s", p.Name, e))
	}
	if p.Namespace != "" {
		for _, e := range validation.IsDNS1123Label(p.Namespace) {
			errs = append(errs, fmt.Errorf("metadata.namespace: Invalid value: %q: %s", p.Namespace, e))
		}
	}
	if len(p.Spec.Containers) == 0 {
		errs = append(errs, errors.New("spec.containers: Required value"))
	}
	if len(p.Spec.EphemeralContainers) > 0 {
		errs = append(errs, errors.New("spec.ephemeralContainers: Forbidden: a pod is made without them"))
	}
	if p.Spec.ServiceAccountName != "" {
		errs = append(errs, errors.New("spec.serviceAccountName: Forbidden: static pods may not reference service accounts"))
	}
	volumes, seen := map[string]bool{}, map[string]bool{}
	for i, v := range p.Spec.Volumes {
		if volumes[v.Name] || len(validation.IsDNS1123Label(v.Name)) > 0 {
			errs = append(errs, fmt.Errorf("spec.volumes[%d].name: Invalid value: %q", i, v.Name))
		}
		volumes[v.Name] = true
		if v.Secret != nil || v.ConfigMap != nil || v.Projected != nil || v.PersistentVolumeClaim != nil {
			errs = append(errs, fmt.Errorf("spec.volumes[%d]: Forbidden: static pods may not reference objects of the API", i))
		}
	}
	for field, list := range map[string][]v1.Container{"containers": p.Spec.Containers, "initContainers": p.Spec.InitContainers} {
		for i, c := range list {
			at := fmt.Sprintf("spec.%s[%d]", field, i)
			if seen[c.Name] || len(validation.IsDNS1123Label(c.Name)) > 0 {
				errs = append(errs, fmt.Errorf("%s.name: Invalid value: %q", at, c.Name))
			}
			seen[c.Name] = true
			if c.Image == "" {
				errs = append(errs, fmt.Errorf("%s.image: Required value", at))
			}
			for j, m := range c.VolumeMounts {
				if !volumes[m.Name] || m.MountPath == "" {
					errs = append(errs, fmt.Errorf("%s.volumeMounts[%d]: Invalid value: %q at %q", at, j, m.Name, m.MountPath))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// setDefaults sets what upstream's API server would, as far as a node looks at it.
func setDefaults(p *v1.Pod) {
	s := &p.Spec
	if s.RestartPolicy == "" {
		s.RestartPolicy = v1.RestartPolicyAlways
	}
	if s.DNSPolicy == "" {
		s.DNSPolicy = v1.DNSClusterFirst
	}
	if s.SecurityContext == nil {
		s.SecurityContext = &v1.PodSecurityContext{}
	}
	if s.TerminationGracePeriodSeconds == nil {
		s.TerminationGracePeriodSeconds = ptr.To(int64(v1.DefaultTerminationGracePeriodSeconds))
	}
	s.EnableServiceLinks = ptr.To(ptr.Deref(s.EnableServiceLinks, true))
	if s.SchedulerName == "" {
		s.SchedulerName = v1.DefaultSchedulerName
	}
	for _, list := range [][]v1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			container(&list[i], s.HostNetwork)
		}
	}
}

func container(c *v1.Container, hostNetwork bool) {
	if c.TerminationMessagePath == "" {
		c.TerminationMessagePath = v1.TerminationMessagePathDefault
	}
	if c.TerminationMessagePolicy == "" {
		c.TerminationMessagePolicy = v1.TerminationMessageReadFile
	}
	if c.ImagePullPolicy == "" {
		c.ImagePullPolicy = v1.PullIfNotPresent
		if name := c.Image[strings.LastIndex(c.Image, "/")+1:]; strings.HasSuffix(name, ":latest") || !strings.ContainsAny(name, ":@") {
			c.ImagePullPolicy = v1.PullAlways
		}
	}
	for i := range c.Ports {
		if c.Ports[i].Protocol == "" {
			c.Ports[i].Protocol = v1.ProtocolTCP
		}
		if hostNetwork && c.Ports[i].HostPort == 0 {
			c.Ports[i].HostPort = c.Ports[i].ContainerPort
		}
	}
	for name, limit := range c.Resources.Limits {
		if _, ok := c.Resources.Requests[name]; !ok {
			if c.Resources.Requests == nil {
				c.Resources.Requests = v1.ResourceList{}
			}
			c.Resources.Requests[name] = limit
		}
	}
	for _, p := range []*v1.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
		if p == nil {
			continue
		}
		for _, d := range []struct {
			field *int32
			value int32
		}{{&p.TimeoutSeconds, 1}, {&p.PeriodSeconds, 10}, {&p.SuccessThreshold, 1}, {&p.FailureThreshold, 3}} {
			if *d.field == 0 {
				*d.field = d.value
			}
		}
	}
}
