package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	grpcstatus "google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/credentials"
)

// maxNodeImages is how many images a Node's status lists at most.
const maxNodeImages = 50

// imageName adds what an image's name leaves out: registry, repository and tag.
func imageName(image string) (string, error) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return "", fmt.Errorf("couldn't parse image name %q: %w", image, err)
	}
	return reference.TagNameOnly(named).String(), nil
}

// foundImage is an image that is there.
type foundImage struct {
	ref    string            // its identity
	status *runtimeapi.Image // nil = it was pulled just now
}

// image makes sure that a container's image is there and returns it, or why the container waits, and how long.
func (p *pod) image(ctx context.Context, api *v1.Pod, c *v1.Container) (image foundImage, reason, message string, wait time.Duration) {
	a, clock := p.a, p.a.opts.Clock
	name, err := imageName(c.Image)
	if err != nil {
		message = fmt.Sprintf("Failed to apply default image tag %q: %v", c.Image, err)
		a.event(api, v1.EventTypeWarning, "InspectFailed", message, c.Name)
		return foundImage{}, "InvalidImageName", message, 0
	}
	spec := &runtimeapi.ImageSpec{Image: name, UserSpecifiedImage: c.Image}
	policy := c.ImagePullPolicy
	if policy == "" {
		policy = v1.PullIfNotPresent
		if strings.HasSuffix(name, ":latest") {
			policy = v1.PullAlways
		}
	}
	st, err := a.opts.Backend.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
	if err != nil {
		message = fmt.Sprintf("Failed to inspect image %q: %v", c.Image, grpcstatus.Convert(err).Message())
		a.event(api, v1.EventTypeWarning, "InspectFailed", message, c.Name)
		return foundImage{}, "ImageInspectError", message, time.Second
	}
	if policy != v1.PullAlways {
		if st.Image != nil {
			a.event(api, v1.EventTypeNormal, "Pulled", fmt.Sprintf("Container image %q already present on machine and can be accessed by the pod", c.Image), c.Name)
			return foundImage{st.Image.Id, st.Image}, "", "", 0
		}
		if policy == v1.PullNever {
			message = fmt.Sprintf("Container image %q is not present with pull policy of Never", c.Image)
			a.event(api, v1.EventTypeWarning, "ErrImageNeverPull", message, c.Name)
			return foundImage{}, "ErrImageNeverPull", message, firstBackOff
		}
	}
	key := "image " + name
	if left, _ := p.backoff.remaining(clock, key, p.backoff[key].updated); left > 0 {
		message = fmt.Sprintf("Back-off pulling image %q", c.Image)
		a.event(api, v1.EventTypeNormal, "BackOff", message, c.Name)
		if last := p.pullErr[name]; last != nil {
			message += ": ErrImagePull: " + last.Error()
		}
		return foundImage{}, "ImagePullBackOff", message, left
	}
	a.event(api, v1.EventTypeNormal, "Pulling", fmt.Sprintf("Pulling image %q", c.Image), c.Name)
	sandbox, err := a.sandboxConfig(api, p.attempt-1)
	var pulled *runtimeapi.PullImageResponse
	if err == nil {
		pulled, err = a.pull(ctx, api, &runtimeapi.PullImageRequest{Image: spec, SandboxConfig: sandbox})
	}
	if err != nil {
		p.backoff.next(clock, key, clock.Now())
		text := fmt.Errorf("failed to pull image %q: %s", c.Image, grpcstatus.Convert(err).Message())
		if p.pullErr == nil {
			p.pullErr = map[string]error{}
		}
		p.pullErr[name] = text
		a.event(api, v1.EventTypeWarning, "Failed", fmt.Sprintf("Failed to pull image %q: %s", c.Image, grpcstatus.Convert(err).Message()), c.Name)
		// The next step, soon, shows the back-off.
		return foundImage{}, "ErrImagePull", text.Error(), time.Second
	}
	delete(p.pullErr, name)
	a.event(api, v1.EventTypeNormal, "Pulled", fmt.Sprintf("Successfully pulled image %q", c.Image), c.Name)
	return foundImage{ref: pulled.ImageRef}, "", "", 0
}

// pull asks the registry with what the pod's secrets have for the image, one after the other, or as nobody.
func (a *Agent) pull(ctx context.Context, api *v1.Pod, request *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	who, err := credentials.For(request.Image.Image, a.pullSecrets(ctx, api))
	if err != nil {
		return nil, err
	}
	if len(who) == 0 {
		who = append(who, nil)
	}
	var errs []error
	for _, request.Auth = range who {
		pulled, err := a.opts.Backend.PullImage(ctx, request)
		if err == nil {
			return pulled, nil
		}
		errs = append(errs, errors.New(grpcstatus.Convert(err).Message()))
	}
	return nil, errors.Join(errs...)
}

// pullSecrets reads a pod's; one that cannot be had is told as an event, for the image may do without it.
func (a *Agent) pullSecrets(ctx context.Context, api *v1.Pod) []v1.Secret {
	var out []v1.Secret
	var failed []string
	for _, ref := range api.Spec.ImagePullSecrets {
		if ref.Name == "" { // older API servers let them pass
			continue
		}
		secret, err := a.opts.Client.CoreV1().Secrets(api.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if err != nil {
			a.log.Info("an image pull secret cannot be had", "pod", api.Namespace+"/"+api.Name, "secret", ref.Name, "err", err)
			failed = append(failed, ref.Name)
			continue
		}
		out = append(out, *secret)
	}
	if len(failed) > 0 {
		a.event(api, v1.EventTypeWarning, "FailedToRetrieveImagePullSecret",
			fmt.Sprintf("Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", strings.Join(failed, ", ")), "")
	}
	return out
}

// containerImages is a Node's list of images, the largest first.
func containerImages(images []*runtimeapi.Image) []v1.ContainerImage {
	var out []v1.ContainerImage
	for _, i := range images {
		if names := append(append([]string(nil), i.RepoDigests...), i.RepoTags...); len(names) > 0 {
			out = append(out, v1.ContainerImage{Names: names, SizeBytes: int64(i.Size)})
		}
	}
	slices.SortStableFunc(out, func(a, b v1.ContainerImage) int { return cmp.Compare(b.SizeBytes, a.SizeBytes) })
	return out[:min(len(out), maxNodeImages)]
}
