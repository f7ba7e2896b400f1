package cluster

import (
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"

	"github.com/quaymaster/quaymaster/policies/abi"
)

// State is all that decisions read: nodes, the pods on them, and what the
// classes derived from both. One goroutine owns it.
type State struct {
	seed  uint64
	fleet abi.Fleet

	nodes    map[string]*node // by name; also nodes unknown so far that pods are bound to
	byRow    []*node          // nil where the row is vacant
	sums     []rowSums        // by row
	vacant   []int32
	count    int // nodes present
	extended map[v1.ResourceName]*extendedColumn
	images   map[string]*image
	pods     map[types.NamespacedName]*podEntry

	// log holds the rows changed at positions logStart…; fleet.Generation is its end.
	log      []int32
	logStart uint64
	freed    []int32 // rows where something may fit that did not before

	classes map[string]*Class
	sweepAt int // number of classes that makes a sweep worth while
	factors map[string]*factor
	tick    uint64 // rises with each use of a class

	// What pods ask of each other; see terms.go, counters.go and relations.go.
	namespaces        map[string]labels.Set
	owners            owners
	topologies        map[string]*topology
	sets              map[string]*podSet
	selecting         map[string][]*podSet // by the namespace of their pods; "": of any
	setsEpoch         uint64               // rises when pods may belong to other sets than before
	carriers          []*carrier
	carriersAt        int // number of carriers that makes forgetting worth while
	carriersEpoch     uint64
	keysRead          map[string]bool // terms and constraints whose label keys are in labelKeys
	labelKeys         map[string]bool
	keyRoom           []byte // of the last class asked for
	storage           storage
	shares            *shares // nil: not tracked
	related           bool    // some pod has asked something of others
	selectsNamespaces bool    // … by the labels of their namespaces
	epoch             uint64  // see Epoch
	nominees          map[types.NamespacedName]*podEntry
	tried             [maxTried]*Class // with trials
	triedAt           int              // the next to be without
	freedTallies      bool
	quiet             bool // while trying what will be undone

	cellLimits cellLimits
	gatesEpoch uint64 // rises when other constraints are gates than before

	past    *past // nil: not kept
	pools   map[deviceKey]*devicePool
	typical map[*deviceArgs]*typicalRows
	devices deviceBuffers

	scratch []int32
	cells   []int32
	raw     []int64
	seen    []bool
	dirty   []bool // blocks of a tree
	touched int32  // keeps touch from being left out
}

// node is one node and the pods bound to it.
type node struct {
	name   string
	row    int32 // -1: the node is not (yet, or any more) there
	object *v1.Node
	pods   []*podEntry
	ports  int      // pods with host ports
	zone   nodeZone // of the object
	edits  uint64   // rises when its pods, or what they take, are other than before

	nominated []*podEntry // not bound; see Nominate
}

// podEntry is a pod that occupies a node, bound or assumed.
type podEntry struct {
	pod      *v1.Pod
	node     *node
	index    int // in node.pods
	requests requests
	ports    []hostPort
	priority int32
	terms    *podTerms // nil: none
	sets     []*podSet
	claims   []types.NamespacedName
	devices  []held
	nominee  bool // not bound; see Nominate
	lifted   bool // off its node for a trial
	unused   bool // … and its claims are not in use by it
	doomed   bool // being evicted
}

type extendedColumn struct{ allocatable, requested []int64 }

type image struct {
	size  int64 // of the first node that reported it
	nodes int
}

