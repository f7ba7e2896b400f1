//go:build !linux

package storage

func (d *disk) unmap() {}
