package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// defaultMode is that of generated files where nothing else is said.
const defaultMode = fs.FileMode(0o644)

// write fills a volume's folder with the files of all its sources. Secret ones are in memory, if they can be.
func (m *Manager) write(ctx context.Context, pod *v1.Pod, v *v1.Volume, mode *int32, secret bool, sources ...v1.VolumeProjection) error {
	p := projection{m: m, pod: pod, volume: v.Name, files: map[string]content{}, mode: defaultMode}
	if mode != nil {
		p.mode = fs.FileMode(*mode)
	}
	for _, src := range sources {
		if err := p.add(ctx, src); err != nil {
			return err
		}
	}
	dir := m.path(pod, v)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var group *int64
	if m.opts.Mounts {
		group = fsGroup(pod)
		if secret {
			if err := tmpfs(dir, 0); err != nil {
				return err
			}
		}
	}
	return publish(dir, p.files, group)
}

// projection collects the files of one volume.
type projection struct {
	m      *Manager
	pod    *v1.Pod
	volume string
	files  map[string]content
	mode   fs.FileMode
}

// add adds one source's files; its errors have upstream's texts.
func (p *projection) add(ctx context.Context, src v1.VolumeProjection) error {
	core := p.m.opts.Client.CoreV1()
	switch {
	case src.ConfigMap != nil:
		obj, err := core.ConfigMaps(p.pod.Namespace).Get(ctx, src.ConfigMap.Name, metav1.GetOptions{})
		if missing(err, src.ConfigMap.Optional) {
			return nil
		}
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("configmap %q not found", src.ConfigMap.Name)
		}
		if err != nil {
			return err
		}
		data := map[string][]byte{}
		for k, d := range obj.BinaryData {
			data[k] = d
		}
		for k, d := range obj.Data {
			data[k] = []byte(d)
		}
		return p.items(data, src.ConfigMap.Items, src.ConfigMap.Optional, "configmap")
	case src.Secret != nil:
		obj, err := core.Secrets(p.pod.Namespace).Get(ctx, src.Secret.Name, metav1.GetOptions{})
		if missing(err, src.Secret.Optional) {
			return nil
		}
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("secret %q not found", src.Secret.Name)
		}
		if err != nil {
			return err
		}
		return p.items(obj.Data, src.Secret.Items, src.Secret.Optional, "secret")
	case src.DownwardAPI != nil:
		for _, item := range src.DownwardAPI.Items {
			var text string
			var err error
			switch {
			case item.FieldRef != nil:
				text, err = Field(p.pod, item.FieldRef.FieldPath)
			case item.ResourceFieldRef != nil && p.m.opts.Resource != nil:
				text, err = p.m.opts.Resource(p.pod, item.ResourceFieldRef)
			default:
				err = fmt.Errorf("item %s names no field that this node knows", item.Path)
			}
			if err != nil {
				return err
			}
			p.file(item.Path, []byte(text), item.Mode)
		}
		return nil
	case src.ServiceAccountToken != nil:
		text, err := p.m.token(ctx, p.pod, p.volume, src.ServiceAccountToken)
		if err != nil {
			return fmt.Errorf("failed to fetch token: %w", err)
		}
		p.file(src.ServiceAccountToken.Path, []byte(text), nil)
		return nil
	}
	return errors.New("projected sources of this kind are not supported on this node")
}

func (p *projection) file(path string, data []byte, mode *int32) {
	c := content{data: data, mode: p.mode}
	if mode != nil {
		c.mode = fs.FileMode(*mode)
	}
	p.files[path] = c
}

// items adds the wanted keys under their paths, or all keys.
func (p *projection) items(data map[string][]byte, wanted []v1.KeyToPath, optional *bool, kind string) error {
	if len(wanted) == 0 {
		for k, d := range data {
			p.file(k, d, nil)
		}
		return nil
	}
	for _, item := range wanted {
		d, ok := data[item.Key]
		switch {
		case ok:
			p.file(item.Path, d, item.Mode)
		case optional == nil || !*optional:
			return fmt.Errorf("%s references non-existent config key: %s", kind, item.Key)
		}
	}
	return nil
}

type tokenKey struct {
	pod                    types.UID
	volume, path, audience string
}

type token struct {
	text  string
	renew time.Time
}

// longestToken is how old a token becomes at most before it is renewed, whatever its own time.
const longestToken = 24 * time.Hour

// token returns a token for a pod: the one before until four fifths of its time have passed, or a day.
func (m *Manager) token(ctx context.Context, pod *v1.Pod, volume string, src *v1.ServiceAccountTokenProjection) (string, error) {
	key := tokenKey{pod.UID, volume, src.Path, src.Audience}
	now := m.opts.Clock.Now()
	m.mu.Lock()
	have, ok := m.tokens[key]
	m.mu.Unlock()
	if ok && now.Before(have.renew) {
		return have.text, nil
	}
	seconds := int64(3600)
	if s := src.ExpirationSeconds; s != nil {
		seconds = *s
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if src.Audience != "" {
		request.Spec.Audiences = []string{src.Audience}
	}
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	got, err := m.opts.Client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, account, request, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	life := time.Duration(seconds) * time.Second
	if end := got.Status.ExpirationTimestamp.Time; !end.IsZero() {
		life = end.Sub(now)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens[key] = token{got.Status.Token, now.Add(min(life*4/5, longestToken))}
	return got.Status.Token, nil
}

// Field returns a field of the pod as the downward API writes it. Fields of the
// status that only the node knows are the caller's.
func Field(pod *v1.Pod, path string) (string, error) {
	keyed := func(prefix string, m map[string]string) (string, bool) {
		key, ok := strings.CutPrefix(path, prefix+"['")
		if !ok {
			return "", false
		}
		return m[strings.TrimSuffix(key, "']")], true
	}
	if v, ok := keyed("metadata.labels", pod.Labels); ok {
		return v, nil
	}
	if v, ok := keyed("metadata.annotations", pod.Annotations); ok {
		return v, nil
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return formatMap(pod.Labels), nil
	case "metadata.annotations":
		return formatMap(pod.Annotations), nil
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	}
	return "", fmt.Errorf("unsupported fieldPath: %v", path)
}

// formatMap writes a map as upstream does: sorted lines of key="value".
func formatMap(m map[string]string) string {
	lines := make([]string, 0, len(m))
	for k, v := range m {
		lines = append(lines, fmt.Sprintf("%v=%q", k, v))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
