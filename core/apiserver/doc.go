// Package apiserver is the HTTP face of the engine: upstream's generic API
// server with upstream's REST storages, put together resource by resource from
// the table in kinds.go, and Quaymaster's own kinds beside them.
//
// Three ways lead to the same registries and the same admission chain: TLS on a
// listener, an in-memory transport (RESTConfig) for clients in the process, and
// Direct, which calls the registry with no HTTP and no codec.
package apiserver
