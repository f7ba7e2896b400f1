package oci_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
	"github.com/quaymaster/quaymaster/runtime/cri/oci"
)

// pod is one with one container.
type pod struct {
	*node
	sandbox, id, dir string
	config           *runtimeapi.PodSandboxConfig
}

var pods int

// newPod makes one; its container, of busybox unless it says otherwise, is not started.
func (n *node) newPod(script string, change ...func(*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig)) (*pod, error) {
	n.t.Helper()
	ctx := n.t.Context()
	pods++
	name := fmt.Sprintf("p%d", pods)
	p := &pod{node: n, dir: n.t.TempDir()}
	namespaces := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	p.config = &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "ns", Uid: name}, LogDirectory: p.dir, Hostname: name,
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: namespaces}},
	}
	c := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: n.registry + "/busybox:1"}, LogPath: "0.log",
		Command: []string{"sh", "-c", "exec 2>&1\n" + script}, // one stream, for its order
		Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{}, SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: namespaces,
		}},
	}
	for _, f := range change {
		f(p.config, c)
	}
	if _, err := n.b.PullImage(ctx, &runtimeapi.PullImageRequest{Image: c.Image}); err != nil {
		return nil, err
	}
	box, err := n.b.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		return nil, err
	}
	p.sandbox = box.PodSandboxId
	made, err := n.b.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.sandbox, Config: c, SandboxConfig: p.config})
	if err != nil {
		return nil, err
	}
	p.id = made.ContainerId
	return p, nil
}

func (n *node) run(script string, change ...func(*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig)) *pod {
	n.t.Helper()
	p, err := n.newPod(script, change...)
	if err == nil {
		_, err = n.b.StartContainer(n.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: p.id})
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return p
}

func (p *pod) status() *runtimeapi.ContainerStatus {
	p.t.Helper()
	r, err := p.b.ContainerStatus(p.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: p.id})
	if err != nil {
		p.t.Fatal(err)
	}
	return r.Status
}

func (p *pod) until(what string, cond func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("%s: not yet; %v\n%s", what, p.status(), p.text())
		}
	}
}

func (p *pod) ended() *runtimeapi.ContainerStatus {
	p.t.Helper()
	p.until("end", func() bool { return p.status().State == runtimeapi.ContainerState_CONTAINER_EXITED })
	return p.status()
}

// text returns what the container wrote, without the log's columns.
func (p *pod) text() string {
	data, _ := os.ReadFile(filepath.Join(p.dir, "0.log"))
	var out strings.Builder
	for line := range strings.Lines(string(data)) {
		if fields := strings.SplitN(line, " ", 4); len(fields) == 4 {
			out.WriteString(fields[3])
		}
	}
	return out.String()
}

const forever = "trap 'exit 7' TERM; echo up; while true; do sleep 0.1; done"