// New returns an empty state. The seed takes part in every tie-break.
func New(seed uint64) *State {
	s := &State{
		seed:       seed,
		cellLimits: defaultCellLimits,
		nodes:      map[string]*node{},
		extended:   map[v1.ResourceName]*extendedColumn{},
		images:     map[string]*image{},
		pods:       map[types.NamespacedName]*podEntry{},
		classes:    map[string]*Class{},
		factors:    map[string]*factor{},
		pools:      map[deviceKey]*devicePool{},
		typical:    map[*deviceArgs]*typicalRows{},

		namespaces: map[string]labels.Set{},
		owners:     owners{map[string]map[string]labels.Set{}, map[controllerKey]labels.Selector{}},
		topologies: map[string]*topology{},
		nominees:   map[types.NamespacedName]*podEntry{},
		sets:       map[string]*podSet{},
		selecting:  map[string][]*podSet{},
		keysRead:   map[string]bool{},
		labelKeys:  map[string]bool{},
		storage:    newStorage(),
	}
	s.fleet = abi.Fleet{
		ExtendedAllocatable: map[v1.ResourceName][]int64{},
		ExtendedRequested:   map[v1.ResourceName][]int64{},
		Symbols:             abi.NewSymbols(),
		Changes:             s.changes,
	}
	return s
}

// Nodes is the number of nodes.
func (s *State) Nodes() int { return s.count }

// Pods is the number of pods on nodes, known or not.
func (s *State) Pods() int { return len(s.pods) }

// Node returns the node of that name, or nil.
func (s *State) Node(name string) *v1.Node {
	if n := s.nodes[name]; n != nil && n.row >= 0 {
		return n.object
	}
	return nil
}

// Fleet returns the columns. They may be read until the next change of the state.
func (s *State) Fleet() *abi.Fleet { return &s.fleet }

// SetNode adds a node or puts its new version in force.
func (s *State) SetNode(object *v1.Node) {
	n := s.nodes[object.Name]
	if n == nil {
		n = &node{name: object.Name, row: -1}
		s.nodes[object.Name] = n
	}
	old := n.object
	if n.row < 0 {
		old = nil
		s.occupy(n)
	}
	n.object = object
	row, generation := n.row, s.fleet.Generation
	s.fleet.Nodes[row] = object
	flags := nodeFlags(object)
	n.zone = zoneOf(object)
	static := old == nil || old.Annotations[v1.PreferAvoidPodsAnnotationKey] != object.Annotations[v1.PreferAvoidPodsAnnotationKey] || !maps.Equal(old.Labels, object.Labels) || old.Spec.Unschedulable != object.Spec.Unschedulable ||
		!slices.EqualFunc(old.Spec.Taints, object.Spec.Taints, func(a, b v1.Taint) bool {
			return a.Key == b.Key && a.Value == b.Value && a.Effect == b.Effect
		})
	capacity := s.setAllocatable(row, object)
	if s.shares != nil {
		s.shares.stale = true
	}
	defer func(before *v1.Node) { // of what has changed
		if after := s.fleet.Generation; after != generation {
			s.remember(change{kind: nodeSet, row: row, node: before})
		}
	}(old)
	images := old == nil || !slices.EqualFunc(old.Status.Images, object.Status.Images, func(a, b v1.ContainerImage) bool {
		return a.SizeBytes == b.SizeBytes && slices.Equal(a.Names, b.Names)
	})
	if images {
		s.countImages(old, -1)
		s.countImages(object, +1)
		s.fleet.Images.Values[row] = s.imageSymbols(object)
	}
	if static {
		s.setStaticColumns(row, object)
		s.relocate(row, object)
		for _, f := range s.factors {
			f.refresh(s, row)
		}
		for args, x := range s.typical {
			x.match[row], x.known[row] = args.matches(object), false
		}
	}
	if static || capacity || images || s.fleet.Flags[row] != flags {
		s.fleet.Flags[row] = flags
		s.changed(row)
		s.freed = append(s.freed, row)
	}
}

// RemoveNode forgets a node. Pods bound to it stay known by its name.
func (s *State) RemoveNode(name string) {
	n := s.nodes[name]
	if n == nil || n.row < 0 {
		return
	}
	row := n.row
	s.remember(change{kind: nodeSet, row: row, node: n.object})
	for _, e := range slices.Clone(n.nominated) {
		s.Withdraw(keyOf(e.pod))
	}
	for _, e := range n.pods {
		s.account(e, -1)
	}
	s.countImages(n.object, -1)
	s.relocate(row, nil)
	n.row, n.object = -1, nil
	s.byRow[row] = nil
	s.fleet.Nodes[row] = nil
	s.fleet.Flags[row] = 0
	for _, f := range s.factors {
		f.reason[row] = refusedVacant
	}
	for _, p := range s.pools {
		p.free[row] = nil
	}
	if s.shares != nil {
		s.shares.stale = true
	}
	s.vacant = append(s.vacant, row)
	s.count--
	s.changed(row)
	if len(n.pods) == 0 {
		delete(s.nodes, name)
	}
}

