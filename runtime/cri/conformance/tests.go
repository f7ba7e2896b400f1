package conformance

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/cri"
)

const (
	created = runtimeapi.ContainerState_CONTAINER_CREATED
	running = runtimeapi.ContainerState_CONTAINER_RUNNING
	exited  = runtimeapi.ContainerState_CONTAINER_EXITED
)

// container makes one in a sandbox, from an image that is there.
func (s *suite) container(id string, pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) string {
	s.t.Helper()
	c.Labels[podUID] = pod.Metadata.Uid
	r, err := s.Backend.CreateContainer(s.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: c, SandboxConfig: pod})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.ContainerId
}

func (s *suite) start(id string) {
	s.t.Helper()
	if _, err := s.Backend.StartContainer(s.ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *suite) stop(id string, seconds int64) {
	s.t.Helper()
	if _, err := s.Backend.StopContainer(s.ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: seconds}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *suite) remove(id string) {
	s.t.Helper()
	if _, err := s.Backend.RemoveContainer(s.ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *suite) status(id string) *runtimeapi.ContainerStatus {
	s.t.Helper()
	r, err := s.Backend.ContainerStatus(s.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.Status
}

func (s *suite) wait(id string, state runtimeapi.ContainerState) *runtimeapi.ContainerStatus {
	s.t.Helper()
	for {
		st := s.status(id)
		if st.State == state {
			return st
		}
		select {
		case <-s.ctx.Done():
			s.t.Fatalf("container %s is %s, want %s", id, st.State, state)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// runningContainer makes a pod with a container that runs.
func (s *suite) runningContainer() (sandbox, container string, pod *runtimeapi.PodSandboxConfig) {
	s.t.Helper()
	pod = s.podConfig()
	c := s.containerConfig("c")
	s.Runs(pod, c)
	s.pull(pod)
	sandbox = s.sandbox(pod)
	container = s.container(sandbox, pod, c)
	s.start(container)
	s.wait(container, running)
	return sandbox, container, pod
}

func (s *suite) version() {
	v, err := s.Backend.Version(s.ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	if v.RuntimeName == "" || v.RuntimeVersion == "" || v.RuntimeApiVersion != "v1" {
		s.t.Errorf("incomplete version: %v", v)
	}
	st, err := s.Backend.Status(s.ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	ready := map[string]bool{}
	for _, c := range st.GetStatus().GetConditions() {
		ready[c.Type] = c.Status
	}
	if !ready[runtimeapi.RuntimeReady] || !ready[runtimeapi.NetworkReady] {
		s.t.Errorf("the runtime is not ready: %v", st)
	}
}

func (s *suite) images() {
	ref := s.pull(nil)
	spec := &runtimeapi.ImageSpec{Image: s.Image}
	st, err := s.Backend.ImageStatus(s.ctx, &runtimeapi.ImageStatusRequest{Image: spec})
	if err != nil || st.Image == nil {
		s.t.Fatalf("the pulled image is not there: %v, %v", st, err)
	}
	if st.Image.Id == "" || st.Image.Size == 0 {
		s.t.Errorf("incomplete image: %v", st.Image)
	}
	byRef, err := s.Backend.ImageStatus(s.ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil || byRef.Image.GetId() != st.Image.Id {
		s.t.Errorf("the reference %q that the pull returned finds %v, %v", ref, byRef, err)
	}
	list, err := s.Backend.ListImages(s.ctx, &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: spec}})
	if err != nil || len(list.Images) != 1 || list.Images[0].Id != st.Image.Id {
		s.t.Errorf("list of the image: %v, %v", list, err)
	}
	if s.Missing == "" {
		return
	}
	missing := &runtimeapi.ImageSpec{Image: s.Missing}
	if st, err := s.Backend.ImageStatus(s.ctx, &runtimeapi.ImageStatusRequest{Image: missing}); err != nil || st.Image != nil {
		s.t.Errorf("status of an image that is not there: %v, %v; want none and no error", st, err)
	}
	if _, err := s.Backend.PullImage(s.ctx, &runtimeapi.PullImageRequest{Image: missing}); status.Code(err) != codes.NotFound {
		s.t.Errorf("pull of an image that does not exist: %v; want code NotFound", err)
	}
	if _, err := s.Backend.RemoveImage(s.ctx, &runtimeapi.RemoveImageRequest{Image: missing}); err != nil {
		s.t.Errorf("remove an image that is not there: %v; want no error", err)
	}
}

func (s *suite) sandboxLifecycle() {
	pod := s.podConfig()
	id := s.sandbox(pod)
	r, err := s.Backend.PodSandboxStatus(s.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		s.t.Fatal(err)
	}
	st := r.Status
	if st.State != runtimeapi.PodSandboxState_SANDBOX_READY || st.Metadata.Name != pod.Metadata.Name || st.Metadata.Uid != pod.Metadata.Uid ||
		st.CreatedAt == 0 || st.Labels["pod"] != pod.Metadata.Name || st.Annotations["note"] != pod.Metadata.Name {
		s.t.Errorf("status of a new sandbox: %v", st)
	}
	for range 2 {
		if _, err := s.Backend.StopPodSandbox(s.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
			s.t.Fatal(err)
		}
	}
	if r, err = s.Backend.PodSandboxStatus(s.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id}); err != nil {
		s.t.Fatal(err)
	}
	if r.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		s.t.Errorf("a stopped sandbox is %s", r.Status.State)
	}
	for range 2 {
		if _, err := s.Backend.RemovePodSandbox(s.ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
			s.t.Fatal(err)
		}
	}
	if _, err = s.Backend.PodSandboxStatus(s.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id}); status.Code(err) != codes.NotFound {
		s.t.Errorf("status of a removed sandbox: %v; want code NotFound", err)
	}
	if _, err := s.Backend.StopPodSandbox(s.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		s.t.Errorf("stop of a removed sandbox: %v; want success", err)
	}
}

func (s *suite) containerLifecycle() {
	pod := s.podConfig()
	c := s.containerConfig("c")
	s.Runs(pod, c)
	s.pull(pod)
	sandbox := s.sandbox(pod)
	id := s.container(sandbox, pod, c)
	st := s.status(id)
	if st.State != created || st.CreatedAt == 0 || st.StartedAt != 0 || st.FinishedAt != 0 || st.Metadata.Name != "c" || st.ImageRef == "" ||
		st.Labels["container"] != "c" || st.Annotations["note"] != "c" || !strings.HasPrefix(st.LogPath, pod.LogDirectory) {
		s.t.Errorf("status of a new container: %v", st)
	}
	s.start(id)
	if st = s.wait(id, running); st.StartedAt < st.CreatedAt || st.FinishedAt != 0 {
		s.t.Errorf("times of a running container: %v", st)
	}
	if _, err := s.Backend.StartContainer(s.ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err == nil {
		s.t.Error("a running container was started a second time")
	}
	s.stop(id, 0)
	if st = s.status(id); st.State != exited || st.FinishedAt < st.StartedAt || st.Reason == "" {
		s.t.Errorf("status of a stopped container: %v", st)
	}
	s.stop(id, 0) // again
	s.remove(id)
	s.remove(id) // again
	if _, err := s.Backend.ContainerStatus(s.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id}); status.Code(err) != codes.NotFound {
		s.t.Errorf("status of a removed container: %v; want code NotFound", err)
	}
	s.stop(id, 0) // once more
}

func (s *suite) exitCodes() {
	for _, code := range []int{0, 1, 3, 255} {
		pod := s.podConfig()
		c := s.containerConfig("c")
		s.Exits(pod, c, code)
		s.pull(pod)
		id := s.container(s.sandbox(pod), pod, c)
		s.start(id)
		st := s.wait(id, exited)
		reason := "Completed"
		if code != 0 {
			reason = "Error"
		}
		if int(st.ExitCode) != code || st.Reason != reason || st.FinishedAt < st.StartedAt || st.StartedAt == 0 {
			s.t.Errorf("want exit code %d and reason %s, have %v", code, reason, st)
		}
	}
}

func (s *suite) stopInGracePeriod() {
	_, id, _ := s.runningContainer()
	s.stop(id, 1) // which fails once the part's time is up
	if st := s.status(id); st.State != exited {
		s.t.Errorf("after stop: %v", st)
	}
}

func (s *suite) removeRunning() {
	sandbox, id, _ := s.runningContainer()
	s.remove(id)
	list, err := s.Backend.ListContainers(s.ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: sandbox}})
	if err != nil || len(list.Containers) != 0 {
		s.t.Errorf("after removal: %v, %v", list, err)
	}
}

func (s *suite) stopSandbox() {
	sandbox, id, pod := s.runningContainer()
	if _, err := s.Backend.StopPodSandbox(s.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		s.t.Fatal(err)
	}
	if st := s.status(id); st.State != exited {
		s.t.Errorf("a container of a stopped sandbox: %v", st)
	}
	c := s.containerConfig("late")
	if _, err := s.Backend.CreateContainer(s.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: c, SandboxConfig: pod}); err == nil {
		s.t.Error("a container was created in a stopped sandbox")
	}
}

func (s *suite) lists() {
	sandbox, id, pod := s.runningContainer()
	s.sandbox(s.podConfig())
	for name, test := range map[string]struct {
		filter *runtimeapi.PodSandboxFilter
		want   int
	}{
		"by label":     {&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"pod": pod.Metadata.Name}}, 1},
		"by two":       {&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"pod": pod.Metadata.Name, "suite": "other"}}, 0},
		"by ID":        {&runtimeapi.PodSandboxFilter{Id: sandbox}, 1},
		"by state":     {&runtimeapi.PodSandboxFilter{Id: sandbox, State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}}, 0},
		"unknown ID":   {&runtimeapi.PodSandboxFilter{Id: "ffffffffffffffffffffffffffffffffffff"}, 0},
		"by suite":     {&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"suite": "conformance"}}, 2},
		"no such pair": {&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"pod": ""}}, 0},
	} {
		r, err := s.Backend.ListPodSandbox(s.ctx, &runtimeapi.ListPodSandboxRequest{Filter: test.filter})
		if err != nil || len(r.Items) != test.want {
			s.t.Errorf("sandboxes %s: %d of them, want %d (%v)", name, len(r.GetItems()), test.want, err)
		}
	}
	for name, test := range map[string]struct {
		filter *runtimeapi.ContainerFilter
		want   int
	}{
		"by sandbox":       {&runtimeapi.ContainerFilter{PodSandboxId: sandbox}, 1},
		"by label":         {&runtimeapi.ContainerFilter{PodSandboxId: sandbox, LabelSelector: map[string]string{"container": "c"}}, 1},
		"by other label":   {&runtimeapi.ContainerFilter{PodSandboxId: sandbox, LabelSelector: map[string]string{"container": "d"}}, 0},
		"by ID":            {&runtimeapi.ContainerFilter{Id: id}, 1},
		"by state":         {&runtimeapi.ContainerFilter{PodSandboxId: sandbox, State: &runtimeapi.ContainerStateValue{State: exited}}, 0},
		"by running state": {&runtimeapi.ContainerFilter{PodSandboxId: sandbox, State: &runtimeapi.ContainerStateValue{State: running}}, 1},
	} {
		r, err := s.Backend.ListContainers(s.ctx, &runtimeapi.ListContainersRequest{Filter: test.filter})
		if err != nil || len(r.Containers) != test.want {
			s.t.Errorf("containers %s: %d of them, want %d (%v)", name, len(r.GetContainers()), test.want, err)
		}
	}
}

