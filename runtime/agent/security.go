package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What of /proc and /sys a container does not see, or cannot write to, as upstream has it.
var (
	maskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// namespaces are those of a pod's sandbox.
func namespaces(pod *v1.Pod) *runtimeapi.NamespaceOption {
	out := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	if pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace {
		out.Pid = runtimeapi.NamespaceMode_POD
	}
	if pod.Spec.HostNetwork {
		out.Network = runtimeapi.NamespaceMode_NODE
	}
	if pod.Spec.HostPID {
		out.Pid = runtimeapi.NamespaceMode_NODE
	}
	if pod.Spec.HostIPC {
		out.Ipc = runtimeapi.NamespaceMode_NODE
	}
	return out
}

// users refuses a pod that is not to have the node's users. Its error is upstream's for a runtime that has no
// namespaces of users: a pod must not get less isolation than it asks for.
func (a *Agent) users(pod *v1.Pod, handler string) error {
	switch {
	case pod.Spec.HostUsers == nil || *pod.Spec.HostUsers, a.opts.Containers == nil: // or nobody's user
		return nil
	case handler != "":
		return fmt.Errorf("can't set `spec.hostUsers: false`, RuntimeClass handler %q does not support user namespaces", handler)
	}
	return errors.New("can't set `spec.hostUsers: false`, runtime does not support user namespaces")
}

// seccomp resolves a profile; none is unconfined, as upstream's default is.
func (a *Agent) seccomp(p *v1.SeccompProfile) (*runtimeapi.SecurityProfile, error) {
	switch {
	case p == nil || p.Type == v1.SeccompProfileTypeUnconfined:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	case p.Type == v1.SeccompProfileTypeRuntimeDefault:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case p.LocalhostProfile == nil || *p.LocalhostProfile == "":
		//lint:ignore ST1005 upstream's text
		return nil, errors.New("localhostProfile must be set if seccompProfile type is Localhost.")
	case !filepath.IsLocal(*p.LocalhostProfile):
		return nil, fmt.Errorf("localhostProfile %q leads out of the node's folder of profiles", *p.LocalhostProfile)
	}
	return &runtimeapi.SecurityProfile{
		ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: filepath.Join(a.opts.Dir, "seccomp", *p.LocalhostProfile),
	}, nil
}

func apparmor(p *v1.AppArmorProfile) *runtimeapi.SecurityProfile {
	switch {
	case p == nil || !hostHasAppArmor():
		return nil
	case p.Type == v1.AppArmorProfileTypeUnconfined:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	case p.Type == v1.AppArmorProfileTypeLocalhost && p.LocalhostProfile != nil:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: *p.LocalhostProfile}
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
}

func hostHasAppArmor() bool {
	data, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && len(data) > 0 && data[0] == 'Y'
}

func selinux(o *v1.SELinuxOptions) *runtimeapi.SELinuxOption {
	if o == nil {
		return nil
	}
	return &runtimeapi.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

// groups are those that all of a pod's processes have beside their own.
func groups(p *v1.PodSecurityContext) []int64 {
	if p == nil {
		return nil
	}
	var out []int64
	if p.FSGroup != nil {
		out = append(out, *p.FSGroup)
	}
	return append(out, p.SupplementalGroups...)
}

func int64Value(n *int64) *runtimeapi.Int64Value {
	if n == nil {
		return nil
	}
	return &runtimeapi.Int64Value{Value: *n}
}

func yes(b *bool) bool { return b != nil && *b }

// sandboxSecurity is what the sandbox's own process is held to.
func (a *Agent) sandboxSecurity(pod *v1.Pod) (*runtimeapi.LinuxSandboxSecurityContext, error) {
	out := &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: namespaces(pod), SupplementalGroups: groups(pod.Spec.SecurityContext), Privileged: privileged(pod),
	}
	var profile *v1.SeccompProfile
	if p := pod.Spec.SecurityContext; p != nil {
		out.RunAsUser, out.RunAsGroup, out.SelinuxOptions, profile = int64Value(p.RunAsUser), int64Value(p.RunAsGroup), selinux(p.SELinuxOptions), p.SeccompProfile
		if p.RunAsUser == nil {
			out.RunAsGroup = nil // CRI has no group without a user
		}
		if p.SupplementalGroupsPolicy != nil {
			out.SupplementalGroupsPolicy = runtimeapi.SupplementalGroupsPolicy(runtimeapi.SupplementalGroupsPolicy_value[string(*p.SupplementalGroupsPolicy)])
		}
	}
	if profile == nil { // the sandbox's own process needs no more than this
		profile = &v1.SeccompProfile{Type: v1.SeccompProfileTypeRuntimeDefault}
	}
	var err error
	out.Seccomp, err = a.seccomp(profile)
	return out, err
}

func privileged(pod *v1.Pod) bool {
	is := func(c v1.Container) bool { return c.SecurityContext != nil && yes(c.SecurityContext.Privileged) }
	return slices.ContainsFunc(pod.Spec.Containers, is) || slices.ContainsFunc(pod.Spec.InitContainers, is)
}

// security is what a container is held to: its own context over the pod's. The image's user counts
// where neither names one.
func (a *Agent) security(ctx context.Context, pod *v1.Pod, c *v1.Container, image foundImage) (*runtimeapi.LinuxContainerSecurityContext, error) {
	out := &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: namespaces(pod), SupplementalGroups: groups(pod.Spec.SecurityContext), MaskedPaths: maskedPaths, ReadonlyPaths: readonlyPaths,
	}
	var nonRoot *bool
	var profile *v1.SeccompProfile
	var armor *v1.AppArmorProfile
	if p := pod.Spec.SecurityContext; p != nil {
		out.RunAsUser, out.RunAsGroup, out.SelinuxOptions = int64Value(p.RunAsUser), int64Value(p.RunAsGroup), selinux(p.SELinuxOptions)
		nonRoot, profile, armor = p.RunAsNonRoot, p.SeccompProfile, p.AppArmorProfile
		if p.SupplementalGroupsPolicy != nil {
			out.SupplementalGroupsPolicy = runtimeapi.SupplementalGroupsPolicy(runtimeapi.SupplementalGroupsPolicy_value[string(*p.SupplementalGroupsPolicy)])
		}
	}
	if s := c.SecurityContext; s != nil {
		if s.RunAsUser != nil {
			out.RunAsUser = int64Value(s.RunAsUser)
		}
		if s.RunAsGroup != nil {
			out.RunAsGroup = int64Value(s.RunAsGroup)
		}
		if s.SELinuxOptions != nil {
			out.SelinuxOptions = selinux(s.SELinuxOptions)
		}
		if s.RunAsNonRoot != nil {
			nonRoot = s.RunAsNonRoot
		}
		if s.SeccompProfile != nil {
			profile = s.SeccompProfile
		}
		if s.AppArmorProfile != nil {
			armor = s.AppArmorProfile
		}
		out.Privileged, out.ReadonlyRootfs = yes(s.Privileged), yes(s.ReadOnlyRootFilesystem)
		out.NoNewPrivs = s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation
		if s.ProcMount != nil && *s.ProcMount == v1.UnmaskedProcMount {
			out.MaskedPaths, out.ReadonlyPaths = nil, nil
		}
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
	var err error
	if out.Seccomp, err = a.seccomp(profile); err != nil {
		return nil, err
	}
	out.Apparmor = apparmor(armor)
	if a.opts.Containers == nil {
		return out, nil // nobody's user
	}
	return out, a.user(ctx, pod, c, image, out, yes(nonRoot))
}

// user takes the image's user where no other is asked for, and holds a pod to runAsNonRoot. Its
// errors are upstream's.
func (a *Agent) user(ctx context.Context, pod *v1.Pod, c *v1.Container, image foundImage, out *runtimeapi.LinuxContainerSecurityContext, nonRoot bool) error {
	name := fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID)
	if out.RunAsUser != nil {
		if nonRoot && out.RunAsUser.Value == 0 {
			return fmt.Errorf("container's runAsUser breaks non-root policy (pod: %q, container: %s)", name, c.Name)
		}
		return nil
	}
	if image.status == nil {
		st, err := a.opts.Backend.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: image.ref}})
		if err != nil {
			return err
		}
		image.status = st.Image
	}
	uid, username := image.status.GetUid(), image.status.GetUsername()
	if uid == nil && username == "" {
		uid = &runtimeapi.Int64Value{} // an image that names nobody runs as root
	}
	switch {
	case nonRoot && uid == nil:
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root (pod: %q, container: %s)", username, name, c.Name)
	case nonRoot && uid.Value == 0:
		return fmt.Errorf("container has runAsNonRoot and image will run as root (pod: %q, container: %s)", name, c.Name)
	case uid != nil:
		out.RunAsUser = uid
	}
	out.RunAsUsername = username
	return nil
}
