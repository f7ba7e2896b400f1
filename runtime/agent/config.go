package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The labels that upstream gives to sandboxes and containers.
const (
	labelPodName       = "io.kubernetes.pod.name"
	labelPodNamespace  = "io.kubernetes.pod.namespace"
	labelPodUID        = "io.kubernetes.pod.uid"
	labelContainerName = "io.kubernetes.container.name"
	annotationRestarts = "io.kubernetes.container.restartCount"
)

// logDir is the folder of a pod's logs, "" where there are none.
func (a *Agent) logDir(pod *v1.Pod) string {
	if a.opts.Dir == "" {
		return ""
	}
	return filepath.Join(a.opts.Dir, "log", pod.Namespace+"_"+pod.Name+"_"+string(pod.UID))
}

func (a *Agent) sandboxConfig(pod *v1.Pod, attempt uint32) *runtimeapi.PodSandboxConfig {
	labels := map[string]string{labelPodName: pod.Name, labelPodNamespace: pod.Namespace, labelPodUID: string(pod.UID)}
	for k, v := range pod.Labels {
		if _, ours := labels[k]; !ours {
			labels[k] = v
		}
	}
	host := pod.Spec.Hostname
	if host == "" {
		host = pod.Name
	}
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: pod.Name, Namespace: pod.Namespace, Uid: string(pod.UID), Attempt: attempt},
		Hostname: host[:min(len(host), 63)], LogDirectory: a.logDir(pod), Labels: labels, Annotations: pod.Annotations,
	}
	namespaces := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	if pod.Spec.HostNetwork {
		namespaces.Network = runtimeapi.NamespaceMode_NODE
	}
	if pod.Spec.HostPID {
		namespaces.Pid = runtimeapi.NamespaceMode_NODE
	}
	if pod.Spec.HostIPC {
		namespaces.Ipc = runtimeapi.NamespaceMode_NODE
	}
	config.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: namespaces}}
	for _, c := range pod.Spec.Containers {
		for _, port := range c.Ports {
			config.PortMappings = append(config.PortMappings, &runtimeapi.PortMapping{
				Protocol: runtimeapi.Protocol(runtimeapi.Protocol_value[string(port.Protocol)]), ContainerPort: port.ContainerPort,
				HostPort: port.HostPort, HostIp: port.HostIP,
			})
		}
	}
	return config
}

// containerConfig resolves what a container's spec refers to. Its errors are the user's.
func (a *Agent) containerConfig(ctx context.Context, pod *v1.Pod, c *v1.Container, attempt uint32, image string, ips []string) (*runtimeapi.ContainerConfig, error) {
	env, err := a.environment(ctx, pod, c, ips)
	if err != nil {
		return nil, err
	}
	vars := make(map[string]string, len(env))
	for _, e := range env {
		vars[e.Key] = string(e.Value)
	}
	logPath := filepath.Join(c.Name, strconv.Itoa(int(attempt))+".log")
	if a.opts.Dir != "" {
		if err := os.MkdirAll(filepath.Join(a.logDir(pod), c.Name), 0o755); err != nil {
			return nil, fmt.Errorf("create the log's folder: %w", err)
		}
	}
	config := &runtimeapi.ContainerConfig{
		Metadata:   &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: attempt},
		Image:      &runtimeapi.ImageSpec{Image: image, UserSpecifiedImage: c.Image},
		Command:    expandAll(c.Command, vars),
		Args:       expandAll(c.Args, vars),
		WorkingDir: c.WorkingDir,
		Envs:       env,
		Labels: map[string]string{
			labelPodName: pod.Name, labelPodNamespace: pod.Namespace, labelPodUID: string(pod.UID), labelContainerName: c.Name,
		},
		Annotations: map[string]string{annotationRestarts: strconv.Itoa(int(attempt))},
		LogPath:     logPath, Stdin: c.Stdin, StdinOnce: c.StdinOnce, Tty: c.TTY,
		Linux: &runtimeapi.LinuxContainerConfig{Resources: resources(c), SecurityContext: security(pod, c)},
	}
	if a.volumes != nil {
		mounts, err := a.volumes.Mounts(pod, c, func(s string) string { return expand(s, vars) })
		if err != nil {
			return nil, err
		}
		config.Mounts = mounts
	}
	return config, nil
}