// SetPod counts a pod with spec.nodeName on that node: a bound one, a newer
// version of it, or one assumed to be there. A pod that has ended counts nowhere.
func (s *State) SetPod(pod *v1.Pod) {
	key := keyOf(pod)
	if pod.Spec.NodeName == "" || Ended(pod) {
		s.RemovePod(key)
		return
	}
	if e := s.pods[key]; e != nil {
		if e.node.name == pod.Spec.NodeName && e.pod.UID == pod.UID {
			regroup := s.related && ((e.pod.DeletionTimestamp == nil) != (pod.DeletionTimestamp == nil) || s.readsChange(e.pod.Labels, pod.Labels))
			if e.pod.Generation == pod.Generation && len(pod.Status.ContainerStatuses) == 0 && !regroup {
				s.relabelled(e, pod) // the spec is the same, and no container reports anything else
				return
			}
			r := s.requestsOf(pod)
			resized := !e.requests.equal(&r)
			if s.past != nil && (resized || regroup) { // as if it had gone and come again
				s.remember(change{kind: podLeft, key: key, pod: slim(e.pod), devices: e.devices, on: e.node.name})
				s.remember(change{kind: podCame, key: key})
			}
			if resized {
				s.account(e, -1)
				e.requests, e.devices = r, nil
				s.assignDevices(e, e.node.row)
				s.account(e, +1)
				s.rowFreed(e.node.row)
			}
			if s.relabelled(e, pod); regroup {
				s.resettle(e)
			}
			return
		}
		s.RemovePod(key)
	}
	s.setPod(key, pod, nil)
}

// readsChange says that a label that any term or constraint reads is another now. A
// bind itself adds labels to a pod: those of its node's zone and region.
func (s *State) readsChange(old, now map[string]string) bool {
	differ := func(a, b map[string]string) bool {
		for key, value := range a {
			if other, ok := b[key]; (!ok || other != value) && s.labelKeys[key] {
				return true
			}
		}
		return false
	}
	return differ(old, now) || differ(now, old)
}

// setPod places a pod that is not there; devices are those that it has already.
func (s *State) setPod(key types.NamespacedName, pod *v1.Pod, devices []held) {
	terms := podTermsOf(pod)
	s.place(key, &podEntry{pod: pod, requests: s.requestsOf(pod), ports: hostPortsOf(pod), priority: corev1helpers.PodPriority(pod),
		devices: devices, terms: terms, sets: s.setsOf(pod, terms)})
}

// Assume counts a pod of the class as bound to the node that a decision gave it.
// Where the profile gives devices, the pod's annotation says which afterwards.
func (s *State) Assume(c *Class, pod *v1.Pod) {
	key := keyOf(pod)
	s.RemovePod(key)
	if c.setsEpoch != s.setsEpoch { // carried terms that are new make a set each
		c.sets = s.setsOf(pod, c.terms)
		c.setsEpoch = s.setsEpoch
	}
	e := &podEntry{pod: pod, requests: c.requests, ports: c.ports, priority: c.priority, terms: c.terms, sets: c.sets}
	if n := s.nodes[pod.Spec.NodeName]; n != nil && c.pool != nil {
		s.ownDevices(c, e, n.row)
	}
	s.place(key, e)
}

