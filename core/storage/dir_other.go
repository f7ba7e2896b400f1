//go:build !linux

package storage

import "os"

// exchange gives each of two directories the other's name. Who is interrupted in
// between finds b with ".old" behind its name.
func exchange(a, b string) error {
	if err := os.Rename(b, b+".old"); err != nil {
		return err
	}
	if err := os.Rename(a, b); err != nil {
		return err
	}
	return os.Rename(b+".old", a)
}
