package cluster

import (
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
)

// NoNodes is the message when the cluster has none.
const NoNodes = "no nodes available to schedule pods"

const (
	portsTaken  = "node(s) didn't have free ports for the requested pod ports"
	tooManyPods = "Too many pods"
	noVictims   = "No preemption victims found for incoming pod"
	notHelpful  = "Preemption is not helpful for scheduling"
	// What upstream's DynamicResources says first for a pod without claims.
	noClaims = "no new claims to deallocate"
	// What it says instead when a plugin before it ended the cycle early; preemption is not asked then.
	noClaimsState = "not found"
)

// Verdict says why no node takes the pods of a class.
type Verdict struct {
	// Message is upstream's text.
	Message string
	// Preemptible says that evicting pods of lower priority would make room.
	Preemptible bool
	// Plugins that refused some node, by name; policies are not among them.
	Plugins []string

	refused string // the message without what preemption says
	policy  func(row int32) string
	at      uint64  // generation of the state
	rows    []int32 // where evictions may help; only without a policy
}

// AwaitsVictims is the message while pods end to make room for this one.
func (v *Verdict) AwaitsVictims() string {
	return v.refused + " " + noClaims + ", preemption: not eligible due to a terminating pod on the nominated node."
}

// Verdict of a class that Decide found no node for.
func (s *State) Verdict(c *Class) *Verdict {
	if c.verdict == nil || c.verdictAt != s.fleet.Generation {
		c.verdict, c.verdictAt = s.verdict(c, nil), s.fleet.Generation
	}
	return c.verdict
}

// reasons counts the texts over nodes.
type reasons map[string]int

func (r reasons) add(texts ...string) {
	for _, t := range texts {
		r[t]++
	}
}

func (s *State) verdict(c *Class, policy func(row int32) string) *Verdict {
	if s.count == 0 {
		return &Verdict{Message: NoNodes}
	}
	filter, preemption := reasons{}, reasons{}
	var counts [len(refusals)]int
	last, same := "", 0 // reason of the rows before
	helpless := 0       // rows where preemption does not help
	v := &Verdict{policy: policy, at: s.fleet.Generation}
	s.resolve(c)
	known := s.refusals(c)
	for row, n := range s.byRow {
		if n == nil {
			continue
		}
		row := int32(row)
		if reason := c.factor.reason[row]; reason != refusedNot {
			counts[reason]++
			continue
		}
		why, resolvable := s.refusedThen(c, known, row)
		if resolvable && policy == nil {
			if v.rows == nil {
				v.rows = make([]int32, 0, s.count)
			}
			v.rows = append(v.rows, row)
		}
		if c.volumes != nil && c.volumes.refuses != "" {
			resolvable = false // even where another filter refuses first
		}
		if why == nil && policy != nil {
			why = []string{policy(row)}
		}
		if len(why) == 1 && why[0] == last { // as most: the map is asked once for all of them
			same++
		} else if len(why) > 0 {
			filter[last] += same
			last, same = why[0], 1
			filter.add(why[1:]...)
		}
		if !resolvable || c.never {
			helpless++
			continue
		}
		if !v.Preemptible { // else nobody asks why not
			_, left := s.victims(c, n, nil, time.Time{})
			preemption.add(left...)
			v.Preemptible = len(left) == 0
		}
	}
	if filter[last] += same; filter[""] == 0 {
		delete(filter, "")
	}
	outside := counts[refusedOutside]
	counts[refusedOutside] = 0
	for reason, count := range counts {
		if count > 0 {
			filter[refusals[reason].reason] += count
			helpless += count
		}
	}
	if helpless > 0 {
		preemption[notHelpful] += helpless
	}
	v.Plugins = c.pluginsOf(filter)
	nodes := s.count - outside
	if c.within.Key != "" {
		v.Preemptible = false
	}
	preFilter := ""
	if c.factor.conflict && c.profile.filters[NodeAffinity] {
		preFilter = affinityConflict
	} else if c.volumes != nil {
		preFilter = c.volumes.refuses
	}
	post := ""
	switch {
	case preFilter != "":
		post = noClaimsState
	case c.within.Key != "":
		post = noClaims + ", " + noMemberPreemption
	case c.never:
		post = noClaims + ", preemption: not eligible due to preemptionPolicy=Never."
	case !v.Preemptible:
		post = noClaims + ", preemption: " + fitError(nodes, "", preemption, "")
	}
	v.refused = fitError(nodes, preFilter, filter, "")
	v.Message = fitError(nodes, preFilter, filter, post)
	return v
}

