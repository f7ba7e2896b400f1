// Package clients tests the engine with clients that know nothing of it:
// kubectl of this release and of an old one, Helm, client-go, and programs on
// controller-runtime. It is a module of its own, so that none of them is among
// the product's dependencies.
package clients
