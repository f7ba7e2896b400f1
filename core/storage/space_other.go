//go:build !unix

package storage

import "math"

// freeSpace is not known here: Badger reports a full disk itself.
func freeSpace(string) (uint64, error) { return math.MaxUint64, nil }

// lockDir cannot keep others out here: opening the store tells whether one runs.
func lockDir(string) (free func(), err error) { return func() {}, nil }