func TestWhatContainersAre(t *testing.T) {
	n := start(t)
	profile := filepath.Join(n.dir, "no-mkdir.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	mounted := t.TempDir()
	if err := os.WriteFile(filepath.Join(mounted, "note"), []byte("a note\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	type config = runtimeapi.ContainerConfig
	type box = runtimeapi.PodSandboxConfig
	for name, test := range map[string]struct {
		script string
		change func(*box, *config)
		want   string
		code   int32
		reason string
	}{
		"environment": {"echo $COLOUR $PATH; pwd; hostname", func(b *box, c *config) {
			b.Hostname, c.WorkingDir, c.Envs = "here", "/tmp", []*runtimeapi.KeyValue{{Key: "COLOUR", Value: []byte("blue")}}
		}, "blue /bin\n/tmp\nhere\n", 0, "Completed"},
		"user": {"id", func(_ *box, c *config) {
			s := c.Linux.SecurityContext
			s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = &runtimeapi.Int64Value{Value: 65534}, &runtimeapi.Int64Value{Value: 20}, []int64{7}
		}, "uid=65534(nobody) gid=20 groups=7,20\n", 0, "Completed"},
		"no such user": {"", func(_ *box, c *config) { c.Linux.SecurityContext.RunAsUsername = "stranger" }, "", 0, `user "stranger"`},
		"capabilities": {"grep CapEff /proc/self/status", func(_ *box, c *config) {
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}
		}, "CapEff:\t0000000000000400\n", 0, "Completed"},
		"unknown capability": {"", func(_ *box, c *config) {
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"FLY"}}
		}, "", 0, `unknown capability "CAP_FLY"`},
		"read-only root": {"touch /x || echo no", func(_ *box, c *config) { c.Linux.SecurityContext.ReadonlyRootfs = true }, "touch: /x: Read-only file system\nno\n", 0, "Completed"},
		"seccomp": {"mkdir /tmp/x || echo no", func(_ *box, c *config) {
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: profile}
		}, "mkdir: can't create directory '/tmp/x': Operation not permitted\nno\n", 0, "Completed"},
		"no seccomp profile": {"", func(_ *box, c *config) {
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/none"}
		}, "", 0, "cannot load seccomp profile"},
		"default seccomp": {"grep Seccomp: /proc/self/status", func(_ *box, c *config) {
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
		}, "Seccomp:\t2\n", 0, "Completed"},
		"sysctl": {"cat /proc/sys/net/ipv4/ip_unprivileged_port_start", func(b *box, _ *config) {
			b.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80"}
		}, "80\n", 0, "Completed"},
		"sysctl of the node": {"", func(b *box, _ *config) { b.Linux.Sysctls = map[string]string{"vm.swappiness": "1"} }, "", 0, `sysctl "vm.swappiness" is not of a namespace`},
		"mounts": {"cat /m/note; echo x > /m/new || echo no; touch /shm 2>/dev/null; ls /dev/shm", func(_ *box, c *config) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: mounted, ContainerPath: "/m", Readonly: true}}
		}, "a note\nsh: can't create /m/new: Read-only file system\nno\n", 0, "Completed"},
		"name servers": {"cat /etc/resolv.conf", func(b *box, _ *config) {
			b.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"svc"}, Options: []string{"ndots:5"}}
		}, "search svc\nnameserver 10.0.0.10\noptions ndots:5\n", 0, "Completed"},
		"shared processes": {"tr '\\0' ' ' < /proc/1/cmdline | grep -o oci-pause", func(b *box, c *config) {
			b.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		}, "oci-pause\n", 0, "Completed"},
		"own processes": {"echo $$", nil, "1\n", 0, "Completed"},
		"interfaces":    {"ls /sys/class/net", nil, "lo\n", 0, "Completed"},
		"exit code":     {"exit 42", nil, "", 42, "Error"},
		"signal":        {"kill -ABRT $$; sleep 5", func(b *box, _ *config) { b.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD }, "", 134, "Error"},
		"memory": {"tail /dev/zero", func(_ *box, c *config) {
			c.Linux.Resources.MemoryLimitInBytes = 16 << 20
		}, "", 137, "OOMKilled"},
		"CDI device": {"", func(_ *box, c *config) { c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.example/net=a"}} }, "", 0,
			"device vendor.example/net=a: this backend has no CDI devices"},
		"users of its own": {"", func(b *box, _ *config) {
			b.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD}
		}, "", 0, "this backend has no user namespaces"},
		"no such program": {"", func(_ *box, c *config) { c.Command = []string{"/none"} }, "", 0, "no such file or directory"},
		"handler":         {"", func(b *box, c *config) { c.Mounts = []*runtimeapi.Mount{{HostPath: "/tmp", ContainerPath: "m"}} }, "", 0, "is not absolute"},
		"propagation": {"", func(_ *box, c *config) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: mounted, ContainerPath: "/m", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
		}, "", 0, "is mounted on a file system that is not shared"},
	} {
		t.Run(name, func(t *testing.T) {
			n := *n
			n.t = t
			var change []func(*box, *config)
			if test.change != nil {
				change = append(change, test.change)
			}
			p, err := n.newPod(test.script, change...)
			if err == nil {
				_, err = n.b.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: p.id})
			}
			if err != nil {
				if said := status.Convert(err).Message(); !strings.Contains(said, test.reason) || strings.Contains(said, "rpc error") {
					t.Errorf("want an error with %q, have %v", test.reason, err)
				}
				return
			}
			st := p.ended()
			if got := p.text(); st.ExitCode != test.code || st.Reason != test.reason || got != test.want && st.Reason != "OOMKilled" {
				t.Errorf("exit code %d, reason %s (%s), want %d, %s; it wrote\n%q\nwant\n%q", st.ExitCode, st.Reason, st.Message, test.code, test.reason, got, test.want)
			}
		})
	}
}

