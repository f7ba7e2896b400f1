// Package volume makes a pod's volumes as folders on the node, and tells which
// of them a container sees: emptyDir, hostPath, configMap, secret, downwardAPI
// and projected ones, the service account's token among them. Contents are
// written when the pod starts.
package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"
)

// Options of New.
type Options struct {
	Dir      string // volumes are in DIR/pods/UID/volumes/NAME
	Client   kubernetes.Interface
	NodeName string
	Clock    clock.PassiveClock
}

// Manager makes and removes volumes.
type Manager struct{ opts Options }

// New returns a manager over a folder, which is made when it is needed.
func New(opts Options) *Manager { return &Manager{opts: opts} }

func (m *Manager) podDir(uid types.UID) string { return filepath.Join(m.opts.Dir, "pods", string(uid)) }

func (m *Manager) path(pod *v1.Pod, v *v1.Volume) string {
	if v.HostPath != nil {
		return v.HostPath.Path
	}
	return filepath.Join(m.podDir(pod.UID), "volumes", v.Name)
}

// TearDown removes all volumes of a pod.
func (m *Manager) TearDown(uid types.UID) error { return os.RemoveAll(m.podDir(uid)) }

// Setup makes all volumes of a pod; volumes that are there stay as they are,
// but for generated contents, which are written again.
func (m *Manager) Setup(ctx context.Context, pod *v1.Pod) error {
	if err := os.MkdirAll(m.podDir(pod.UID), 0o700); err != nil { // secrets are in it
		return fmt.Errorf("make the pod's volumes: %w", err)
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if err := m.setup(ctx, pod, v); err != nil {
			return fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", v.Name, err)
		}
	}
	return nil
}

func (m *Manager) setup(ctx context.Context, pod *v1.Pod, v *v1.Volume) error {
	switch {
	case v.HostPath != nil:
		return hostPath(v.HostPath)
	case v.EmptyDir != nil:
		return os.MkdirAll(m.path(pod, v), 0o777)
	case v.ConfigMap != nil:
		return m.write(ctx, pod, v, v1.VolumeProjection{ConfigMap: &v1.ConfigMapProjection{
			LocalObjectReference: v.ConfigMap.LocalObjectReference, Items: v.ConfigMap.Items, Optional: v.ConfigMap.Optional,
		}})
	case v.Secret != nil:
		return m.write(ctx, pod, v, v1.VolumeProjection{Secret: &v1.SecretProjection{
			LocalObjectReference: v1.LocalObjectReference{Name: v.Secret.SecretName}, Items: v.Secret.Items, Optional: v.Secret.Optional,
		}})
	case v.DownwardAPI != nil:
		return m.write(ctx, pod, v, v1.VolumeProjection{DownwardAPI: &v1.DownwardAPIProjection{Items: v.DownwardAPI.Items}})
	case v.Projected != nil:
		return m.write(ctx, pod, v, v.Projected.Sources...)
	}
	return errors.New("volumes of this kind are not supported on this node")
}

