// Package volume makes a pod's volumes as folders on the node, and tells which
// of them a container sees: emptyDir, hostPath, configMap, secret, downwardAPI
// and projected ones, the service account's token among them, and claims of
// local volumes. Generated contents change in one step.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	v1 "k8s.io/api/core/v1"
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
	// Mounts lets volumes be mounted: memory for secrets and where it is asked for, and
	// sub paths as they are when a container starts. It needs root.
	Mounts bool
	// Resource answers the downward API's resourceFieldRef; nil = such items fail.
	Resource func(pod *v1.Pod, ref *v1.ResourceFieldSelector) (string, error)
}

// Manager makes and removes volumes.
type Manager struct {
	opts Options

	mu     sync.Mutex
	tokens map[tokenKey]token
	claims map[types.UID]map[string]string // by volume: where it is
}

// New returns a manager over a folder, which is made when it is needed.
func New(opts Options) *Manager {
	return &Manager{opts: opts, tokens: map[tokenKey]token{}, claims: map[types.UID]map[string]string{}}
}

func (m *Manager) podDir(uid types.UID) string { return filepath.Join(m.opts.Dir, "pods", string(uid)) }

func (m *Manager) path(pod *v1.Pod, v *v1.Volume) string {
	if v.HostPath != nil {
		return v.HostPath.Path
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if path, ok := m.claims[pod.UID][v.Name]; ok {
		return path
	}
	return filepath.Join(m.podDir(pod.UID), "volumes", v.Name)
}

// TearDown removes all volumes of a pod. Nothing is removed while something is
// still mounted below: it may be somebody else's.
func (m *Manager) TearDown(uid types.UID) error {
	m.mu.Lock()
	delete(m.claims, uid)
	for k := range m.tokens {
		if k.pod == uid {
			delete(m.tokens, k)
		}
	}
	m.mu.Unlock()
	if m.opts.Mounts {
		if err := unmountAll(m.podDir(uid)); err != nil {
			return fmt.Errorf("take down the pod's volumes: %w", err)
		}
	}
	return os.RemoveAll(m.podDir(uid))
}

// Setup makes all volumes of a pod; volumes that are there stay as they are,
// but for generated contents, which are brought up to date.
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

// Generated tells whether a volume's contents may change while the pod runs.
func Generated(v *v1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
}

// Refresh brings a running pod's generated contents up to date, and renews its tokens in time.
func (m *Manager) Refresh(ctx context.Context, pod *v1.Pod) error {
	var errs []error
	for i := range pod.Spec.Volumes {
		if v := &pod.Spec.Volumes[i]; Generated(v) {
			if err := m.setup(ctx, pod, v); err != nil {
				errs = append(errs, fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", v.Name, err))
			}
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) setup(ctx context.Context, pod *v1.Pod, v *v1.Volume) error {
	switch {
	case v.HostPath != nil:
		return hostPath(v.HostPath)
	case v.EmptyDir != nil:
		return m.emptyDir(pod, v)
	case v.ConfigMap != nil:
		return m.write(ctx, pod, v, v.ConfigMap.DefaultMode, false, v1.VolumeProjection{ConfigMap: &v1.ConfigMapProjection{
			LocalObjectReference: v.ConfigMap.LocalObjectReference, Items: v.ConfigMap.Items, Optional: v.ConfigMap.Optional,
		}})
	case v.Secret != nil:
		return m.write(ctx, pod, v, v.Secret.DefaultMode, true, v1.VolumeProjection{Secret: &v1.SecretProjection{
			LocalObjectReference: v1.LocalObjectReference{Name: v.Secret.SecretName}, Items: v.Secret.Items, Optional: v.Secret.Optional,
		}})
	case v.DownwardAPI != nil:
		return m.write(ctx, pod, v, v.DownwardAPI.DefaultMode, false, v1.VolumeProjection{DownwardAPI: &v1.DownwardAPIProjection{Items: v.DownwardAPI.Items}})
	case v.Projected != nil:
		return m.write(ctx, pod, v, v.Projected.DefaultMode, true, v.Projected.Sources...)
	case v.PersistentVolumeClaim != nil, v.Ephemeral != nil:
		path, err := m.claim(ctx, pod, v)
		if err != nil {
			return err
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.claims[pod.UID] == nil {
			m.claims[pod.UID] = map[string]string{}
		}
		m.claims[pod.UID][v.Name] = path
		return nil
	}
	return errors.New("volumes of this kind are not supported on this node")
}

func fsGroup(pod *v1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

// emptyDir makes a folder, or memory, that everybody in the pod may write to.
func (m *Manager) emptyDir(pod *v1.Pod, v *v1.Volume) error {
	dir := m.path(pod, v)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	switch v.EmptyDir.Medium {
	case v1.StorageMediumDefault:
	case v1.StorageMediumMemory:
		if !m.opts.Mounts {
			return errors.New("this node has no volumes in memory")
		}
		var size int64
		if v.EmptyDir.SizeLimit != nil {
			size = v.EmptyDir.SizeLimit.Value()
		}
		if err := tmpfs(dir, size); err != nil {
			return err
		}
	default:
		return fmt.Errorf("medium %q is not supported on this node", v.EmptyDir.Medium)
	}
	mode := fs.FileMode(0o777)
	if g := fsGroup(pod); g != nil && m.opts.Mounts {
		if err := os.Chown(dir, -1, int(*g)); err != nil {
			return err
		}
		mode |= fs.ModeSetgid // what is made in it is the group's
	}
	return os.Chmod(dir, mode)
}

// hostPath checks, or makes, what the type asks for; its errors are upstream's.
func hostPath(h *v1.HostPathVolumeSource) error {
	kind := v1.HostPathUnset
	if h.Type != nil {
		kind = *h.Type
	}
	if kind == v1.HostPathUnset {
		return nil
	}
	var mode fs.FileMode = fs.ModeIrregular // of what is not there, which is none of the types
	switch info, err := os.Stat(h.Path); {
	case err == nil:
		mode = info.Mode()
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("hostPath type check failed: %w", err)
	case kind == v1.HostPathDirectoryOrCreate:
		return os.MkdirAll(h.Path, 0o755)
	case kind == v1.HostPathFileOrCreate:
		f, err := os.OpenFile(h.Path, os.O_CREATE|os.O_RDONLY, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	}
	switch kind {
	case v1.HostPathDirectoryOrCreate:
		kind = v1.HostPathDirectory
	case v1.HostPathFileOrCreate:
		kind = v1.HostPathFile
	}
	for _, t := range []struct {
		kind v1.HostPathType
		is   bool
		what string
	}{
		{v1.HostPathDirectory, mode.IsDir(), "directory"},
		{v1.HostPathFile, mode.IsRegular(), "file"},
		{v1.HostPathSocket, mode&fs.ModeSocket != 0, "socket file"},
		{v1.HostPathCharDev, mode&fs.ModeCharDevice != 0, "character device"},
		{v1.HostPathBlockDev, mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0, "block device"},
	} {
		if t.kind == kind && !t.is {
			return fmt.Errorf("hostPath type check failed: %s is not a %s", h.Path, t.what)
		}
	}
	return nil
}

// Mounts returns what a container sees of the pod's volumes. Paths of
// subPathExpr go through expand; recursive says that the pod's runtime handler
// can make mounts recursively read-only.
func (m *Manager) Mounts(pod *v1.Pod, c *v1.Container, recursive bool, expand func(string) string) ([]*runtimeapi.Mount, error) {
	var out []*runtimeapi.Mount
	for i, vm := range c.VolumeMounts {
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
			target := filepath.Join(m.podDir(pod.UID), "volume-subpaths", vol.Name, c.Name, strconv.Itoa(i))
			p, err := m.subPath(host, sub, target)
			if err != nil {
				return nil, fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", vm.Name, c.Name, err)
			}
			host = p
		}
		below, err := resolve(&vm, recursive)
		if err != nil {
			return nil, err
		}
		readOnly := vm.ReadOnly || Generated(vol) || vol.PersistentVolumeClaim != nil && vol.PersistentVolumeClaim.ReadOnly
		mount := &runtimeapi.Mount{ContainerPath: vm.MountPath, HostPath: host, Readonly: readOnly, RecursiveReadOnly: below}
		if !filepath.IsAbs(mount.ContainerPath) {
			mount.ContainerPath = "/" + mount.ContainerPath
		}
		if vm.MountPropagation != nil {
			switch *vm.MountPropagation {
			case v1.MountPropagationHostToContainer:
				mount.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
			case v1.MountPropagationBidirectional:
				mount.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
			}
		}
		out = append(out, mount)
	}
	return out, nil
}

// Check says which of a container's mounts leads out of its volume by what its subPathExpr expands to, or cannot be
// recursively read-only, for nodes that mount nothing.
func Check(c *v1.Container, recursive bool, expand func(string) string) error {
	for _, vm := range c.VolumeMounts {
		if _, err := resolve(&vm, recursive); err != nil {
			return err
		}
		if sub := vm.SubPath + expand(vm.SubPathExpr); sub != "" && !filepath.IsLocal(sub) {
			return fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %q leads out of the volume", vm.Name, c.Name, sub)
		}
	}
	return nil
}

// subPath returns a path below a volume that no link leads out of; what is not there becomes a
// folder. Where mounts can be made, it is a mount of what was found at target, so that what a
// container changes in the volume later cannot lead elsewhere.
func (m *Manager) subPath(volume, sub, target string) (string, error) {
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
		if err := root.Chmod(sub, 0o777); err != nil && m.opts.Mounts { // for whoever the container runs as
			return "", err
		}
	} else if err != nil {
		return "", err
	}
	if !m.opts.Mounts {
		return filepath.EvalSymlinks(filepath.Join(volume, sub))
	}
	f, err := root.Open(sub)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := unmountAll(target); err != nil {
		return "", err
	}
	return target, bind(f, target)
}
