package server

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/proxy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// errNoPod is the answer for a pod that the node does not have, or not with that UID.
var errNoPod = errors.New("pod does not exist")

// streams adds exec, attach, port-forward and run, with a pod's UID in the path and without.
func (h *handler) streams(mux *http.ServeMux) {
	for path, fn := range map[string]func(http.ResponseWriter, *http.Request){
		"exec": h.exec, "attach": h.attach,
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			mux.HandleFunc(method+" /"+path+"/{namespace}/{pod}/{container}", fn)
			mux.HandleFunc(method+" /"+path+"/{namespace}/{pod}/{uid}/{container}", fn)
		}
	}
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		mux.HandleFunc(method+" /portForward/{namespace}/{pod}", h.portForward)
		mux.HandleFunc(method+" /portForward/{namespace}/{pod}/{uid}", h.portForward)
	}
	mux.HandleFunc("POST /run/{namespace}/{pod}/{container}", h.run)
	mux.HandleFunc("POST /run/{namespace}/{pod}/{uid}/{container}", h.run)
}

// target finds the running container that a request names.
func (h *handler) target(r *http.Request) (pod *v1.Pod, id string, err error) {
	if pod, err = h.pod(r); err != nil {
		return nil, "", err
	}
	name := r.PathValue("container")
	for _, c := range h.host.Instances(pod, name) {
		if c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			return pod, c.Id, nil
		}
	}
	return nil, "", status.Errorf(codes.NotFound, "container not found (%q)", name)
}

func (h *handler) pod(r *http.Request) (*v1.Pod, error) {
	pod := h.host.FindPod(r.PathValue("namespace"), r.PathValue("pod"))
	if pod == nil || r.PathValue("uid") != "" && string(pod.UID) != r.PathValue("uid") {
		return nil, status.Error(codes.NotFound, errNoPod.Error())
	}
	return pod, nil
}

// wanted reads which streams a client wants, as upstream's clients say it.
func wanted(q url.Values) (stdin, stdout, stderr, tty bool, err error) {
	on := func(name string) bool { return q.Get(name) == "1" || q.Get(name) == "true" }
	stdin, stdout, stderr, tty = on("input"), on("output"), on("error"), on("tty")
	if tty {
		stderr = false // a terminal has one output
	}
	if !stdin && !stdout && !stderr {
		return false, false, false, false, status.Error(codes.InvalidArgument, "you must specify at least 1 of stdin, stdout, stderr")
	}
	return stdin, stdout, stderr, tty, nil
}

func (h *handler) exec(w http.ResponseWriter, r *http.Request) {
	_, id, err := h.target(r)
	if err != nil {
		fail(w, err)
		return
	}
	q := r.URL.Query()
	stdin, stdout, stderr, tty, err := wanted(q)
	if err == nil && len(q["command"]) == 0 {
		err = status.Error(codes.InvalidArgument, "no command was given")
	}
	if err != nil {
		fail(w, err)
		return
	}
	answer, err := h.host.Backend().Exec(r.Context(), &runtimeapi.ExecRequest{
		ContainerId: id, Cmd: q["command"], Stdin: stdin, Stdout: stdout, Stderr: stderr, Tty: tty,
	})
	h.proxy(w, r, answer.GetUrl(), err)
}

func (h *handler) attach(w http.ResponseWriter, r *http.Request) {
	pod, id, err := h.target(r)
	if err != nil {
		fail(w, err)
		return
	}
	stdin, stdout, stderr, tty, err := wanted(r.URL.Query())
	if err != nil {
		fail(w, err)
		return
	}
	if c := containerOf(pod, r.PathValue("container")); c != nil {
		tty = c.TTY // an attached terminal is the container's own
		stderr = stderr && !tty
	}
	answer, err := h.host.Backend().Attach(r.Context(), &runtimeapi.AttachRequest{ContainerId: id, Stdin: stdin, Stdout: stdout, Stderr: stderr, Tty: tty})
	h.proxy(w, r, answer.GetUrl(), err)
}

func (h *handler) portForward(w http.ResponseWriter, r *http.Request) {
	pod, err := h.pod(r)
	if err != nil {
		fail(w, err)
		return
	}
	boxes, err := h.host.Backend().ListPodSandbox(r.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		State:         &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
		LabelSelector: map[string]string{"io.kubernetes.pod.uid": string(pod.UID)},
	}})
	if err == nil && len(boxes.Items) == 0 {
		err = status.Errorf(codes.NotFound, "failed to find sandbox for pod %q", pod.Name)
	}
	if err != nil {
		fail(w, err)
		return
	}
	answer, err := h.host.Backend().PortForward(r.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: boxes.Items[0].Id})
	h.proxy(w, r, answer.GetUrl(), err)
}

// proxy carries an upgraded connection on to the runtime's streaming server.
func (h *handler) proxy(w http.ResponseWriter, r *http.Request, address string, err error) {
	if err != nil {
		fail(w, err)
		return
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		http.Error(w, fmt.Sprintf("the container runtime's streaming address %q cannot be used", address), http.StatusInternalServerError)
		return
	}
	proxy.NewUpgradeAwareHandler(u, nil, false, true, responder{}).ServeHTTP(w, r)
}

type responder struct{}

func (responder) Error(w http.ResponseWriter, _ *http.Request, err error) {
	http.Error(w, "reach the container runtime's streaming server: "+err.Error(), http.StatusBadGateway)
}

// run executes a command and answers with what it wrote.
func (h *handler) run(w http.ResponseWriter, r *http.Request) {
	_, id, err := h.target(r)
	if err != nil {
		fail(w, err)
		return
	}
	command := strings.Split(r.URL.Query().Get("cmd"), " ")
	answer, err := h.host.Backend().ExecSync(r.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command})
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	if answer.ExitCode != 0 {
		w.WriteHeader(http.StatusInternalServerError)
	}
	_, _ = w.Write(slices.Concat(answer.Stdout, answer.Stderr))
}

// fail answers with the HTTP status of a gRPC error.
func fail(w http.ResponseWriter, err error) {
	st := status.Convert(err)
	code := map[codes.Code]int{
		codes.NotFound: http.StatusNotFound, codes.InvalidArgument: http.StatusBadRequest, codes.Unimplemented: http.StatusNotImplemented,
		codes.ResourceExhausted: http.StatusTooManyRequests, codes.Unavailable: http.StatusServiceUnavailable,
	}[st.Code()]
	if code == 0 {
		code = http.StatusInternalServerError
	}
	text := st.Message()
	if st.Code() == codes.Unimplemented {
		text = "this node's container runtime cannot do that: " + text
	}
	http.Error(w, text, code)
}

// containerOf finds a container of whatever kind in a pod's spec.
func containerOf(pod *v1.Pod, name string) *v1.Container {
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if e := &pod.Spec.EphemeralContainers[i]; e.Name == name {
			return (*v1.Container)(&e.EphemeralContainerCommon)
		}
	}
	return nil
}
