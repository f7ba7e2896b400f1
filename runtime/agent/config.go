package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/rotate"
	"github.com/quaymaster/quaymaster/runtime/agent/status"
	"github.com/quaymaster/quaymaster/runtime/agent/volume"
)

// The labels that upstream gives to sandboxes and containers.
const (
	labelPodName       = "io.kubernetes.pod.name"
	labelPodNamespace  = "io.kubernetes.pod.namespace"
	labelPodUID        = "io.kubernetes.pod.uid"
	labelContainerName = "io.kubernetes.container.name"
	annotationRestarts = "io.kubernetes.container.restartCount"
	annotationImage    = "quaymaster.dev/image" // as the pod's spec had it
)

// logDir is the folder of a pod's logs, "" where there are none.
func (a *Agent) logDir(pod *v1.Pod) string {
	if a.opts.Dir == "" {
		return ""
	}
	return filepath.Join(a.opts.Dir, "log", pod.Namespace+"_"+pod.Name+"_"+string(pod.UID))
}

// podDir holds what is a pod's own on the node's disk.
func (a *Agent) podDir(uid types.UID) string { return filepath.Join(a.opts.Dir, "pods", string(uid)) }

// sandboxConfig resolves what a pod's sandbox is made from. Its errors are the user's.
func (a *Agent) sandboxConfig(pod *v1.Pod, attempt uint32) (*runtimeapi.PodSandboxConfig, error) {
	labels := map[string]string{labelPodName: pod.Name, labelPodNamespace: pod.Namespace, labelPodUID: string(pod.UID)}
	for k, v := range pod.Labels {
		if _, ours := labels[k]; !ours {
			labels[k] = v
		}
	}
	host, domain := a.hostname(pod)
	if yes(pod.Spec.SetHostnameAsFQDN) && domain != "" {
		if host += "." + domain; len(host) > 64 {
			return nil, fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (%d characters is the max, %d characters requested)", host, 64, len(host))
		}
	}
	security, err := a.sandboxSecurity(pod)
	if err != nil {
		return nil, err
	}
	if pod.Spec.HostNetwork {
		host = "" // the machine's: a runtime could not set it
	}
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: pod.Name, Namespace: pod.Namespace, Uid: string(pod.UID), Attempt: attempt},
		Hostname: host, LogDirectory: a.logDir(pod), Labels: labels, Annotations: pod.Annotations,
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: security},
	}
	if p := pod.Spec.SecurityContext; p != nil && len(p.Sysctls) > 0 {
		config.Linux.Sysctls = map[string]string{}
		for _, s := range p.Sysctls {
			config.Linux.Sysctls[s.Name] = s.Value
		}
	}
	if h := a.opts.Containers; h != nil {
		if config.DnsConfig, err = a.dns(pod); err != nil {
			return nil, err
		}
		if h.Cgroups != nil {
			config.Linux.CgroupParent = h.Cgroups.Parent(pod)
		}
	}
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for _, c := range list {
			for _, port := range c.Ports {
				config.PortMappings = append(config.PortMappings, &runtimeapi.PortMapping{
					Protocol: runtimeapi.Protocol(runtimeapi.Protocol_value[string(port.Protocol)]), ContainerPort: port.ContainerPort,
					HostPort: port.HostPort, HostIp: port.HostIP,
				})
			}
		}
	}
	return config, nil
}

// containerConfig resolves what a container's spec refers to. Its errors are the user's.
func (a *Agent) containerConfig(ctx context.Context, pod *v1.Pod, c *v1.Container, attempt uint32, image foundImage, rt *status.Runtime) (*runtimeapi.ContainerConfig, error) {
	env, err := a.environment(ctx, pod, c, rt.IPs)
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
		Image:      &runtimeapi.ImageSpec{Image: image.ref, UserSpecifiedImage: c.Image},
		Command:    expandAll(c.Command, vars),
		Args:       expandAll(c.Args, vars),
		WorkingDir: c.WorkingDir,
		Envs:       env,
		Labels: map[string]string{
			labelPodName: pod.Name, labelPodNamespace: pod.Namespace, labelPodUID: string(pod.UID), labelContainerName: c.Name,
		},
		Annotations: map[string]string{annotationRestarts: strconv.Itoa(int(attempt)), annotationImage: c.Image},
		LogPath:     logPath, Stdin: c.Stdin, StdinOnce: c.StdinOnce, Tty: c.TTY,
		Linux: &runtimeapi.LinuxContainerConfig{Resources: a.resources(pod, c)},
	}
	if config.Linux.SecurityContext, err = a.security(ctx, pod, c, image); err != nil {
		return nil, err
	}
	if a.volumes != nil {
		mounts, err := a.volumes.Mounts(pod, c, rt.RecursiveReadOnly, func(s string) string { return expand(s, vars) })
		if err != nil {
			return nil, err
		}
		config.Mounts = mounts
	} else if err := volume.Check(c, rt.RecursiveReadOnly, func(s string) string { return expand(s, vars) }); err != nil {
		return nil, err
	}
	if a.opts.Containers != nil {
		own, err := a.ownMounts(pod, c, attempt, rt.IPs)
		if err != nil {
			return nil, err
		}
		config.Mounts = append(config.Mounts, own...)
	}
	return config, nil
}