func hostPath(h *v1.HostPathVolumeSource) error {
	kind := v1.HostPathUnset
	if h.Type != nil {
		kind = *h.Type
	}
	switch kind {
	case v1.HostPathDirectoryOrCreate:
		return os.MkdirAll(h.Path, 0o755)
	case v1.HostPathFileOrCreate:
		f, err := os.OpenFile(h.Path, os.O_CREATE|os.O_RDONLY, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	case v1.HostPathUnset:
		return nil
	}
	info, err := os.Stat(h.Path)
	switch {
	case err != nil:
		return fmt.Errorf("hostPath type check failed: %s: %w", h.Path, err)
	case kind == v1.HostPathDirectory && !info.IsDir():
		return fmt.Errorf("hostPath type check failed: %s is not a directory", h.Path)
	case kind == v1.HostPathFile && !info.Mode().IsRegular():
		return fmt.Errorf("hostPath type check failed: %s is not a file", h.Path)
	}
	return nil
}

// write fills a volume's folder with the files of all its sources.
func (m *Manager) write(ctx context.Context, pod *v1.Pod, v *v1.Volume, sources ...v1.VolumeProjection) error {
	files := map[string][]byte{}
	for _, src := range sources {
		if err := m.project(ctx, pod, src, files); err != nil {
			return err
		}
	}
	dir := m.path(pod, v)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir) // no item's path leads out of the volume
	if err != nil {
		return err
	}
	defer root.Close()
	for name, data := range files {
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := root.WriteFile(name, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// project adds one source's files.
func (m *Manager) project(ctx context.Context, pod *v1.Pod, src v1.VolumeProjection, files map[string][]byte) error {
	core := m.opts.Client.CoreV1()
	switch {
	case src.ConfigMap != nil:
		obj, err := core.ConfigMaps(pod.Namespace).Get(ctx, src.ConfigMap.Name, metav1.GetOptions{})
		if missing(err, src.ConfigMap.Optional) {
			return nil
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
		return items(files, data, src.ConfigMap.Items, src.ConfigMap.Optional, "configmap")
	case src.Secret != nil:
		obj, err := core.Secrets(pod.Namespace).Get(ctx, src.Secret.Name, metav1.GetOptions{})
		if missing(err, src.Secret.Optional) {
			return nil
		}
		if err != nil {
			return err
		}
		return items(files, obj.Data, src.Secret.Items, src.Secret.Optional, "secret")
	case src.DownwardAPI != nil:
		for _, item := range src.DownwardAPI.Items {
			if item.FieldRef == nil {
				return fmt.Errorf("item %s: only fieldRef is supported", item.Path)
			}
			text, err := Field(pod, item.FieldRef.FieldPath)
			if err != nil {
				return err
			}
			files[item.Path] = []byte(text)
		}
		return nil
	case src.ServiceAccountToken != nil:
		seconds := int64(3600)
		if s := src.ServiceAccountToken.ExpirationSeconds; s != nil {
			seconds = *s
		}
		req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			ExpirationSeconds: &seconds,
			BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
		}}
		if a := src.ServiceAccountToken.Audience; a != "" {
			req.Spec.Audiences = []string{a}
		}
		got, err := core.ServiceAccounts(pod.Namespace).CreateToken(ctx, pod.Spec.ServiceAccountName, req, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("failed to fetch token: %w", err)
		}
		files[src.ServiceAccountToken.Path] = []byte(got.Status.Token)
		return nil
	}
	return errors.New("projected sources of this kind are not supported on this node")
}

func missing(err error, optional *bool) bool {
	return apierrors.IsNotFound(err) && optional != nil && *optional
}

// items adds the wanted keys under their paths, or all keys.
func items(files, data map[string][]byte, wanted []v1.KeyToPath, optional *bool, kind string) error {
	if len(wanted) == 0 {
		for k, d := range data {
			files[k] = d
		}
		return nil
	}
	for _, item := range wanted {
		d, ok := data[item.Key]
		switch {
		case ok:
			files[item.Path] = d
		case optional == nil || !*optional:
			return fmt.Errorf("%s references non-existent config key: %s", kind, item.Key)
		}
	}
	return nil
}

// Mounts returns what a container sees of the pod's volumes. Paths of
// subPathExpr go through expand.
func (m *Manager) Mounts(pod *v1.Pod, c *v1.Container, expand func(string) string) ([]*runtimeapi.Mount, error) {
	var out []*runtimeapi.Mount
	for _, vm := range c.VolumeMounts {
		var vol *v1.Volume
		for i := range pod.Spec.Volumes {
			if pod.Spec.Volumes[i].Name == vm.Name {
				vol = &pod.Spec.Volumes[i]
			}
		}
		if vol == nil {
			return nil, fmt.Errorf("volume %q of mount %s is not one of the pod's", vm.Name, vm.MountPath)
		}
		host := m.path(pod, vol)
		if sub := vm.SubPath + expand(vm.SubPathExpr); sub != "" {
			p, err := subPath(host, sub)
			if err != nil {
				return nil, fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", vm.Name, c.Name, err)
			}
			host = p
		}
		generated := vol.ConfigMap != nil || vol.Secret != nil || vol.DownwardAPI != nil || vol.Projected != nil
		out = append(out, &runtimeapi.Mount{ContainerPath: vm.MountPath, HostPath: host, Readonly: vm.ReadOnly || generated})
	}
	return out, nil
}

// subPath returns a path below a volume that exists and that no link leads out of.
func subPath(volume, sub string) (string, error) {
	if !filepath.IsLocal(sub) {
		return "", fmt.Errorf("%q leads out of the volume", sub)
	}
	root, err := os.OpenRoot(volume)
	if err != nil {
		return "", err
	}
	defer root.Close()
	if _, err := root.Stat(sub); errors.Is(err, os.ErrNotExist) {
		if err := root.MkdirAll(sub, 0o755); err != nil {
			return "", err
		}
	} else if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(filepath.Join(volume, sub))
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