// pluginsOf names the plugins that these reasons are of.
func (c *Class) pluginsOf(counts reasons) []string {
	var list []string
	for reason := range counts {
		if name := c.pluginOf(reason); name != "" && !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

func (c *Class) pluginOf(reason string) string {
	switch reason {
	case portsTaken:
		return NodePorts
	case tooManyPods:
		return NodeResourcesFit
	case diskConflict, singleInUse:
		return VolumeRestrictions
	case tooManyVolumes:
		return NodeVolumeLimits
	case zoneConflict:
		return VolumeZone
	case nodeConflict, bindConflict, notEnoughSpace, volumeMissing:
		return VolumeBinding
	case noDevice:
		return DeviceFragmentation
	}
	if strings.HasPrefix(reason, "Insufficient ") {
		return NodeResourcesFit
	}
	for _, x := range refusals {
		if x.reason == reason {
			return x.plugin
		}
	}
	for _, x := range relatedRefusals {
		if x.reason == reason {
			return x.plugin
		}
	}
	if c.volumes != nil && c.volumes.refuses == reason {
		return c.volumes.by
	}
	return "" // of a policy
}

// fitError is the text of upstream's FitError.
func fitError(nodes int, preFilter string, filter reasons, postFilter string) string {
	message := fmt.Sprintf("0/%d nodes are available:", nodes)
	if preFilter != "" {
		message += " " + preFilter + "."
	} else if len(filter) > 0 {
		texts := make([]string, 0, len(filter))
		for reason, count := range filter {
			texts = append(texts, fmt.Sprintf("%d %s", count, reason))
		}
		slices.Sort(texts)
		message += " " + strings.Join(texts, ", ") + "."
	}
	if postFilter != "" {
		message += " " + postFilter
	}
	return message
}

// refusedBy lists why the filters on what pods occupy refuse the row; it is
// resolvable when the node would be large enough if it were empty.
func (s *State) refusedBy(c *Class, row int32) (why []string, resolvable bool) {
	if !s.portsFree(c.ports, s.byRow[row]) {
		return []string{portsTaken}, true
	}
	if c.profile.fit {
		if why, resolvable = s.lacks(c, row); why != nil {
			return why, resolvable
		}
	}
	if c.volumes != nil {
		if plugin, why, resolvable := s.volumesRefuse(c.volumes, s.byRow[row]); plugin != "" {
			return why, resolvable
		}
	}
	if c.related != nil {
		if reason := c.related.refuses(row); reason != relatedNot {
			return []string{relatedRefusals[reason].reason}, relatedRefusals[reason].resolvable
		}
	}
	if lacks, resolvable := s.lacksDevices(c, row); lacks {
		return []string{noDevice}, resolvable
	}
	return nil, false
}

// lacks lists the resources that the row has too little of.
func (s *State) lacks(c *Class, row int32) (why []string, resolvable bool) {
	return insufficient(&c.requests, s.fleet.Requested.Pods[row], s.fleet.Allocatable.Pods[row], func(visit func(name v1.ResourceName, used, allocatable, wanted int64)) {
		f, r := &s.fleet, &c.requests
		visit(v1.ResourceCPU, f.Requested.MilliCPU[row], f.Allocatable.MilliCPU[row], r.milliCPU)
		visit(v1.ResourceMemory, f.Requested.Memory[row], f.Allocatable.Memory[row], r.memory)
		visit(v1.ResourceEphemeralStorage, f.Requested.EphemeralStorage[row], f.Allocatable.EphemeralStorage[row], r.ephemeral)
		for _, x := range c.wanted {
			visit(x.name, x.column.requested[row], x.column.allocatable[row], x.amount)
		}
	})
}

func insufficient(r *requests, pods, maxPods int64, each func(func(name v1.ResourceName, used, allocatable, wanted int64))) (why []string, resolvable bool) {
	resolvable = true
	if pods+1 > maxPods {
		why = append(why, tooManyPods)
	}
	each(func(name v1.ResourceName, used, allocatable, wanted int64) {
		if wanted > 0 && wanted > allocatable-used {
			if one := insufficientOne[name]; why == nil && one != nil {
				why = one
			} else {
				why = append(why, "Insufficient "+string(name))
			}
			resolvable = resolvable && wanted <= allocatable
		}
	})
	return why, resolvable && len(why) > 0
}

// insufficientOne are the reasons of which a node mostly has one: thousands of
// nodes are refused for each pod that none takes. To append to them copies them.
var insufficientOne = map[v1.ResourceName][]string{
	v1.ResourceCPU:              {"Insufficient cpu"},
	v1.ResourceMemory:           {"Insufficient memory"},
	v1.ResourceEphemeralStorage: {"Insufficient ephemeral-storage"},
}
