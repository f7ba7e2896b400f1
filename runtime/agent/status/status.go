// Package status derives a pod's status from what its node's runtime says, with
// upstream's phases, conditions, container states and reasons. It is pure.
package status

import (
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/volume"
)

// Runtime is what a node knows of one pod.
type Runtime struct {
	Name         string // of the runtime: the scheme of container IDs
	SandboxReady bool
	IPs          []string
	HostIPs      []string
	// Containers are all of the pod's containers, dead ones as well, in any order.
	Containers []*runtimeapi.ContainerStatus
	// Lost holds the last known status of containers that are in the runtime no more.
	Lost map[string]v1.ContainerStatus
	// RecursiveReadOnly says that the pod's runtime handler can make mounts so.
	RecursiveReadOnly bool
	// Asked tells by its ID how a running container's probes see it; nil = what runs is ready.
	Asked func(id string) (started, ready bool)
	// Failed says that the node ended the pod, and why.
	Failed *Failure
	// Allocated is what a container was promised, by name; what is not in it has what its spec asks for.
	Allocated map[string]v1.ResourceRequirements
	// Applied is what a container's instance has, by its ID; what is not in it has what was promised.
	Applied map[string]v1.ResourceRequirements
	// Resize is what there is to say of a change of resources; empty for nothing.
	Resize []v1.PodCondition
}

// resources are those of a container's instance.
func (r *Runtime) resources(c *v1.Container, id string) (allocated v1.ResourceList, has *v1.ResourceRequirements) {
	promised, ok := r.Allocated[c.Name]
	if !ok {
		promised = c.Resources
	}
	applied, ok := r.Applied[id]
	if !ok {
		applied = promised
	}
	if len(promised.Requests) > 0 {
		allocated = promised.Requests
	}
	return allocated, &v1.ResourceRequirements{Limits: applied.Limits, Requests: applied.Requests}
}

// Failure is why a node ended a pod.
type Failure struct {
	Reason, Message string
	Grace           *int64 // seconds that its containers have; nil = the pod's own
	Disruption      bool   // it is not the pod's fault: the condition DisruptionTarget says so
}

// Waiting is why a container that should run does not.
type Waiting struct{ Reason, Message string }

// Instances returns a container's instances, the newest first.
func (r *Runtime) Instances(name string) []*runtimeapi.ContainerStatus {
	var out []*runtimeapi.ContainerStatus
	for _, c := range r.Containers {
		if c.GetMetadata().GetName() == name {
			out = append(out, c)
		}
	}
	slices.SortStableFunc(out, func(a, b *runtimeapi.ContainerStatus) int {
		return int(b.Metadata.Attempt) - int(a.Metadata.Attempt)
	})
	return out
}

// Current returns a container's newest instance, or nil.
func (r *Runtime) Current(name string) *runtimeapi.ContainerStatus {
	var out *runtimeapi.ContainerStatus
	for _, c := range r.Containers {
		if c.GetMetadata().GetName() == name && (out == nil || c.Metadata.Attempt > out.Metadata.Attempt) {
			out = c
		}
	}
	return out
}

// Running tells whether any container runs.
func (r *Runtime) Running() bool {
	return slices.ContainsFunc(r.Containers, func(c *runtimeapi.ContainerStatus) bool {
		return c.State == runtimeapi.ContainerState_CONTAINER_RUNNING
	})
}

// Sidecar tells whether an init container keeps running beside the others.
func Sidecar(c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
}

// RestartsAfter tells whether the pod's policy wants a container started again
// that ended with a code.
func RestartsAfter(policy v1.RestartPolicy, code int32) bool {
	return policy == v1.RestartPolicyAlways || policy == v1.RestartPolicyOnFailure && code != 0
}

