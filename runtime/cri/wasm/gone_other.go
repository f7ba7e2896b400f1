//go:build !linux

package wasm

import "time"

// waitGone returns when a process has ended.
func waitGone(id identity) {
	for id.alive() {
		time.Sleep(pollGone)
	}
}