// RemovePod frees what the pod of that name occupied. It says whether there was one.
func (s *State) RemovePod(key types.NamespacedName) bool {
	e := s.pods[key]
	if e == nil {
		return false
	}
	delete(s.pods, key)
	s.account(e, -1)
	n := e.node
	if s.past != nil {
		s.remember(change{kind: podLeft, key: key, pod: slim(e.pod), devices: e.devices, on: n.name})
	}
	last := len(n.pods) - 1
	n.pods[e.index] = n.pods[last]
	n.pods[e.index].index = e.index
	n.pods[last] = nil
	n.pods = n.pods[:last]
	if len(e.ports) > 0 {
		n.ports--
	}
	s.rowFreed(n.row)
	if n.row < 0 && len(n.pods) == 0 {
		delete(s.nodes, n.name)
	}
	return true
}

// Placed returns the pod of that name as it is counted, or nil.
func (s *State) Placed(key types.NamespacedName) *v1.Pod {
	if e := s.pods[key]; e != nil {
		return e.pod
	}
	return nil
}

// PodsOn returns the pods that occupy a node.
func (s *State) PodsOn(name string) (list []*v1.Pod) {
	if n := s.nodes[name]; n != nil {
		for _, e := range n.pods {
			list = append(list, e.pod)
		}
	}
	return list
}

// TakeFreed returns the rows where something may fit that did not before, since
// the last call; a row may be there twice.
func (s *State) TakeFreed() []int32 {
	rows := s.freed
	s.freed = nil
	return rows
}

// Ended says that the pod's containers are done for good.
func Ended(pod *v1.Pod) bool {
	return pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed
}

func (s *State) place(key types.NamespacedName, e *podEntry) {
	n := s.nodes[e.pod.Spec.NodeName]
	if n == nil {
		n = &node{name: e.pod.Spec.NodeName, row: -1}
		s.nodes[n.name] = n
	}
	e.node, e.index, e.claims = n, len(n.pods), claimsOf(e.pod)
	n.pods = append(n.pods, e)
	if len(e.ports) > 0 {
		n.ports++
	}
	s.pods[key] = e
	s.remember(change{kind: podCame, key: key})
	if len(s.pools) > 0 {
		s.assignDevices(e, n.row)
	}
	s.account(e, +1)
}

// account adds the pod to its row, or takes it off.
func (s *State) account(e *podEntry, sign int64) {
	row := e.node.row
	if row < 0 {
		return
	}
	f, r := &s.fleet, &e.requests
	f.Requested.MilliCPU[row] += sign * r.milliCPU
	f.Requested.Memory[row] += sign * r.memory
	f.Requested.EphemeralStorage[row] += sign * r.ephemeral
	f.Requested.Pods[row] += sign
	f.NonZeroRequested.MilliCPU[row] += sign * r.nonZeroCPU
	f.NonZeroRequested.Memory[row] += sign * r.nonZeroMemory
	for _, x := range r.extended {
		x.column.requested[row] += sign * x.amount
	}
	if len(s.pools) > 0 {
		s.accountDevices(e, row, sign)
	}
	if !s.quiet {
		s.sum(row)
	}
	for _, p := range e.sets {
		p.add(s, row, int32(sign))
	}
	if len(e.claims) > 0 && !s.quiet {
		s.use(e, sign)
	}
	if s.shares != nil && !s.quiet {
		s.shares.add(s, e, sign)
	}
	s.changed(row)
}

func (s *State) rowFreed(row int32) {
	if row >= 0 {
		s.freed = append(s.freed, row)
	}
}

// logLimit bounds the log; a class whose cursor fell off it is built anew.
const logLimit = 1 << 16

func (s *State) changed(row int32) {
	if s.quiet {
		return
	}
	if len(s.log) == 2*logLimit {
		s.log = append(s.log[:0], s.log[logLimit:]...)
		s.logStart += logLimit
	}
	s.log = append(s.log, row)
	s.fleet.Generation++
	if n := s.byRow[row]; n != nil {
		n.edits++
	}
}

func (s *State) changes(since uint64) ([]int32, bool) {
	if since < s.logStart || since > s.fleet.Generation {
		return nil, false
	}
	return s.log[since-s.logStart:], true
}

func keyOf(pod *v1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
}
