package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func list(cpu, memory string) v1.ResourceList {
	return v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu), v1.ResourceMemory: resource.MustParse(memory)}
}

// TestPods runs pods through their lives on real containers and looks at what they see.
func TestPods(t *testing.T) {
	n := newNode(t)

	t.Run("what a container sees", func(t *testing.T) {
		n := n.in(t)
		n.create(n.podOf("sees", strings.Join([]string{
			"echo host=$(hostname)", "echo uid=$(id -u) groups=$(id -G)", "cat /etc/hosts", "env", "cat /etc/resolv.conf",
			"ls /proc/kcore -l", "echo last words > /dev/termination-log", "exit 3",
		}, "\n"), func(p *v1.Pod) {
			p.Spec.HostAliases = []v1.HostAlias{{IP: "10.1.2.3", Hostnames: []string{"foo", "bar"}}}
			p.Spec.DNSPolicy = v1.DNSNone
			p.Spec.DNSConfig = &v1.PodDNSConfig{Nameservers: []string{"10.9.9.9"}, Searches: []string{"a.example"}, Options: []v1.PodDNSConfigOption{{Name: "ndots", Value: ptr("3")}}}
			p.Spec.SecurityContext = &v1.PodSecurityContext{RunAsUser: ptr(int64(1000)), FSGroup: ptr(int64(2000)), SupplementalGroups: []int64{3000}}
		}))
		pod := n.phase("sees", v1.PodFailed)
		end := pod.Status.ContainerStatuses[0].State.Terminated
		if end.ExitCode != 3 || end.Message != "last words\n" || end.Reason != "Error" {
			t.Errorf("how it ended: %+v", end)
		}
		log := n.log("sees", "c")
		for _, want := range []string{"host=sees\n", "uid=1000 groups=0 2000 3000\n", "# Kubernetes-managed hosts file.\n", "10.1.2.3\tfoo\tbar\n", pod.Status.PodIP + "\tsees\n",
			"KUBERNETES_SERVICE_HOST=10.96.0.1\n", "KUBERNETES_SERVICE_PORT_HTTPS=443\n", "nameserver 10.9.9.9\n", "search a.example\n", "options ndots:3\n"} {
			if !strings.Contains(log, want) {
				t.Errorf("the log has no %q:\n%s", want, log)
			}
		}
	})

	t.Run("init and sidecar containers in order", func(t *testing.T) {
		n := n.in(t)
		n.create(n.podOf("order", "cat /data/log", func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "data", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}
			mount := []v1.VolumeMount{{Name: "data", MountPath: "/data"}}
			p.Spec.Containers[0].VolumeMounts = mount
			c := func(name, script string) v1.Container {
				return v1.Container{Name: name, Image: n.daemon.Busybox, Command: []string{"sh", "-c", script}, VolumeMounts: mount}
			}
			sidecar := c("side", "echo side >> /data/log; touch /data/up; "+forever)
			sidecar.RestartPolicy = ptr(v1.ContainerRestartPolicyAlways)
			sidecar.StartupProbe = &v1.Probe{PeriodSeconds: 1, TimeoutSeconds: 60, FailureThreshold: 60, ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"test", "-e", "/data/up"}}}}
			p.Spec.InitContainers = []v1.Container{c("one", "echo one >> /data/log"), sidecar, c("two", "echo two >> /data/log")}
		}))
		n.phase("order", v1.PodSucceeded)
		if log := n.log("order", "c"); log != "one\nside\ntwo\n" {
			t.Errorf("order: %q", log)
		}
	})

	t.Run("control groups", func(t *testing.T) {
		n := n.in(t)
		n.create(n.podOf("limited", forever, func(p *v1.Pod) {
			p.Spec.Containers[0].Resources = v1.ResourceRequirements{Requests: list("250m", "32Mi"), Limits: list("500m", "64Mi")}
		}))
		pod := n.phase("limited", v1.PodRunning)
		if pod.Status.QOSClass != v1.PodQOSBurstable {
			t.Fatalf("class %s", pod.Status.QOSClass)
		}
		group := filepath.Join(n.root, "kubepods", "burstable", "pod"+string(pod.UID))
		for file, want := range map[string]string{
			"memory" + group + "/memory.limit_in_bytes": "67108864", "cpu" + group + "/cpu.shares": "256",
			"cpu" + group + "/cpu.cfs_quota_us": "50000", "pids" + group + "/pids.max": "500",
		} {
			if n.cgroups.Unified() {
				continue
			}
			if got, err := os.ReadFile("/sys/fs/cgroup/" + file); err != nil || strings.TrimSpace(string(got)) != want {
				t.Errorf("%s: %q, %v; want %s", file, got, err, want)
			}
		}
		if file := "/sys/fs/cgroup/cpu" + filepath.Join(n.root, "kubepods", "burstable", "cpu.shares"); !n.cgroups.Unified() {
			eventually(t, "the Burstable pods to weigh what they request", func(context.Context) (bool, error) {
				got, err := os.ReadFile(file)
				return strings.TrimSpace(string(got)) == "256", err
			})
		}
		usage, err := n.cgroups.Usage(n.cgroups.Parent(pod))
		if err != nil || usage.Memory == 0 || usage.WorkingSet == 0 || usage.CPU == 0 || usage.PIDs == 0 || usage.Limit != 64<<20 {
			t.Errorf("usage %+v, %v", usage, err)
		}
		n.create(n.podOf("bomb", "tail /dev/zero", func(p *v1.Pod) {
			p.Spec.Containers[0].Resources = v1.ResourceRequirements{Limits: list("500m", "32Mi")}
		}))
		bomb := n.phase("bomb", v1.PodFailed)
		if end := bomb.Status.ContainerStatuses[0].State.Terminated; end.Reason != "OOMKilled" || end.ExitCode != 137 {
			t.Errorf("a memory bomb: %+v", end)
		}
		n.create(n.podOf("forks", "i=0; while [ $i -lt 600 ]; do sleep 1000 & i=$((i+1)); done; echo all", func(p *v1.Pod) {}))
		forks := n.until("forks", "does not end", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed || p.Status.Phase == v1.PodSucceeded })
		if log := n.log("forks", "c"); strings.Contains(log, "all\n") {
			t.Errorf("more processes than the pod may have: %s, %+v", log, forks.Status)
		}
		if p := n.get("limited"); p.Status.Phase != v1.PodRunning || p.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("a neighbour was harmed: %+v", p.Status)
		}
	})

	t.Run("the machine's network", func(t *testing.T) {
		n := n.in(t)
		n.create(n.podOf("host", "hostname; cat /etc/hosts", func(p *v1.Pod) { p.Spec.HostNetwork = true }))
		n.phase("host", v1.PodSucceeded)
		name, err := os.Hostname()
		if err != nil {
			t.Fatal(err)
		}
		if log := n.log("host", "c"); !strings.HasPrefix(log, name+"\n# Kubernetes-managed hosts file (host network).\n") {
			t.Errorf("what it sees: %q", log)
		}
	})

	t.Run("other resources while it runs", func(t *testing.T) {
		n := n.in(t)
		n.create(n.podOf("resized", forever, func(p *v1.Pod) {
			p.Spec.RestartPolicy = v1.RestartPolicyAlways
			p.Spec.Containers[0].Resources = v1.ResourceRequirements{Requests: list("100m", "32Mi"), Limits: list("200m", "64Mi")}
			p.Spec.Containers[0].ResizePolicy = []v1.ContainerResizePolicy{{ResourceName: v1.ResourceMemory, RestartPolicy: v1.RestartContainer}}
		}))
		first := n.phase("resized", v1.PodRunning)
		resize := func(requests, limits v1.ResourceList) {
			t.Helper()
			eventually(t, "the change of resources to be taken", func(ctx context.Context) (bool, error) {
				pod := n.get("resized")
				pod.Spec.Containers[0].Resources = v1.ResourceRequirements{Requests: requests, Limits: limits}
				_, err := n.client.CoreV1().Pods("default").UpdateResize(ctx, "resized", pod, updateOptions)
				return err == nil, nil
			})
			n.until("resized", "does not have its new resources", func(p *v1.Pod) bool {
				st := p.Status.ContainerStatuses[0]
				return p.Status.ObservedGeneration == p.Generation && isReady(p) && st.Resources != nil && st.Resources.Limits.Cpu().Equal(*limits.Cpu()) &&
					st.Resources.Limits.Memory().Equal(*limits.Memory()) && condition(p, v1.PodResizeInProgress).Type == ""
			})
		}
		resize(list("100m", "32Mi"), list("400m", "64Mi"))
		pod := n.get("resized")
		if was, is := first.Status.ContainerStatuses[0], pod.Status.ContainerStatuses[0]; was.ContainerID != is.ContainerID || is.RestartCount != 0 {
			t.Errorf("a change of CPU began the container anew: %+v", is)
		}
		_, id, _ := strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
		group := n.cgroups.Parent(pod)
		for _, path := range []string{group, filepath.Join(group, id)} {
			if got, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/cpu", path, "cpu.cfs_quota_us")); !n.cgroups.Unified() && (err != nil || strings.TrimSpace(string(got)) != "40000") {
				t.Errorf("the quota of %s: %q, %v", path, got, err)
			}
		}
		resize(list("100m", "32Mi"), list("400m", "96Mi"))
		pod = n.get("resized")
		if is := pod.Status.ContainerStatuses[0]; is.RestartCount != 1 || "containerd://"+id == is.ContainerID {
			t.Errorf("a change of memory did not begin the container anew: %+v", is)
		}
		if u, err := n.cgroups.Usage(group); err != nil || u.Limit != 96<<20 {
			t.Errorf("the pod's memory: %+v, %v", u, err)
		}
		n.event("resized", "ResizeCompleted", "Pod resize completed")
	})

	t.Run("probes", func(t *testing.T) {
		n := n.in(t)
		n.create(n.podOf("probed", "mkdir -p /tmp/www; echo hi > /tmp/www/index.html; httpd -p 8080 -h /tmp/www; rm -f /tmp/dead; "+forever, func(p *v1.Pod) {
			p.Spec.RestartPolicy = v1.RestartPolicyAlways
			c := &p.Spec.Containers[0]
			c.Ports = []v1.ContainerPort{{Name: "web", ContainerPort: 8080}}
			c.StartupProbe = &v1.Probe{PeriodSeconds: 1, TimeoutSeconds: 60, FailureThreshold: 60, ProbeHandler: v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromString("web")}}}
			c.ReadinessProbe = &v1.Probe{PeriodSeconds: 1, TimeoutSeconds: 60, ProbeHandler: v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: "/index.html", Port: intstr.FromInt32(8080)}}}
			c.LivenessProbe = &v1.Probe{PeriodSeconds: 1, TimeoutSeconds: 60, FailureThreshold: 1, ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"sh", "-c", "! test -e /tmp/dead"}}}}
		}))
		pod := n.ready("probed")
		n.exec(pod, "mv /tmp/www/index.html /tmp/www/away")
		n.until("probed", "stays ready", func(p *v1.Pod) bool { return !isReady(p) })
		n.event("probed", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404")
		n.exec(pod, "mv /tmp/www/away /tmp/www/index.html")
		n.ready("probed")
		n.exec(pod, "touch /tmp/dead")
		n.until("probed", "is not restarted", func(p *v1.Pod) bool { return p.Status.ContainerStatuses[0].RestartCount == 1 })
		n.event("probed", "Killing", "Container c failed liveness probe, will be restarted")
		n.ready("probed")
	})

	t.Run("hooks", func(t *testing.T) {
		n := n.in(t)
		n.create(n.podOf("hooked", forever, func(p *v1.Pod) {
			p.Spec.TerminationGracePeriodSeconds = ptr(int64(30))
			p.Spec.Volumes = []v1.Volume{{Name: "host", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: n.daemon.Dir}}}}
			c := &p.Spec.Containers[0]
			c.VolumeMounts = []v1.VolumeMount{{Name: "host", MountPath: "/host"}}
			c.Lifecycle = &v1.Lifecycle{
				PostStart: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"touch", "/host/began"}}},
				PreStop:   &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"touch", "/host/ended"}}},
			}
		}))
		n.phase("hooked", v1.PodRunning)
		if _, err := os.Stat(filepath.Join(n.daemon.Dir, "began")); err != nil {
			t.Errorf("postStart: %v", err)
		}
		n.delete("hooked")
		if _, err := os.Stat(filepath.Join(n.daemon.Dir, "ended")); err != nil {
			t.Errorf("preStop: %v", err)
		}
		n.create(n.podOf("badhook", forever, func(p *v1.Pod) {
			p.Spec.RestartPolicy = v1.RestartPolicyAlways
			p.Spec.Containers[0].Lifecycle = &v1.Lifecycle{PostStart: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"false"}}}}
		}))
		n.event("badhook", "FailedPostStartHook", "PostStartHook failed")
	})

	t.Run("what goes wrong", func(t *testing.T) {
		n := n.in(t)
		for name, test := range map[string]struct {
			change  func(*v1.Pod)
			reason  string
			message string
		}{
			"noimage": {func(p *v1.Pod) { p.Spec.Containers[0].Image = n.daemon.None }, "ErrImagePull", "not found"},
			"never": {func(p *v1.Pod) {
				p.Spec.Containers[0].Image, p.Spec.Containers[0].ImagePullPolicy = n.daemon.None, v1.PullNever
			}, "ErrImageNeverPull", "is not present with pull policy of Never"},
			"noroot": {func(p *v1.Pod) { p.Spec.SecurityContext = &v1.PodSecurityContext{RunAsNonRoot: ptr(true)} },
				"CreateContainerConfigError", "container has runAsNonRoot and image will run as root"},
			"nomap": {func(p *v1.Pod) {
				p.Spec.Containers[0].EnvFrom = []v1.EnvFromSource{{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "none"}}}}
			}, "CreateContainerConfigError", `configmap "none" not found`},
			"nocommand": {func(p *v1.Pod) {
				p.Spec.RestartPolicy, p.Spec.Containers[0].Command = v1.RestartPolicyAlways, []string{"/no/such/program"}
			}, "RunContainerError", "no such file or directory"},
		} {
			n.create(n.podOf(name, "true", test.change))
			n.until(name, "does not wait for the reason "+test.reason, func(p *v1.Pod) bool {
				if len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].State.Waiting == nil {
					return false
				}
				w := p.Status.ContainerStatuses[0].State.Waiting
				return w.Reason == test.reason && strings.Contains(w.Message, test.message)
			})
		}
		n.until("noimage", "does not back off", func(p *v1.Pod) bool {
			w := p.Status.ContainerStatuses[0].State.Waiting
			return w != nil && w.Reason == "ImagePullBackOff" && strings.HasPrefix(w.Message, `Back-off pulling image "`+n.daemon.None+`": ErrImagePull: `)
		})
	})

	t.Run("seccomp profiles of the node's", func(t *testing.T) {
		n := n.in(t)
		n.write(filepath.Join(n.dir, "seccomp", "nomkdir.json"),
			`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`, 0o600)
		profile := func(name string) func(*v1.Pod) {
			return func(p *v1.Pod) {
				p.Spec.Containers[0].SecurityContext = &v1.SecurityContext{SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeLocalhost, LocalhostProfile: &name}}
			}
		}
		n.create(n.podOf("held", "mkdir /tmp/x 2>&1; touch /tmp/y && echo touched", profile("nomkdir.json")))
		n.create(n.podOf("noprofile", "true", profile("none.json")))
		n.phase("held", v1.PodSucceeded)
		if log := n.log("held", "c"); log != "mkdir: can't create directory '/tmp/x': Operation not permitted\ntouched\n" {
			t.Errorf("under a profile without mkdir: %q", log)
		}
		n.until("noprofile", "does not say that its profile is not there", func(p *v1.Pod) bool {
			return waiting(p) != nil && strings.HasPrefix(waiting(p).Reason, "CreateContainer") && strings.Contains(waiting(p).Message, filepath.Join(n.dir, "seccomp", "none.json"))
		})
	})

	t.Run("deadline", func(t *testing.T) {
		n := n.in(t)
		n.create(n.podOf("late", forever, func(p *v1.Pod) { p.Spec.ActiveDeadlineSeconds = ptr(int64(1)) }))
		if pod := n.phase("late", v1.PodFailed); pod.Status.Reason != "DeadlineExceeded" {
			t.Errorf("status %+v", pod.Status)
		}
	})

	t.Run("ephemeral containers", func(t *testing.T) {
		n := n.in(t)
		n.create(n.podOf("debugged", "sleep 7777 & "+forever))
		pod := n.phase("debugged", v1.PodRunning)
		pod.Spec.EphemeralContainers = []v1.EphemeralContainer{{TargetContainerName: "c", EphemeralContainerCommon: v1.EphemeralContainerCommon{
			Name: "debug", Image: n.daemon.Busybox, Command: []string{"sh", "-c", "ps"},
		}}}
		if _, err := n.client.CoreV1().Pods("default").UpdateEphemeralContainers(t.Context(), "debugged", pod, updateOptions); err != nil {
			t.Fatal(err)
		}
		n.until("debugged", "has no ended ephemeral container", func(p *v1.Pod) bool {
			return len(p.Status.EphemeralContainerStatuses) == 1 && p.Status.EphemeralContainerStatuses[0].State.Terminated != nil
		})
		if log := n.log("debugged", "debug"); !strings.Contains(log, "sleep 7777") {
			t.Errorf("it does not see its target's processes:\n%s", log)
		}
	})

	n.delete("sees", "order", "limited", "host", "resized", "bomb", "forks", "probed", "badhook", "noimage", "never", "noroot", "nomap", "nocommand", "late", "debugged", "held", "noprofile")
	n.clean()
}
