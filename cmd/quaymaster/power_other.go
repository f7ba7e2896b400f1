//go:build !linux

package main

import "context"

// powerFails is Linux' signal alone.
func powerFails(context.Context, bool) <-chan struct{} { return nil }
