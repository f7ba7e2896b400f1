package agent_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/runtime/agent"
	"github.com/quaymaster/quaymaster/runtime/agent/fleet"
	"github.com/quaymaster/quaymaster/runtime/cri"
	simulated "github.com/quaymaster/quaymaster/runtime/cri/sim"
)

// recursive is a runtime with two handlers, and keeps what containers mount.
type recursive struct {
	cri.Backend
	features *runtimeapi.RuntimeHandlerFeatures // of the handler without a name
	handler  string                             // of all sandboxes

	mu     sync.Mutex
	mounts map[string]bool // by container path: whether it is recursively read-only
}

func (r *recursive) Status(ctx context.Context, in *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	out, err := r.Backend.Status(ctx, in)
	if err == nil {
		out.RuntimeHandlers = []*runtimeapi.RuntimeHandler{{Name: "other", Features: &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true}}, {Features: r.features}}
	}
	return out, err
}

func (r *recursive) PodSandboxStatus(ctx context.Context, in *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	out, err := r.Backend.PodSandboxStatus(ctx, in)
	if err == nil {
		out.Status.RuntimeHandler = r.handler
	}
	return out, err
}

func (r *recursive) CreateContainer(ctx context.Context, in *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	r.mu.Lock()
	for _, m := range in.Config.Mounts {
		r.mounts[m.ContainerPath] = m.RecursiveReadOnly
	}
	r.mu.Unlock()
	return r.Backend.CreateContainer(ctx, in)
}

// TestRecursiveReadOnly: what a pod asks for of its mounts is refused, left out or passed on as its runtime handler can, and its status and
// the node's say so.
func TestRecursiveReadOnly(t *testing.T) {
	for name, test := range map[string]struct {
		features *runtimeapi.RuntimeHandlerFeatures
		handler  string
		can      bool
	}{
		"a handler that can":                 {&runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true}, "", true},
		"a handler that cannot":              {&runtimeapi.RuntimeHandlerFeatures{UserNamespaces: true}, "", false},
		"a handler that tells of no feature": {nil, "", false},
		"another handler that can":           {nil, "other", true},
		"a handler that is not told of":      {&runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true}, "third", false},
	} {
		for _, skip := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, volumes %t", name, !skip), func(t *testing.T) {
				c := newCluster(t, fleet.Options{})
				s, err := simulated.New(simulated.Options{})
				if err != nil {
					t.Fatal(err)
				}
				backend := &recursive{Backend: s, features: test.features, handler: test.handler, mounts: map[string]bool{}}
				a, err := agent.New(agent.Options{NodeName: "n1", Client: c.client, Backend: backend, Pods: c.pods, Dir: t.TempDir(), SkipVolumes: skip})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- a.Run(ctx) }()
				defer func() {
					cancel()
					if err := <-done; err != nil {
						t.Error(err)
					}
				}()

				for name, mode := range map[string]v1.RecursiveReadOnlyMode{"must": v1.RecursiveReadOnlyEnabled, "may": v1.RecursiveReadOnlyIfPossible} {
					c.create(podObject("n1", name, func(p *v1.Pod) {
						p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}
						p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{
							{Name: "v", MountPath: "/" + name, ReadOnly: true, RecursiveReadOnly: ptr.To(mode)},
							{Name: "v", MountPath: "/plain", ReadOnly: true}, {Name: "v", MountPath: "/writable"},
						}
					}))
				}
				mode, passed := v1.RecursiveReadOnlyDisabled, []string{"may"}
				if test.can {
					mode, passed = v1.RecursiveReadOnlyEnabled, []string{"may", "must"}
				} else {
					eventually(t, func() string {
						for _, st := range c.pod("must").Status.ContainerStatuses {
							if w := st.State.Waiting; w != nil && w.Reason == "CreateContainerConfigError" &&
								w.Message == `failed to resolve recursive read-only mode: volume "v" requested recursive read-only mode, but it is not supported by the runtime` {
								return ""
							}
						}
						return fmt.Sprintf("the pod does not say why it waits: %+v", c.pod("must").Status)
					})
				}
				for _, name := range passed {
					c.phase(name, v1.PodRunning)
				}
				for _, name := range []string{"may", "must"} {
					have := ""
					for _, m := range c.pod(name).Status.ContainerStatuses[0].VolumeMounts {
						have += fmt.Sprintf("%s %s %t %s; ", m.Name, m.MountPath, m.ReadOnly, ptr.Deref(m.RecursiveReadOnly, "unsaid"))
					}
					if want := fmt.Sprintf("v /%s true %s; v /plain true Disabled; v /writable false unsaid; ", name, mode); have != want {
						t.Errorf("the status of %s has %q, want %q", name, have, want)
					}
				}
				if !skip {
					backend.mu.Lock()
					have := fmt.Sprint(backend.mounts)
					backend.mu.Unlock()
					want := fmt.Sprintf("map[/may:%t /plain:false /writable:false]", test.can)
					if test.can {
						want = strings.Replace(want, " /plain", " /must:true /plain", 1)
					}
					if have != want {
						t.Errorf("the runtime was asked for %s, want %s", have, want)
					}
				}
				eventually(t, func() string { // pods may run before their node is registered
					node, err := c.client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
					if err != nil {
						return err.Error()
					}
					have := ""
					for _, h := range node.Status.RuntimeHandlers {
						have += fmt.Sprintf("%q %t %t; ", h.Name, *h.Features.RecursiveReadOnlyMounts, *h.Features.UserNamespaces)
					}
					want := fmt.Sprintf(`"other" true false; "" %t %t; `, test.features.GetRecursiveReadOnlyMounts(), test.features.GetUserNamespaces())
					if have != want {
						return fmt.Sprintf("the node has handlers %s, want %s", have, want)
					}
					return ""
				})
			})
		}
	}
}