func (s *suite) names() {
	sandbox, _, pod := s.runningContainer()
	if r, err := s.Backend.RunPodSandbox(s.ctx, &runtimeapi.RunPodSandboxRequest{Config: pod}); err == nil {
		s.t.Errorf("two sandboxes of one name and attempt: %v", r)
	}
	c := s.containerConfig("c")
	if r, err := s.Backend.CreateContainer(s.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: c, SandboxConfig: pod}); err == nil {
		s.t.Errorf("two containers of one name and attempt: %v", r)
	}
	c = s.containerConfig("c")
	c.Metadata.Attempt = 1
	s.Runs(pod, c)
	s.container(sandbox, pod, c)
}

func (s *suite) errors() {
	const none = "0123456789abcdef0123456789abcdef"
	pod := s.podConfig()
	if _, err := s.Backend.CreateContainer(s.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: none, Config: s.containerConfig("c"), SandboxConfig: pod}); err == nil {
		s.t.Error("a container was created in no sandbox")
	}
	if _, err := s.Backend.StartContainer(s.ctx, &runtimeapi.StartContainerRequest{ContainerId: none}); status.Code(err) != codes.NotFound {
		s.t.Errorf("start of no container: %v; want code NotFound", err)
	}
	if _, err := s.Backend.RunPodSandbox(s.ctx, &runtimeapi.RunPodSandboxRequest{}); err == nil {
		s.t.Error("a sandbox without configuration was made")
	}
	s.stop(none, 0)
	s.remove(none)
	if s.Missing != "" {
		c := s.containerConfig("c")
		c.Image = &runtimeapi.ImageSpec{Image: s.Missing}
		if _, err := s.Backend.CreateContainer(s.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: s.sandbox(pod), Config: c, SandboxConfig: pod}); err == nil {
			s.t.Error("a container was created from an image that is not there")
		}
	}
}