// Generate returns the pod's status. The pod's own status is the old one, from
// which times and foreign conditions are kept; waiting says why containers do
// not run; terminal says that nothing of the pod runs or will be started any
// more.
func Generate(pod *v1.Pod, rt *Runtime, waiting map[string]Waiting, terminal bool, now time.Time) v1.PodStatus {
	st := *pod.Status.DeepCopy()
	if st.StartTime == nil {
		t := metav1.NewTime(now).Rfc3339Copy()
		st.StartTime = &t
	}
	st.ObservedGeneration = pod.Generation
	st.HostIP, st.HostIPs, st.PodIP, st.PodIPs = "", nil, "", nil
	for _, ip := range rt.HostIPs {
		st.HostIPs = append(st.HostIPs, v1.HostIP{IP: ip})
	}
	ips := rt.IPs
	if pod.Spec.HostNetwork {
		ips = rt.HostIPs
	}
	for _, ip := range ips {
		st.PodIPs = append(st.PodIPs, v1.PodIP{IP: ip})
	}
	if len(st.HostIPs) > 0 {
		st.HostIP = st.HostIPs[0].IP
	}
	if len(st.PodIPs) > 0 {
		st.PodIP = st.PodIPs[0].IP
	}

	initialized := initDone(pod, rt)
	st.InitContainerStatuses = containers(pod, rt, waiting, pod.Spec.InitContainers, true, initialized, pod.Status.InitContainerStatuses)
	st.ContainerStatuses = containers(pod, rt, waiting, pod.Spec.Containers, false, initialized, pod.Status.ContainerStatuses)
	st.EphemeralContainerStatuses = ephemeral(pod, rt, waiting)
	if terminal { // what was running when it was last seen did not end well
		for _, list := range [][]v1.ContainerStatus{st.InitContainerStatuses, st.ContainerStatuses} {
			for i := range list {
				if lost, ok := rt.Lost[list[i].Name]; ok && list[i].State.Waiting != nil {
					list[i].State, list[i].LastTerminationState, list[i].RestartCount = lost.LastTerminationState, v1.ContainerState{}, lost.RestartCount-1
				}
			}
		}
	}
	st.Phase = phase(pod, &st, terminal)
	if rt.Failed != nil && pod.Status.Phase != v1.PodSucceeded {
		st.Phase, st.Reason, st.Message = v1.PodFailed, rt.Failed.Reason, rt.Failed.Message
	}
	st.QOSClass = pod.Status.QOSClass
	conditions(pod, &st, rt.SandboxReady, initialized, now)
	resizing(&st, rt.Resize, pod.Generation, now)
	if rt.Failed != nil && rt.Failed.Disruption {
		set(&st, v1.PodCondition{
			Type: v1.DisruptionTarget, Status: v1.ConditionTrue, Reason: v1.PodReasonTerminationByKubelet, Message: rt.Failed.Message,
		}, pod.Generation, now)
	}
	return st
}

// initDone tells whether all init containers have done their part.
func initDone(pod *v1.Pod, rt *Runtime) bool {
	for i := range pod.Spec.Containers {
		if rt.Current(pod.Spec.Containers[i].Name) != nil {
			return true
		}
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		cur := rt.Current(c.Name)
		switch {
		case cur == nil:
			return false
		case Sidecar(c):
			if cur.State == runtimeapi.ContainerState_CONTAINER_CREATED {
				return false
			}
			if rt.Asked != nil && cur.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
				if started, _ := rt.Asked(cur.Id); !started {
					return false
				}
			}
		case cur.State != runtimeapi.ContainerState_CONTAINER_EXITED || cur.ExitCode != 0:
			return false
		}
	}
	return true
}

func seconds(ns int64) metav1.Time {
	if ns == 0 {
		return metav1.Time{}
	}
	return metav1.Unix(ns/1e9, 0)
}

func terminated(rt *Runtime, c *runtimeapi.ContainerStatus) *v1.ContainerStateTerminated {
	reason := c.Reason
	if reason == "" {
		reason = "Completed"
		if c.ExitCode != 0 {
			reason = "Error"
		}
	}
	return &v1.ContainerStateTerminated{
		ExitCode: c.ExitCode, Reason: reason, Message: c.Message, StartedAt: seconds(c.StartedAt), FinishedAt: seconds(c.FinishedAt),
		ContainerID: rt.Name + "://" + c.Id,
	}
}

