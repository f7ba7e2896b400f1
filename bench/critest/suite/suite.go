// Package suite is a module of its own for upstream's critest, whose versions of libraries are not the product's.
package suite

import (
	_ "sigs.k8s.io/cri-tools/pkg/benchmark" // with the next, what the tests are made of that are built as a program
	_ "sigs.k8s.io/cri-tools/pkg/common"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
