//go:build !linux

package process

import "time"

// Wait returns when a process has ended.
func (i Identity) Wait() {
	for i.Alive() {
		time.Sleep(poll)
	}
}