func containers(pod *v1.Pod, rt *Runtime, waiting map[string]Waiting, specs []v1.Container, init, initialized bool, old []v1.ContainerStatus) []v1.ContainerStatus {
	if len(specs) == 0 {
		return nil
	}
	out := make([]v1.ContainerStatus, 0, len(specs))
	for i := range specs {
		spec := &specs[i]
		st := v1.ContainerStatus{Name: spec.Name, Image: spec.Image, VolumeMounts: mounts(spec, rt.RecursiveReadOnly)}
		instances := rt.Instances(spec.Name)
		switch lost, isLost := rt.Lost[spec.Name]; {
		case len(instances) > 0:
			fill(rt, &st, instances)
			st.AllocatedResources, st.Resources = rt.resources(spec, instances[0].Id)
			if st.LastTerminationState.Terminated == nil && isLost {
				st.LastTerminationState = lost.LastTerminationState
			}
		case isLost:
			st.RestartCount, st.LastTerminationState, st.ImageID = lost.RestartCount, lost.LastTerminationState, lost.ImageID
			st.State.Waiting = defaultWaiting(init, len(pod.Spec.InitContainers) > 0, initialized)
		default:
			st.State.Waiting = defaultWaiting(init, len(pod.Spec.InitContainers) > 0, initialized)
			for _, o := range old { // nothing is known here: a result that was told already stays
				if o.Name == spec.Name && o.State.Terminated != nil {
					st = o
				}
			}
		}
		if w, ok := waiting[spec.Name]; ok && st.State.Running == nil && !final(pod, spec, init, st.State.Terminated) {
			if st.State.Terminated != nil {
				st.LastTerminationState = st.State
			}
			st.State = v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: w.Reason, Message: w.Message}}
		}
		running := st.State.Running != nil
		started, ready := running, running
		if running && rt.Asked != nil {
			started, ready = rt.Asked(instances[0].Id)
		}
		st.Started, st.Ready = &started, ready
		if init && !Sidecar(spec) {
			st.Ready = st.State.Terminated != nil && st.State.Terminated.ExitCode == 0
		}
		out = append(out, st)
	}
	return out
}

// mounts are a container's as its spec has them: a read-only one is recursively so where that was asked for and can be.
func mounts(c *v1.Container, recursive bool) []v1.VolumeMountStatus {
	var out []v1.VolumeMountStatus
	for i := range c.VolumeMounts {
		vm := &c.VolumeMounts[i]
		st := v1.VolumeMountStatus{Name: vm.Name, MountPath: vm.MountPath, ReadOnly: vm.ReadOnly}
		if vm.ReadOnly {
			mode := v1.RecursiveReadOnlyDisabled
			if is, err := volume.RecursiveReadOnly(vm, recursive); err == nil && is { // an error is why the container waits
				mode = v1.RecursiveReadOnlyEnabled
			}
			st.RecursiveReadOnly = &mode
		}
		out = append(out, st)
	}
	return out
}

// ephemeral are the statuses of containers for debugging: they are never ready and count for nothing.
func ephemeral(pod *v1.Pod, rt *Runtime, waiting map[string]Waiting) []v1.ContainerStatus {
	specs := make([]v1.Container, 0, len(pod.Spec.EphemeralContainers))
	for i := range pod.Spec.EphemeralContainers {
		specs = append(specs, v1.Container(pod.Spec.EphemeralContainers[i].EphemeralContainerCommon))
	}
	out := containers(pod, rt, waiting, specs, false, true, pod.Status.EphemeralContainerStatuses)
	for i := range out {
		out[i].Ready, out[i].Started, out[i].AllocatedResources, out[i].Resources = false, nil, nil, nil
	}
	return out
}

// final tells whether a container has ended and will not be started again.
func final(pod *v1.Pod, c *v1.Container, init bool, end *v1.ContainerStateTerminated) bool {
	policy := pod.Spec.RestartPolicy
	switch {
	case end == nil || init && Sidecar(c):
		return false
	case init && policy == v1.RestartPolicyAlways:
		policy = v1.RestartPolicyOnFailure
	}
	return !RestartsAfter(policy, end.ExitCode)
}

