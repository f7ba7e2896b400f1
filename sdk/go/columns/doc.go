// Package columns registers a guest that sees all nodes in one call.
package columns