// TestRecursiveReadOnly writes where another file system is mounted below what a container mounts read-only.
func TestRecursiveReadOnly(t *testing.T) {
	n := start(t)
	outer := t.TempDir()
	inner := filepath.Join(outer, "inner")
	if err := os.Mkdir(inner, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", inner, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(inner, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	st, err := n.b.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	can := st.RuntimeHandlers[0].Features.RecursiveReadOnlyMounts
	for _, test := range []struct {
		mount      *runtimeapi.Mount
		want, fail string
	}{
		{&runtimeapi.Mount{Readonly: true}, "written\n", ""},
		{&runtimeapi.Mount{Readonly: true, RecursiveReadOnly: true}, "touch: /m/inner/x: Read-only file system\n", ""},
		{&runtimeapi.Mount{RecursiveReadOnly: true}, "", "must be read-only, and its propagation private"},
		{&runtimeapi.Mount{Readonly: true, RecursiveReadOnly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}, "", "must be read-only, and its propagation private"},
	} {
		test.mount.HostPath, test.mount.ContainerPath = outer, "/m"
		p, err := n.newPod("touch /m/inner/x && echo written", func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{test.mount}
		})
		if err == nil {
			_, err = n.b.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: p.id})
		}
		switch {
		case test.fail != "":
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), test.fail) {
				t.Errorf("%v: %v", test.mount, err)
			}
		case test.mount.RecursiveReadOnly && !can:
			t.Log("this machine's runc or kernel has no recursive read-only mounts, as the backend says")
		case err != nil:
			t.Errorf("%v: %v", test.mount, err)
		default:
			if p.ended(); p.text() != test.want {
				t.Errorf("%v: %q", test.mount, p.text())
			}
		}
	}
}

// TestUserIsTold compares the user in a container's status to what the container says, before and after the backend's end.
func TestUserIsTold(t *testing.T) {
	n := start(t)
	p := n.run("id -u; id -g; id -G; "+forever, func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
		s := c.Linux.SecurityContext
		s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = &runtimeapi.Int64Value{Value: 65534}, &runtimeapi.Int64Value{Value: 20}, []int64{7}
	})
	p.until("output", func() bool { return strings.Contains(p.text(), "up") })
	for range 2 {
		who := p.status().GetUser().GetLinux()
		groups := strings.Trim(fmt.Sprint(who.GetSupplementalGroups()), "[]")
		if want := fmt.Sprintf("%d\n%d\n%s\nup\n", who.GetUid(), who.GetGid(), groups); who == nil || p.text() != want {
			t.Errorf("the status has %v, the container\n%s", who, p.text())
		}
		if err := n.b.Close(); err != nil {
			t.Fatal(err)
		}
		n.open()
	}
}

// TestNextBackend ends a backend and opens another: containers go on, and what became of them meanwhile is found.
func TestNextBackend(t *testing.T) {
	n := start(t)
	share := func(b *runtimeapi.PodSandboxConfig, _ *runtimeapi.ContainerConfig) {
		b.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	}
	long, short, killed, shared := n.run(forever), n.run("while [ ! -e /tmp/go ]; do sleep 0.02; done; exit 9"), n.run(forever), n.run(forever, share)
	idle, err := n.newPod("true")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*pod{long, killed, shared} {
		p.until("output", func() bool { return strings.Contains(p.text(), "up") })
	}
	release := filepath.Join(n.dir, "containers", short.id, "rootfs", "tmp", "go")
	if err := n.b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(release, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	shims := containerdtest.Commands(filepath.Join(n.dir, "containers", killed.id))
	if len(shims) != 1 {
		t.Fatalf("shims of a container: %v", shims)
	}
	if err := syscall.Kill(shims[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.open()
	if st := short.ended(); st.ExitCode != 9 {
		t.Errorf("ended meanwhile: %v", st)
	}
	if st := killed.ended(); st.ExitCode != 137 || !strings.Contains(st.Message, "shim was killed") {
		t.Errorf("without its shim: %v", st)
	}
	if st := idle.status(); st.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("not started: %v", st)
	}
	if st := long.status(); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("runs on: %v", st)
	}
	if _, err := n.b.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: long.id, Timeout: 60}); err != nil {
		t.Fatal(err)
	}
	if st := long.ended(); st.ExitCode != 7 {
		t.Errorf("stopped by its signal: %v", st)
	}
	for _, pause := range containerdtest.Commands("oci-pause") {
		if err := syscall.Kill(pause, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	shared.until("the sandbox to be lost", func() bool {
		r, err := n.b.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: shared.sandbox})
		return err == nil && r.Status.State == runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	})
	if st := shared.ended(); st.ExitCode != 137 {
		t.Errorf("with its pod's processes: %v", st)
	}
}

func TestLogIsReopened(t *testing.T) {
	n := start(t)
	p := n.run(forever)
	p.until("output", func() bool { return p.text() == "up\n" })
	log := filepath.Join(p.dir, "0.log")
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.b.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: p.id}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(log); err != nil || info.Size() != 0 {
		t.Errorf("the new log: %v, %v", info, err)
	}
}