func defaultWaiting(init, hasInit, initialized bool) *v1.ContainerStateWaiting {
	if hasInit && (init || !initialized) {
		return &v1.ContainerStateWaiting{Reason: "PodInitializing"}
	}
	return &v1.ContainerStateWaiting{Reason: "ContainerCreating"}
}

// fill sets what the runtime tells of the newest instance and the one before.
func fill(rt *Runtime, st *v1.ContainerStatus, instances []*runtimeapi.ContainerStatus) {
	cur := instances[0]
	st.ContainerID, st.ImageID, st.RestartCount = rt.Name+"://"+cur.Id, cur.ImageRef, int32(cur.Metadata.Attempt)
	if st.ImageID == "" {
		st.ImageID = cur.ImageId
	}
	if who := cur.User.GetLinux(); who != nil {
		st.User = &v1.ContainerUser{Linux: &v1.LinuxContainerUser{UID: who.Uid, GID: who.Gid, SupplementalGroups: who.SupplementalGroups}}
	}
	switch cur.State {
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		st.State.Running = &v1.ContainerStateRunning{StartedAt: seconds(cur.StartedAt)}
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		st.State.Waiting = &v1.ContainerStateWaiting{Reason: "ContainerCreating"}
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		st.State.Terminated = terminated(rt, cur)
	default:
		st.State.Waiting = &v1.ContainerStateWaiting{Reason: "ContainerStatusUnknown"}
	}
	if len(instances) > 1 && instances[1].State == runtimeapi.ContainerState_CONTAINER_EXITED {
		st.LastTerminationState.Terminated = terminated(rt, instances[1])
	}
}

// phase follows upstream's getPhase: sidecars do not count.
func phase(pod *v1.Pod, st *v1.PodStatus, terminal bool) v1.PodPhase {
	if st.Phase == v1.PodFailed || st.Phase == v1.PodSucceeded {
		return st.Phase // final
	}
	var pendingInit, failedInit, waiting, running, stopped, succeeded int
	for i, c := range st.InitContainerStatuses {
		if Sidecar(&pod.Spec.InitContainers[i]) {
			if c.State.Running == nil && c.LastTerminationState.Terminated == nil && c.State.Terminated == nil {
				pendingInit++
			}
			continue
		}
		switch {
		case c.State.Terminated != nil:
			if c.State.Terminated.ExitCode != 0 {
				failedInit++
			}
		case c.State.Waiting != nil && c.LastTerminationState.Terminated != nil && c.LastTerminationState.Terminated.ExitCode != 0:
			failedInit++
			pendingInit++
		default:
			pendingInit++
		}
	}
	for _, c := range st.ContainerStatuses {
		switch {
		case c.State.Running != nil:
			running++
		case c.State.Terminated != nil:
			stopped++
			if c.State.Terminated.ExitCode == 0 {
				succeeded++
			}
		case c.LastTerminationState.Terminated != nil:
			stopped++
		default:
			waiting++
		}
	}
	if failedInit > 0 && pod.Spec.RestartPolicy == v1.RestartPolicyNever {
		return v1.PodFailed
	}
	if terminal {
		if running == 0 && stopped > 0 && stopped == succeeded && waiting == 0 {
			return v1.PodSucceeded
		}
		return v1.PodFailed
	}
	switch {
	case failedInit > 0 || pendingInit > 0 || waiting > 0:
		return v1.PodPending
	case running > 0:
		return v1.PodRunning
	case stopped > 0 && pod.Spec.RestartPolicy == v1.RestartPolicyAlways:
		return v1.PodRunning
	case stopped > 0 && stopped == succeeded:
		return v1.PodSucceeded
	case stopped > 0 && pod.Spec.RestartPolicy == v1.RestartPolicyNever:
		return v1.PodFailed
	case stopped > 0:
		return v1.PodRunning
	}
	return v1.PodPending
}

