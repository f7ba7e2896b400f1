//go:build wasip1

// Resource-ratio holds the memory that a container requests for each CPU to a
// ratio: it refuses pods that leave it, and gives containers that request only
// CPU the memory that goes with it.
//
// Configuration: {"minGiB": 1, "maxGiB": 8} for each CPU.
package main

import (
	"errors"
	"strconv"

	qm "github.com/quaymaster/quaymaster/sdk/go"
	"github.com/quaymaster/quaymaster/sdk/go/admission"
)

const gib = 1 << 30

var least, most int64

func init() {
	qm.Configure(configure)
	admission.Register(admit)
}

func main() {}

func configure(config qm.JSON) error {
	var ok1, ok2 bool
	least, ok1 = config.Member("minGiB").Int64()
	most, ok2 = config.Member("maxGiB").Int64()
	if !ok1 || !ok2 || least < 0 || most < least || most > 1024 {
		return errors.New(`want {"minGiB": A, "maxGiB": B} with 0 ≤ A ≤ B ≤ 1024`)
	}
	return nil
}

func admit(review admission.Review, answer *admission.Answer) error {
	if review.Kind() != "Pod" || review.Object() == nil {
		return nil
	}
	for i, container := range review.Object().Member("spec", "containers").Elements() {
		requests := container.Member("resources", "requests")
		cpu, memory := qm.Quantity(requests.Member("cpu").Text()).Milli(), qm.Quantity(requests.Member("memory").Text()).Value()
		switch low, high := cpu*least*gib/1000, cpu*most*gib/1000; {
		case cpu == 0:
		case memory == 0:
			path := admission.Path("spec", "containers", strconv.Itoa(i), "resources", "requests", "memory")
			answer.Add(path, strconv.FormatInt(max(low, gib/1024), 10))
		case memory < low || memory > high:
			answer.Deny(403, "container "+container.Member("name").Text()+" requests "+requests.Member("memory").Text()+" of memory with "+
				requests.Member("cpu").Text()+" CPU, which is outside of "+strconv.FormatInt(least, 10)+" to "+strconv.FormatInt(most, 10)+" GiB for each")
			return nil
		}
	}
	return nil
}
