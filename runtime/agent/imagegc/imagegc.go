// Package imagegc frees the disk of images that no container uses, the least
// recently used first, once the disk is fuller than a bound.
package imagegc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/runtime/cri"
)

// Upstream's defaults.
const (
	High   = 85 // per cent of the disk: above it images are removed
	Low    = 80 // down to it
	MinAge = 2 * time.Minute
	Period = 5 * time.Minute
)

// Options of New. Backend and Disk are needed.
type Options struct {
	Backend cri.Backend
	// Disk returns the size of the images' file system and what is free of it, in bytes.
	Disk      func(ctx context.Context) (capacity, available uint64, err error)
	High, Low int    // 0 = the defaults; a High of 100 or more removes nothing by itself
	Sandbox   string // the name of the sandbox image, which is never removed; "" = unknown
	Clock     clock.PassiveClock
	Logger    *slog.Logger
}

// Collector remembers when images were seen and used.
type Collector struct {
	opts Options
	seen map[string]*record
}

type record struct{ detected, used time.Time }

// New returns a collector that knows no image yet.
func New(opts Options) *Collector {
	if opts.High == 0 {
		opts.High, opts.Low = High, Low
	}
	return &Collector{opts: opts, seen: map[string]*record{}}
}

// Image is a candidate for removal.
type Image struct {
	ID             string
	Size           uint64
	Detected, Used time.Time
}

// Plan returns the images to remove so that bytes become free, the least recently used
// first; images younger than minAge stay.
func Plan(images []Image, bytes uint64, minAge time.Duration, now time.Time) (remove []Image, freed uint64) {
	slices.SortFunc(images, func(a, b Image) int {
		return cmp.Or(a.Used.Compare(b.Used), a.Detected.Compare(b.Detected), cmp.Compare(a.ID, b.ID))
	})
	for _, i := range images {
		if freed >= bytes {
			break
		}
		if now.Sub(i.Detected) < minAge {
			continue
		}
		remove, freed = append(remove, i), freed+i.Size
	}
	return remove, freed
}

// unused brings the records up to date and returns the images that no container uses.
func (c *Collector) unused(ctx context.Context) ([]Image, error) {
	list, err := c.opts.Backend.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	containers, err := c.opts.Backend.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	inUse := map[string]bool{}
	for _, k := range containers.Containers {
		inUse[k.ImageRef], inUse[k.ImageId], inUse[k.GetImage().GetImage()] = true, true, true
	}
	now := c.opts.Clock.Now()
	present := map[string]bool{}
	var out []Image
	for _, i := range list.Images {
		present[i.Id] = true
		r := c.seen[i.Id]
		if r == nil {
			r = &record{detected: now}
			c.seen[i.Id] = r
		}
		used := i.Pinned || inUse[i.Id]
		for _, name := range slices.Concat(i.RepoTags, i.RepoDigests) {
			used = used || inUse[name] || c.opts.Sandbox != "" && name == c.opts.Sandbox
		}
		if used {
			r.used = now
			continue
		}
		out = append(out, Image{i.Id, i.Size, r.detected, r.used})
	}
	for id := range c.seen {
		if !present[id] {
			delete(c.seen, id)
		}
	}
	return out, nil
}

// Collect removes images if the disk is too full. It says how many bytes it freed; an
// error tells also of a disk that stays too full, in upstream's words.
func (c *Collector) Collect(ctx context.Context) (freed uint64, err error) {
	images, err := c.unused(ctx)
	if err != nil {
		return 0, err
	}
	capacity, available, err := c.opts.Disk(ctx)
	if err != nil || capacity == 0 {
		return 0, err
	}
	usage := int(100 - available*100/capacity)
	if usage < c.opts.High {
		return 0, nil
	}
	want := capacity*uint64(100-c.opts.Low)/100 - min(available, capacity*uint64(100-c.opts.Low)/100)
	freed, err = c.free(ctx, images, want, MinAge)
	if err == nil && freed < want {
		//lint:ignore ST1005 upstream's text
		err = fmt.Errorf("Failed to garbage collect required amount of images. Attempted to free %d bytes, but only found %d bytes eligible to free.", want, freed)
	}
	return freed, err
}

// Free removes all images that nobody uses, however young: the node needs the disk now.
func (c *Collector) Free(ctx context.Context) (uint64, error) {
	images, err := c.unused(ctx)
	if err != nil {
		return 0, err
	}
	return c.free(ctx, images, ^uint64(0), 0)
}

func (c *Collector) free(ctx context.Context, images []Image, bytes uint64, minAge time.Duration) (uint64, error) {
	remove, _ := Plan(images, bytes, minAge, c.opts.Clock.Now())
	var freed uint64
	var errs []error
	for _, i := range remove {
		if _, err := c.opts.Backend.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: i.ID}}); err != nil {
			errs = append(errs, fmt.Errorf("remove image %s: %w", i.ID, err))
			continue
		}
		c.opts.Logger.Info("an image that nobody uses was removed", "image", i.ID, "bytes", i.Size)
		delete(c.seen, i.ID)
		freed += i.Size
	}
	return freed, errors.Join(errs...)
}