// ownMounts are those that every container has: /etc/hosts and the file of its last words.
func (a *Agent) ownMounts(pod *v1.Pod, c *v1.Container, attempt uint32, ips []string) ([]*runtimeapi.Mount, error) {
	taken := func(path string) bool {
		for _, m := range c.VolumeMounts {
			if filepath.Clean(m.MountPath) == path {
				return true
			}
		}
		return false
	}
	var out []*runtimeapi.Mount
	if !taken("/etc/hosts") {
		path, err := a.hostsFile(pod, ips)
		if err != nil {
			return nil, err
		}
		out = append(out, &runtimeapi.Mount{
			ContainerPath: "/etc/hosts", HostPath: path, Readonly: c.SecurityContext != nil && yes(c.SecurityContext.ReadOnlyRootFilesystem),
		})
	}
	if c.TerminationMessagePath == "" || taken(filepath.Clean(c.TerminationMessagePath)) {
		return out, nil
	}
	path := a.lastWords(pod.UID, c.Name, attempt)
	if err := writeFile(path, nil, 0o666); err != nil { // whoever runs in it may write
		return nil, fmt.Errorf("make the file of the container's last words: %w", err)
	}
	return append(out, &runtimeapi.Mount{ContainerPath: c.TerminationMessagePath, HostPath: path}), nil
}

// lastWords is the file behind a container's terminationMessagePath. It is in no folder of its own: making one
// costs more than the file, and a container's name has no dot.
func (a *Agent) lastWords(uid types.UID, container string, attempt uint32) string {
	return filepath.Join(a.podDir(uid), "termination-log."+container+"."+strconv.Itoa(int(attempt)))
}

// writeFile writes a file in place, with a mode whatever the umask.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		var info fs.FileInfo
		if info, err = f.Stat(); err == nil && info.Mode().Perm() != mode {
			err = f.Chmod(mode)
		}
	}
	return errors.Join(err, f.Close())
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

// cleanUp removes the pod's logs, volumes and control groups.
func (a *Agent) cleanUp(pod *v1.Pod) error {
	if a.opts.Dir == "" {
		return nil
	}
	err := os.RemoveAll(a.logDir(pod))
	if h := a.opts.Containers; h != nil && h.Cgroups != nil {
		err = errors.Join(err, h.Cgroups.Remove(pod.UID))
	}
	if a.volumes != nil {
		err = errors.Join(err, a.volumes.TearDown(pod.UID))
	}
	return err
}

// rotate keeps the logs of running containers within bounds.
func (a *Agent) rotate(ctx context.Context) {
	rotator := rotate.New(rotate.Options{Clock: a.opts.Clock, Reopen: func(ctx context.Context, id string) error {
		_, err := a.opts.Backend.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
		return err
	}, MaxSize: a.opts.Containers.LogSize, MaxFiles: a.opts.Containers.LogFiles})
	for {
		timer := a.opts.Clock.NewTimer(rotate.Period)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C():
		}
		a.mu.Lock()
		pods := slices.Collect(maps.Values(a.pods))
		a.mu.Unlock()
		for _, p := range pods {
			_, rt := p.view()
			for _, c := range rt.Containers {
				if c.State != runtimeapi.ContainerState_CONTAINER_RUNNING || c.LogPath == "" {
					continue
				}
				if err := rotator.Log(ctx, c.Id, c.LogPath); err != nil && ctx.Err() == nil {
					a.log.Warn("a log grows", "err", err)
				}
			}
		}
	}
}

// removeLog removes a dead container's log and what was put aside of it.
func (a *Agent) removeLog(path string) {
	if path == "" {
		return
	}
	if old, err := rotate.Aside(path); err == nil {
		for _, log := range old {
			_ = os.Remove(log)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		a.log.Warn("remove an old log", "path", path, "err", err)
	}
}
