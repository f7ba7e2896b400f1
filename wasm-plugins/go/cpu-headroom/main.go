//go:build wasip1

// Cpu-headroom keeps a share of every node's CPU unrequested and prefers the
// nodes that have most of it left.
//
// Configuration: {"maxPercent": 80}, 90 when there is none.
package main

import (
	"errors"

	qm "github.com/quaymaster/quaymaster/sdk/go"
	"github.com/quaymaster/quaymaster/sdk/go/columns"
)

const reasonHeadroom = 1

var maxPercent int64 = 90

func init() {
	qm.Configure(configure)
	columns.Register(columns.Policy{Filter: filter, Score: score})
}

func main() {}

func configure(config qm.JSON) error {
	var bad bool
	config.Items(func(key, value qm.JSON) bool {
		n, ok := value.Int64()
		bad = bad || !key.Is("maxPercent") || !ok || n < 1 || n > 100
		maxPercent = n
		return true
	})
	if bad || config.Kind() != qm.Object {
		return errors.New(`want {"maxPercent": N} with N from 1 to 100`)
	}
	return nil
}

func filter(pod qm.Pod, nodes qm.Snapshot, verdicts []uint8) error {
	allocatable, requested := nodes.Int64s(qm.AllocatableCPU), nodes.Int64s(qm.RequestedCPU)
	cpu := pod.CPU()
	for row := range verdicts {
		if verdicts[row] == qm.Pass && 100*(requested[row]+cpu) > maxPercent*allocatable[row] {
			verdicts[row] = reasonHeadroom
		}
	}
	return nil
}

func score(pod qm.Pod, nodes qm.Snapshot, verdicts []uint8, scores []int32) error {
	allocatable, requested := nodes.Int64s(qm.AllocatableCPU), nodes.Int64s(qm.RequestedCPU)
	cpu := pod.NonZeroCPU()
	for row, v := range verdicts {
		if v != qm.Pass {
			continue
		}
		scores[row] = 0
		if left := allocatable[row] - requested[row] - cpu; left > 0 {
			scores[row] = int32(100 * left / allocatable[row])
		}
	}
	return nil
}
