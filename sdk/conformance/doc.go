// Package conformance checks both sides of the ABI qm/1: a guest over generated
// inputs ([Guest]), and a host by guests whose answers are known ([Cases]). It
// knows the interface of an engine, none of its makers.
package conformance