// conditions sets those that are the node's to set.
func conditions(pod *v1.Pod, st *v1.PodStatus, sandbox, initialized bool, now time.Time) {
	var notReady, notInit []string
	for _, c := range st.ContainerStatuses {
		if !c.Ready {
			notReady = append(notReady, c.Name)
		}
	}
	for i, c := range st.InitContainerStatuses {
		if !c.Ready && (!initialized || Sidecar(&pod.Spec.InitContainers[i])) {
			if Sidecar(&pod.Spec.InitContainers[i]) {
				notReady = append(notReady, c.Name)
			}
			if !initialized {
				notInit = append(notInit, c.Name)
			}
		}
	}
	done := st.Phase == v1.PodSucceeded || st.Phase == v1.PodFailed
	ready := v1.PodCondition{Type: v1.ContainersReady, Status: v1.ConditionTrue}
	switch {
	case st.Phase == v1.PodSucceeded:
		ready.Status, ready.Reason = v1.ConditionFalse, "PodCompleted"
	case st.Phase == v1.PodFailed:
		ready.Status, ready.Reason = v1.ConditionFalse, "PodFailed"
	case len(notReady) > 0:
		ready.Status, ready.Reason = v1.ConditionFalse, "ContainersNotReady"
		ready.Message = fmt.Sprintf("containers with unready status: [%s]", strings.Join(notReady, " "))
	}
	podReady := ready
	podReady.Type = v1.PodReady
	if podReady.Status == v1.ConditionTrue {
		if missing := gates(pod, st); len(missing) > 0 {
			podReady.Status, podReady.Reason = v1.ConditionFalse, "ReadinessGatesNotReady"
			podReady.Message = strings.Join(missing, ", ")
		}
	}
	init := v1.PodCondition{Type: v1.PodInitialized, Status: v1.ConditionTrue}
	if st.Phase == v1.PodSucceeded {
		init.Reason = "PodCompleted"
	} else if len(notInit) > 0 {
		init.Status, init.Reason = v1.ConditionFalse, "ContainersNotInitialized"
		init.Message = fmt.Sprintf("containers with incomplete status: [%s]", strings.Join(notInit, " "))
	}
	up := v1.PodCondition{Type: v1.PodReadyToStartContainers, Status: v1.ConditionFalse}
	if sandbox && !done {
		up.Status = v1.ConditionTrue
	}
	for _, c := range []v1.PodCondition{up, init, podReady, ready, {Type: v1.PodScheduled, Status: v1.ConditionTrue}} {
		set(st, c, pod.Generation, now)
	}
}

// resizing sets the conditions of a change of resources and takes away those that hold no more.
func resizing(st *v1.PodStatus, hold []v1.PodCondition, generation int64, now time.Time) {
	st.Conditions = slices.DeleteFunc(st.Conditions, func(c v1.PodCondition) bool {
		return (c.Type == v1.PodResizePending || c.Type == v1.PodResizeInProgress) &&
			!slices.ContainsFunc(hold, func(h v1.PodCondition) bool { return h.Type == c.Type })
	})
	for _, c := range hold {
		set(st, c, generation, now)
	}
}

func gates(pod *v1.Pod, st *v1.PodStatus) (missing []string) {
	for _, g := range pod.Spec.ReadinessGates {
		i := slices.IndexFunc(st.Conditions, func(c v1.PodCondition) bool { return c.Type == g.ConditionType })
		if i < 0 {
			missing = append(missing, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", g.ConditionType))
		} else if st.Conditions[i].Status != v1.ConditionTrue {
			missing = append(missing, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", g.ConditionType, st.Conditions[i].Status))
		}
	}
	return missing
}

// set replaces a condition and keeps the time of its last change.
func set(st *v1.PodStatus, c v1.PodCondition, generation int64, now time.Time) {
	c.ObservedGeneration = generation
	c.LastTransitionTime = metav1.NewTime(now).Rfc3339Copy()
	for i := range st.Conditions {
		if old := &st.Conditions[i]; old.Type == c.Type {
			if old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
			c.LastProbeTime = old.LastProbeTime
			*old = c
			return
		}
	}
	st.Conditions = append(st.Conditions, c)
}
