//go:build !linux

package resident

func dropProgram(bool) {}

func mappedFiles() uint64 { return 0 }