// resources follows upstream: a CPU's shares are 1024, its quota 100 ms.
func resources(c *v1.Container) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{CpuShares: 2}
	if r := c.Resources.Requests.Cpu(); r.Sign() > 0 {
		out.CpuShares = max(r.MilliValue()*1024/1000, 2)
	}
	if l := c.Resources.Limits.Cpu(); l.Sign() > 0 {
		out.CpuPeriod, out.CpuQuota = 100000, max(l.MilliValue()*100, 1000)
		if c.Resources.Requests.Cpu().IsZero() {
			out.CpuShares = max(l.MilliValue()*1024/1000, 2)
		}
	}
	out.MemoryLimitInBytes = c.Resources.Limits.Memory().Value()
	return out
}

func security(pod *v1.Pod, c *v1.Container) *runtimeapi.LinuxContainerSecurityContext {
	out := &runtimeapi.LinuxContainerSecurityContext{}
	if p := pod.Spec.SecurityContext; p != nil {
		if p.RunAsUser != nil {
			out.RunAsUser = &runtimeapi.Int64Value{Value: *p.RunAsUser}
		}
		if p.RunAsGroup != nil {
			out.RunAsGroup = &runtimeapi.Int64Value{Value: *p.RunAsGroup}
		}
		out.SupplementalGroups = p.SupplementalGroups
	}
	if s := c.SecurityContext; s != nil {
		if s.RunAsUser != nil {
			out.RunAsUser = &runtimeapi.Int64Value{Value: *s.RunAsUser}
		}
		if s.RunAsGroup != nil {
			out.RunAsGroup = &runtimeapi.Int64Value{Value: *s.RunAsGroup}
		}
		out.Privileged = s.Privileged != nil && *s.Privileged
		out.ReadonlyRootfs = s.ReadOnlyRootFilesystem != nil && *s.ReadOnlyRootFilesystem
		out.NoNewPrivs = s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation
		if s.Capabilities != nil {
			out.Capabilities = &runtimeapi.Capability{}
			for _, k := range s.Capabilities.Add {
				out.Capabilities.AddCapabilities = append(out.Capabilities.AddCapabilities, string(k))
			}
			for _, k := range s.Capabilities.Drop {
				out.Capabilities.DropCapabilities = append(out.Capabilities.DropCapabilities, string(k))
			}
		}
	}
	return out
}

// event records one of the pod or, where a name is given, of its container.
func (a *Agent) event(pod *v1.Pod, kind, reason, message, container string) {
	if a.opts.Recorder == nil {
		return
	}
	ref := &v1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
	}
	if container != "" {
		ref.FieldPath = fmt.Sprintf("spec.containers{%s}", container)
		for _, c := range pod.Spec.InitContainers {
			if c.Name == container {
				ref.FieldPath = fmt.Sprintf("spec.initContainers{%s}", container)
			}
		}
	}
	a.opts.Recorder.Event(ref, kind, reason, message)
}

// cleanUp removes the pod's logs and volumes.
func (a *Agent) cleanUp(pod *v1.Pod) error {
	if a.opts.Dir == "" {
		return nil
	}
	err := os.RemoveAll(a.logDir(pod))
	if a.volumes != nil {
		err = errors.Join(err, a.volumes.TearDown(pod.UID))
	}
	return err
}

func (a *Agent) removeLog(path string) {
	if path == "" {
		return
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		a.log.Warn("remove an old log", "path", path, "err", err)
	}
}

// containerResource answers a resourceFieldRef as upstream does: a limit that
// is not set is the node's allocatable.
func (a *Agent) containerResource(pod *v1.Pod, c *v1.Container, ref *v1.ResourceFieldSelector) (string, error) {
	if ref.ContainerName != "" && ref.ContainerName != c.Name {
		found := false
		for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
			for i := range list {
				if list[i].Name == ref.ContainerName {
					c, found = &list[i], true
				}
			}
		}
		if !found {
			return "", fmt.Errorf("container %s not found", ref.ContainerName)
		}
	}
	return resourceValue(c, ref, a.opts.Capacity)
}

func resourceValue(c *v1.Container, ref *v1.ResourceFieldSelector, node v1.ResourceList) (string, error) {
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	var list v1.ResourceList
	var name v1.ResourceName
	switch kind, rest, _ := cut(ref.Resource); kind {
	case "limits":
		list, name = c.Resources.Limits, v1.ResourceName(rest)
	case "requests":
		list, name = c.Resources.Requests, v1.ResourceName(rest)
	default:
		return "", fmt.Errorf("unsupported container resource : %v", ref.Resource)
	}
	q, ok := list[name]
	if !ok && ref.Resource[0] == 'l' {
		q = node[name]
	}
	if name == v1.ResourceCPU {
		return strconv.FormatInt((q.MilliValue()+divisor.MilliValue()-1)/divisor.MilliValue(), 10), nil
	}
	return strconv.FormatInt((q.Value()+divisor.Value()-1)/divisor.Value(), 10), nil
}