var logLine = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z (stdout|stderr) [FP] .*$`)

func (s *suite) logs() {
	pod := s.podConfig()
	c := s.containerConfig("c")
	s.Exits(pod, c, 0)
	s.pull(pod)
	id := s.container(s.sandbox(pod), pod, c)
	s.start(id)
	st := s.wait(id, exited)
	want := filepath.Join(pod.LogDirectory, c.LogPath)
	if st.LogPath != want {
		s.t.Errorf("log path %s, want %s", st.LogPath, want)
	}
	data, err := os.ReadFile(want)
	if err != nil {
		s.t.Fatal(err)
	}
	found := false
	for _, line := range strings.Split(strings.TrimSuffix(string(data), "\n"), "\n") {
		if !logLine.MatchString(line) {
			s.t.Errorf("not a line of a CRI log: %q", line)
		}
		found = found || strings.HasSuffix(line, " stdout F "+s.Line)
	}
	if !found {
		s.t.Errorf("no line %q in\n%s", s.Line, data)
	}
}

func (s *suite) events() {
	ctx, cancel := context.WithCancel(s.ctx)
	var mu sync.Mutex
	var got []*runtimeapi.ContainerEventResponse
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- cri.Events(ctx, s.Backend, func() { close(ready) }, func(e *runtimeapi.ContainerEventResponse) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, e)
		})
	}()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		if status.Code(err) != codes.Unimplemented {
			s.t.Fatalf("events ended with %v", err)
		}
		return // an agent relists then
	}
	_, id, pod := s.runningContainer()
	s.stop(id, 0)
	s.remove(id)
	want := []string{"CONTAINER_CREATED_EVENT", "CONTAINER_STARTED_EVENT", "CONTAINER_STOPPED_EVENT", "CONTAINER_DELETED_EVENT"}
	for {
		mu.Lock()
		var have []string
		for _, e := range got {
			if e.ContainerId == id && e.PodSandboxStatus.GetMetadata().GetUid() == pod.Metadata.Uid {
				have = append(have, e.ContainerEventType.String())
			}
		}
		mu.Unlock()
		if fmt.Sprint(have) == fmt.Sprint(want) {
			break
		}
		if s.ctx.Err() != nil {
			s.t.Errorf("events %v, want %v", have, want)
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	if err := <-done; status.Code(err) != codes.Canceled {
		s.t.Errorf("the stream ended with %v, want code Canceled", err)
	}
}

// parallel runs pods side by side through their whole life.
func (s *suite) parallel() {
	s.pull(nil)
	var pods []*runtimeapi.PodSandboxConfig
	for range 8 {
		pods = append(pods, s.podConfig())
	}
	var wg sync.WaitGroup
	for _, pod := range pods {
		wg.Go(func() {
			c := s.containerConfig("c")
			s.Exits(pod, c, 5)
			fail := func(what string, err error) bool {
				if err != nil {
					s.t.Errorf("%s: %v", what, err)
				}
				return err != nil
			}
			box, err := s.Backend.RunPodSandbox(s.ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
			if fail("run sandbox", err) {
				return
			}
			made, err := s.Backend.CreateContainer(s.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: box.PodSandboxId, Config: c, SandboxConfig: pod})
			if !fail("create container", err) {
				_, err = s.Backend.StartContainer(s.ctx, &runtimeapi.StartContainerRequest{ContainerId: made.ContainerId})
				fail("start container", err)
				for s.ctx.Err() == nil {
					st, err := s.Backend.ContainerStatus(s.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: made.ContainerId})
					if fail("status", err) {
						break
					}
					if st.Status.State == exited {
						if st.Status.ExitCode != 5 {
							s.t.Errorf("exit code %d, want 5", st.Status.ExitCode)
						}
						break
					}
					time.Sleep(5 * time.Millisecond)
				}
			}
			_, err = s.Backend.RemovePodSandbox(s.ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: box.PodSandboxId})
			fail("remove sandbox", err)
		})
	}
	wg.Wait()
}