func TestExec(t *testing.T) {
	n := start(t)
	p := n.run(forever)
	exec := func(timeout int64, command ...string) (*runtimeapi.ExecSyncResponse, error) {
		return n.b.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: p.id, Cmd: command, Timeout: timeout})
	}
	r, err := exec(60, "sh", "-c", "echo out; echo err >&2; exit 3")
	if err != nil || string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" || r.ExitCode != 3 {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := exec(60, "/none"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("no such program: %v", err)
	}
	if _, err := exec(1, "sleep", "98765"); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("too long: %v", err)
	}
	if left := containerdtest.Commands("98765"); len(left) > 0 {
		t.Errorf("it runs on: %v", left)
	}
	stream := func(command string, tty bool, in string) (string, string, error) {
		r, err := n.b.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: p.id, Cmd: []string{"sh", "-c", command}, Stdin: in != "", Stdout: true, Stderr: !tty, Tty: tty})
		if err != nil {
			t.Fatal(err)
		}
		return copyStreams(t, r.Url, in, tty)
	}
	if out, errs, err := stream("cat; echo err >&2; exit 4", false, "in\n"); out != "in\n" || errs != "err\n" || err == nil || !strings.Contains(err.Error(), "exit code 4") {
		t.Errorf("streams: %q, %q, %v", out, errs, err)
	}
	if out, _, err := stream("tty; stty size", true, ""); !strings.Contains(out, "/dev/pts/") || err != nil {
		t.Errorf("terminal: %q, %v", out, err)
	}
	p.remove()
	if _, err := exec(60, "true"); status.Code(err) != codes.NotFound {
		t.Errorf("in no container: %v", err)
	}
}

// TestSlowExecIsGivenUp has a runc that says too late which process it began: that is ended all the same.
func TestSlowExecIsGivenUp(t *testing.T) {
	slow := filepath.Join(t.TempDir(), "runc")
	if err := os.WriteFile(slow, []byte(`#!/bin/sh
for arg; do
	shift
	if [ "$arg" = exec ]; then exec=yes; fi
	if [ "$exec$last" = yes--pid-file ]; then file=$arg arg=$arg.late; fi
	last=$arg
	set -- "$@" "$arg"
done
[ -n "$exec" ] || exec runc "$@"
runc "$@" &
sleep 3
mv "$file.late" "$file"
wait
`), 0o700); err != nil {
		t.Fatal(err)
	}
	n := start(t, func(o *oci.Options) { o.Runtime = slow })
	p := n.run(forever)
	_, err := n.b.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: p.id, Cmd: []string{"sleep", "98764"}, Timeout: 1})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("too long: %v", err)
	}
	if left := containerdtest.Commands("98764"); len(left) > 0 {
		t.Errorf("it runs on: %v", left)
	}
}

func (p *pod) remove() {
	p.t.Helper()
	if _, err := p.b.RemoveContainer(p.t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: p.id}); err != nil {
		p.t.Error(err)
	}
}

// copyStreams is what a client does with an address of Exec or Attach.
func copyStreams(t *testing.T, address, in string, tty bool) (stdout, stderr string, err error) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	e, err := remotecommand.NewSPDYExecutor(&rest.Config{Host: u.Scheme + "://" + u.Host}, http.MethodPost, u)
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	opts := remotecommand.StreamOptions{Stdout: &out, Tty: tty}
	if in != "" {
		opts.Stdin = strings.NewReader(in)
	}
	if !tty {
		opts.Stderr = &errs
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	err = e.StreamWithContext(ctx, opts)
	return out.String(), errs.String(), err
}

func TestAttach(t *testing.T) {
	n := start(t)
	for name, tty := range map[string]bool{"pipes": false, "terminal": true} {
		t.Run(name, func(t *testing.T) {
			n := *n
			n.t = t
			p := n.run("echo up; read line; echo got $line; exit 5", func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
				c.Stdin, c.StdinOnce, c.Tty = true, true, tty
			})
			r, err := n.b.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: p.id, Stdin: true, Stdout: true, Stderr: !tty, Tty: tty})
			if err != nil {
				t.Fatal(err)
			}
			out, _, err := copyStreams(t, r.Url, "hello\n", tty)
			if !strings.Contains(out, "got hello") || err != nil {
				t.Errorf("%q, %v", out, err)
			}
			if st := p.ended(); st.ExitCode != 5 || !strings.Contains(p.text(), "got hello") {
				t.Errorf("%v, log %q", st, p.text())
			}
		})
	}
}
