package base

import (
	"fmt"

	"github.com/distribution/reference"
)

// ImageName adds what an image's name leaves out: hello becomes docker.io/library/hello:latest.
func ImageName(name string) (string, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", fmt.Errorf("image name %q: %w", name, err)
	}
	return reference.TagNameOnly(named).String(), nil
}
