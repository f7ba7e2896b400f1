//go:build wasip1

// Cpu-headroom keeps a share of every node's CPU unrequested and prefers the
// nodes that have most of it left.
//
// Configuration: {"maxPercent": 80}, 90 when there is none.
package main

import (
	"errors"
	"strconv"
	"strings"

	qm "github.com/quaymaster/quaymaster/sdk/go"
)

const reasonHeadroom = 1

var maxPercent int64 = 90

func init() {
	qm.Register(qm.Policy{Configure: configure, Filter: filter, Score: score})
}

func main() {}

// configure reads the one member by hand: encoding/json would double the module.
func configure(json []byte) error {
	text := strings.TrimSpace(string(json))
	text, open := strings.CutPrefix(text, "{")
	text, end := strings.CutSuffix(text, "}")
	text = strings.TrimSpace(text)
	if open && end && text == "" {
		return nil
	}
	name, value, ok := strings.Cut(text, ":")
	n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
	if !open || !end || !ok || strings.TrimSpace(name) != `"maxPercent"` || err != nil || n < 1 || n > 100 {
		return errors.New(`want {"maxPercent": N} with N from 1 to 100`)
	}
	maxPercent = n
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
