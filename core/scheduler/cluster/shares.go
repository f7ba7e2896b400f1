package cluster

// shares are what the pods of each namespace use of the whole, counted while
// someone asks.
type shares struct {
	of    map[string]*[2]int64 // milli-CPU and bytes of memory, by namespace
	total [2]int64             // of the nodes
	stale bool                 // total
}

// TrackShares begins or ends the count that Share needs.
func (s *State) TrackShares(on bool) {
	if on == (s.shares != nil) {
		return
	}
	if s.shares = nil; !on {
		return
	}
	s.shares = &shares{of: map[string]*[2]int64{}, stale: true}
	for _, e := range s.pods {
		if e.node.row >= 0 {
			s.shares.add(e, +1)
		}
	}
}

func (x *shares) add(e *podEntry, sign int64) {
	of := x.of[e.pod.Namespace]
	if of == nil {
		of = &[2]int64{}
		x.of[e.pod.Namespace] = of
	}
	of[0] += sign * e.requests.milliCPU
	of[1] += sign * e.requests.memory
}

// Share is the namespace's dominant share (Ghodsi et al., NSDI 2011): the larger
// of the parts that its pods on nodes request of all CPU and of all memory. It is
// 0 unless shares are tracked.
func (s *State) Share(namespace string) float64 {
	x := s.shares
	if x == nil || x.of[namespace] == nil {
		return 0
	}
	if x.stale {
		x.total, x.stale = [2]int64{}, false
		for row, n := range s.byRow {
			if n != nil {
				x.total[0] += s.fleet.Allocatable.MilliCPU[row]
				x.total[1] += s.fleet.Allocatable.Memory[row]
			}
		}
	}
	share := 0.0
	for i, used := range x.of[namespace] {
		if x.total[i] > 0 {
			share = max(share, float64(used)/float64(x.total[i]))
		}
	}
	return share
}
