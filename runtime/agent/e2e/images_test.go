package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	imagev1 "github.com/google/go-containerregistry/pkg/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
)

// badRegistry stands before a registry and does to its answers what it is told.
type badRegistry struct {
	address string
	image   string       // there is none like it elsewhere: what a runtime has it does not fetch
	damage  atomic.Value // string: "", "blob" (other bytes of the same length), "short" (half of them) or "secret" (for me:hush alone)
}

func newBadRegistry(t *testing.T, behind, damage string) *badRegistry {
	t.Helper()
	r := &badRegistry{}
	r.damage.Store(damage)
	files, err := containerdtest.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	img, err := containerdtest.Image(imagev1.Config{Env: []string{"PATH=/bin"}}, append(slices.Clone(files), containerdtest.File{Path: "etc/" + damage, Content: []byte(damage)})...)
	if err != nil {
		t.Fatal(err)
	}
	containerdtest.Push(t, img, behind+"/"+damage+":1")
	to, err := url.Parse("http://" + behind)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(to)
	proxy.ModifyResponse = r.answer
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		user, password, _ := q.BasicAuth()
		if r.damage.Load() == "secret" && (user != "me" || password != "hush") {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		proxy.ServeHTTP(w, q)
	}))
	t.Cleanup(server.Close)
	r.address = strings.TrimPrefix(server.URL, "http://")
	r.image = r.address + "/" + damage + ":1"
	return r
}

// answer damages layers, which are larger than all else.
func (r *badRegistry) answer(a *http.Response) error {
	damage := r.damage.Load()
	if damage != "blob" && damage != "short" || !strings.Contains(a.Request.URL.Path, "/blobs/") || a.ContentLength < 100_000 {
		return nil
	}
	data, err := io.ReadAll(a.Body)
	if err != nil {
		return err
	}
	_ = a.Body.Close()
	if damage == "short" { // the registry says so itself: nothing but the digest tells
		data = data[:len(data)/2]
		a.ContentLength = int64(len(data))
		a.Header.Set("Content-Length", fmt.Sprint(len(data)))
	} else {
		data[len(data)/2] ^= 0xff
	}
	a.Body = io.NopCloser(bytes.NewReader(data))
	return nil
}

// TestImages pulls from registries that have not, damage or refuse an image, each of which the pod says; and
// runs the pods when they are mended or shown the right secret.
func TestImages(t *testing.T) {
	n := newNode(t)
	n.create(n.podOf("stays", forever, func(p *v1.Pod) { p.Spec.Containers[0].Image = n.daemon.Busybox }))
	n.phase("stays", v1.PodRunning)
	secret := func(name, user, password, registry string) {
		t.Helper()
		if _, err := n.client.CoreV1().Secrets("default").Create(t.Context(), &v1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Type: v1.SecretTypeDockerConfigJson,
			StringData: map[string]string{v1.DockerConfigJsonKey: fmt.Sprintf(`{"auths":{%q:{"username":%q,"password":%q}}}`, registry, user, password)},
		}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	names := []string{"stays"}
	pod := func(name string, r *badRegistry, secrets ...string) {
		t.Helper()
		n.create(n.podOf(name, forever, func(p *v1.Pod) {
			p.Spec.Containers[0].Image = r.image
			p.Spec.Containers[0].ImagePullPolicy = v1.PullAlways
			for _, s := range secrets {
				p.Spec.ImagePullSecrets = append(p.Spec.ImagePullSecrets, v1.LocalObjectReference{Name: s})
			}
		}))
		names = append(names, name)
	}
	closed := newBadRegistry(t, n.daemon.Registry, "secret")
	for name, texts := range map[string][]string{
		"blob": {"digest", "sha256 checksum"}, "short": {"digest", "sha256 checksum", "unexpected commit", "size", "EOF"}, "secret": {"401", "UNAUTHORIZED"},
	} {
		r := closed
		if name != "secret" {
			r = newBadRegistry(t, n.daemon.Registry, name)
		}
		pod(name, r)
		p := n.until(name, "does not say why it has no image", func(p *v1.Pod) bool {
			w := waiting(p)
			return w != nil && (w.Reason == "ErrImagePull" || w.Reason == "ImagePullBackOff" && strings.Contains(w.Message, "ErrImagePull"))
		})
		if message := waiting(p).Message; !containsOne(message, texts) {
			t.Errorf("%s: %s", name, message)
		}
		n.event(name, "Failed", "Failed to pull image")
		if r != closed {
			r.damage.Store("") // the next pull finds it mended
		}
	}
	secret("right", "me", "hush", closed.address)
	secret("wrong", "me", "push", closed.address)
	pod("right", closed, "right")
	pod("both", closed, "wrong", "right")
	pod("wrong", closed, "wrong")
	pod("nosecret", closed, "absent")
	n.phase("right", v1.PodRunning)
	n.phase("both", v1.PodRunning)
	n.until("wrong", "is not refused", func(p *v1.Pod) bool { return waiting(p) != nil && strings.HasPrefix(waiting(p).Reason, "Err") })
	n.event("nosecret", "FailedToRetrieveImagePullSecret", "Unable to retrieve some image pull secrets (absent); attempting to pull the image may not succeed.")
	if text := n.events(); strings.Contains(text, "hush") || strings.Contains(text, "push\"") {
		t.Errorf("a password is told:\n%s", text)
	}
	if p := n.get("stays"); p.Status.Phase != v1.PodRunning || p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("a neighbour was harmed: %+v", p.Status)
	}
	n.phase("blob", v1.PodRunning)
	n.phase("short", v1.PodRunning)
	n.delete(names...)
	n.clean()
}

// waiting is why a pod's first container waits.
func waiting(p *v1.Pod) *v1.ContainerStateWaiting {
	if len(p.Status.ContainerStatuses) == 0 {
		return nil
	}
	return p.Status.ContainerStatuses[0].State.Waiting
}

func containsOne(s string, of []string) bool {
	for _, text := range of {
		if strings.Contains(s, text) {
			return true
		}
	}
	return false
}
