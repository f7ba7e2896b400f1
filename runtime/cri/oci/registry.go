package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/containerd/containerd/remotes/docker"
	"github.com/containerd/containerd/remotes/docker/config"
	"github.com/containerd/log"
	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hosts are those that a registry's images may be had from, in order: what a folder of the form of containerd's certs.d says
// (DIR/REGISTRY/hosts.toml or certificates there, else DIR/_default), or the registry alone.
func hosts(ctx context.Context, dir, registry string) ([]docker.RegistryHost, error) {
	opts := config.HostOptions{}
	if dir != "" {
		opts.HostDir = config.HostDirFromRoot(dir)
	}
	// The library logs what is wrong with a file, and goes on without it: past a mirror, or without a certificate.
	var said bytes.Buffer
	logger := logrus.New()
	logger.SetOutput(&said)
	logger.SetLevel(logrus.ErrorLevel)
	logger.SetFormatter(sentence{})
	out, err := config.ConfigureHosts(log.WithLogger(ctx, logrus.NewEntry(logger)), opts)(registry)
	if err == nil && said.Len() > 0 {
		err = errors.New(strings.TrimSpace(said.String()))
	}
	if err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "registry %s: %s: %v", registry, filepath.Join(dir, registry), err)
	}
	return out, nil
}

// sentence is an entry's message and error.
type sentence struct{}

func (sentence) Format(e *logrus.Entry) ([]byte, error) {
	if err, ok := e.Data[logrus.ErrorKey]; ok {
		return fmt.Appendf(nil, "%s: %v\n", e.Message, err), nil
	}
	return []byte(e.Message + "\n"), nil
}

// endpoint sends the calls of a registry's API to one of its hosts; what the host refers to elsewhere goes as it is.
type endpoint struct {
	docker.RegistryHost
	registry string // that the image names, where the host is another one
}

func (e endpoint) RoundTrip(in *http.Request) (*http.Response, error) {
	rest, api := strings.CutPrefix(in.URL.Path, "/v2")
	if in.URL.Host != e.Host || !api || in.Response != nil { // the last one: it is redirected
		return e.Client.Transport.RoundTrip(in)
	}
	out := in.Clone(in.Context())
	out.URL.Scheme, out.URL.Path = e.Scheme, strings.TrimSuffix(e.Path, "/")+rest
	if e.registry != "" {
		query := out.URL.Query()
		query.Set("ns", e.registry)
		out.URL.RawQuery = query.Encode()
	}
	for key, values := range e.Header {
		out.Header[key] = append(out.Header[key], values...)
	}
	return e.Client.Transport.RoundTrip(out)
}

// source is an image at one of the hosts.
type source struct {
	endpoint
	options []remote.Option
}

// get returns the image by a tag or digest, with the character before it.
func (s source) get(path, suffix string) (*remote.Descriptor, error) {
	ref, err := name.ParseReference(s.Host + "/" + path + suffix)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return remote.Get(ref, s.options...)
}

// sources are an image's.
func (d *driver) sources(ctx context.Context, registry string, auth *runtimeapi.AuthConfig) ([]source, error) {
	list, err := hosts(ctx, d.opts.Registries, registry)
	if err != nil {
		return nil, err
	}
	var out []source
	for i, h := range list {
		s := source{endpoint: endpoint{RegistryHost: h}}
		if i < len(list)-1 {
			s.registry = registry
		}
		who, err := authenticator(auth, h.Host)
		if err != nil {
			return nil, err
		}
		s.options = []remote.Option{remote.WithContext(ctx), remote.WithAuth(who), remote.WithTransport(s.endpoint),
			remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH})}
		if s.registry != "" { // the next host is the next try
			s.options = append(s.options, remote.WithRetryBackoff(remote.Backoff{Steps: 1}))
		}
		out = append(out, s)
	}
	return out, nil
}

// fetch stores the image for this machine's platform: a tag is resolved by the first host that may and can, and the
// contents are what that one's digest names, from the first host that may and can give them.
func (d *driver) fetch(ctx context.Context, full string, auth *runtimeapi.AuthConfig) error {
	named, err := reference.ParseNormalizedNamed(full)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	registry, path := reference.Domain(named), reference.Path(named)
	list, err := d.sources(ctx, registry, auth)
	if err != nil {
		return err
	}
	defer func() {
		for _, s := range list {
			s.Client.CloseIdleConnections()
		}
	}()
	suffix := strings.TrimPrefix(full, named.Name())
	if _, digest, ok := strings.Cut(suffix, "@"); ok {
		suffix = "@" + digest
	}
	var resolved *remote.Descriptor
	var by string
	if suffix[0] == ':' {
		err := first(ctx, list, docker.HostCapabilityResolve, "tells of tags", func(s source) (err error) {
			resolved, err = s.get(path, suffix)
			by = s.Host
			return err
		})
		if err != nil {
			return err
		}
		suffix = "@" + resolved.Digest.String()
	}
	return first(ctx, list, docker.HostCapabilityPull, "gives contents", func(s source) (err error) {
		got := resolved
		if got == nil || s.Host != by {
			if got, err = s.get(path, suffix); err != nil {
				return err
			}
		}
		img, err := got.Image()
		if err != nil {
			return err
		}
		return d.images.add(full, img, map[string]string{digestAnnotation: got.Digest.String()})
	})
}

// first tries hosts one after the other. The error is the last one's, which is the registry itself, with those before it.
func first(ctx context.Context, list []source, can docker.HostCapabilities, what string, try func(source) error) error {
	err := fmt.Errorf("no host of the registry %s", what)
	var before []string
	for _, s := range list {
		if !s.Capabilities.Has(can) {
			continue
		}
		if err = try(s); err == nil || ctx.Err() != nil {
			return err
		}
		before = append(before, fmt.Sprintf("%s: %v", s.Host, err))
	}
	if len(before) > 1 {
		err = fmt.Errorf("%w (before it %s)", err, strings.Join(before[:len(before)-1], "; "))
	}
	return err
}

// authenticator reads a pull secret as CRI hands it on. One that names a registry is shown to no other host.
func authenticator(a *runtimeapi.AuthConfig, host string) (authn.Authenticator, error) {
	if a == nil {
		return authn.Anonymous, nil
	}
	if a.ServerAddress != "" {
		at, err := url.Parse(a.ServerAddress)
		if err != nil || at.Host == "" {
			at, err = url.Parse("//" + a.ServerAddress)
		}
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "the pull secret's server: %v", err)
		}
		if hub := host == "registry-1.docker.io" && strings.HasSuffix(at.Host, "docker.io"); at.Host != host && !hub {
			return authn.Anonymous, nil
		}
	}
	return basic(a)
}
