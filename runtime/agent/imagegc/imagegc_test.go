package imagegc_test

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/quaymaster/quaymaster/runtime/agent/imagegc"
)

// backend has images of a size each, in the order of their removal.
type backend struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	images []string
	used   []string
	disk   uint64
}

const size = 10

func (b *backend) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	out := &runtimeapi.ListImagesResponse{}
	for _, i := range b.images {
		out.Images = append(out.Images, &runtimeapi.Image{Id: i, RepoTags: []string{"registry/" + i}, Size: size, Pinned: i == "pinned"})
	}
	return out, nil
}

func (b *backend) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	out := &runtimeapi.ListContainersResponse{}
	for _, i := range b.used {
		out.Containers = append(out.Containers, &runtimeapi.Container{ImageRef: i})
	}
	return out, nil
}

func (b *backend) RemoveImage(_ context.Context, in *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	b.images = slices.DeleteFunc(b.images, func(i string) bool { return i == in.Image.Image })
	b.disk -= size
	return &runtimeapi.RemoveImageResponse{}, nil
}

func TestCollect(t *testing.T) {
	b := &backend{images: []string{"old", "used", "pinned", "sandbox", "recent"}, used: []string{"used", "recent"}, disk: 50}
	clock := clocktesting.NewFakePassiveClock(time.Unix(1_700_000_000, 0))
	c := imagegc.New(imagegc.Options{Backend: b, Clock: clock, Sandbox: "registry/sandbox", Logger: slog.New(slog.DiscardHandler),
		Disk: func(context.Context) (uint64, uint64, error) { return 100, 100 - b.disk, nil }})
	collect := func(want string, wantErr string) {
		t.Helper()
		clock.SetTime(clock.Now().Add(time.Minute))
		_, err := c.Collect(t.Context())
		if got := strings.Join(b.images, " "); got != want || (err == nil) != (wantErr == "") || err != nil && !strings.Contains(err.Error(), wantErr) {
			t.Errorf("images %s, %v; want %s, %s", got, err, want, wantErr)
		}
	}
	collect("old used pinned sandbox recent", "") // the disk has room
	b.used = []string{"used"}
	b.disk = 90
	collect("old used pinned sandbox recent", "only found 0 bytes") // all are too young
	collect("used pinned sandbox recent", "")                       // one is enough
	b.disk = 90
	collect("used pinned sandbox", "")
	b.disk = 99
	collect("used pinned sandbox", "only found 0 bytes eligible to free")
	b.images = append(b.images, "new")
	if freed, err := c.Free(t.Context()); freed != size || err != nil || slices.Contains(b.images, "new") {
		t.Errorf("%d, %v, %v", freed, err, b.images)
	}
}
