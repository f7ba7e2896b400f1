// Package rows registers a guest that sees one whole node a call.
package rows
