// Package cluster is the scheduler's pure core: the state of all nodes in
// columns and the decision where a pod goes. It has no goroutine, client or
// clock, so that the server, simulation, tests and explanations share it.
//
// Pods that scheduling cannot tell apart form a [Class]. A class keeps, for
// every node, the weighted total of its scores in a tournament tree, and a
// cursor into one log of changed rows: a decision brings the rows changed since
// the class was last used up to date, O(log nodes) each, and takes the root.
// What only node labels, taints and spec.unschedulable decide is shared between
// classes in a static factor that only those events touch.
//
// The contract: a decision equals [State.Scan], a plain pass over all nodes and
// plugins, with the same tie-break.
package cluster
