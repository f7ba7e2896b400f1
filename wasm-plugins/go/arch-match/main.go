//go:build wasip1

// Arch-match refuses nodes of an architecture that a pod does not name in its
// annotation quaymaster.dev/arch, as in "amd64,arm64", and nodes that do not
// report theirs. Pods without the annotation may go anywhere. It is of the row
// tier.
package main

import (
	qm "github.com/quaymaster/quaymaster/sdk/go"
	"github.com/quaymaster/quaymaster/sdk/go/rows"
)

const reasonArch = 1 // the first of the manifest's reasons

var wanted []string // of the pod: from prefilter to filter

func init() { rows.Register(rows.Policy{Prefilter: prefilter, Filter: filter}) }

func main() {}

func prefilter(pod qm.PodView) error {
	wanted = wanted[:0]
	list, _ := pod.Annotation("quaymaster.dev/arch")
	for from, at := 0, 0; at <= len(list); at++ {
		if at == len(list) || list[at] == ',' {
			if at > from {
				wanted = append(wanted, list[from:at])
			}
			from = at + 1
		}
	}
	return nil
}

// Field numbers of core/v1: Node.status, NodeStatus.nodeInfo, NodeSystemInfo.architecture.
const status, nodeInfo, architecture = 3, 7, 10

func filter(_ qm.PodView, node qm.NodeView) (uint8, error) {
	if len(wanted) == 0 {
		return qm.Pass, nil
	}
	arch := node.Get(status).Get(nodeInfo).Text(architecture)
	for _, each := range wanted {
		if each == arch {
			return qm.Pass, nil
		}
	}
	qm.Reason(0, "node(s) are of the architecture "+arch)
	return reasonArch, nil
}
