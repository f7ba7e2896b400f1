package qm

// Field numbers of core/v1.
const (
	metadata = 1
	spec     = 2
	status   = 3
)

// object has what pods and nodes have.
type object struct{ Message }

// Name of the object.
func (o object) Name() string { return o.Get(metadata).Text(1) }

// Label by key.
func (o object) Label(key string) (string, bool) {
	value, ok := o.Get(metadata).Entry(11, key)
	return string(value), ok
}

// Annotation by key.
func (o object) Annotation(key string) (string, bool) {
	value, ok := o.Get(metadata).Entry(12, key)
	return string(value), ok
}

// NodeView reads a v1 Node. What has no method here is in its Message.
type NodeView struct{ object }

// NodeOf reads a node from its protobuf.
func NodeOf(data []byte) NodeView { return NodeView{object{data}} }

// Taint of a node.
type Taint struct{ Key, Value, Effect string }

// Unschedulable is spec.unschedulable.
func (n NodeView) Unschedulable() bool { return n.Get(spec).Number(4) != 0 }

// Taints of the node.
func (n NodeView) Taints() (out []Taint) {
	n.Get(spec).All(5, func(t Message) bool {
		out = append(out, Taint{t.Text(1), t.Text(2), t.Text(3)})
		return true
	})
	return out
}

// Condition returns the status of a condition, "True", "False" or "Unknown"; ""
// when it is not reported.
func (n NodeView) Condition(kind string) string { return n.Get(status).having(4, 1, kind).Text(2) }

// Capacity of a resource, "" when there is none.
func (n NodeView) Capacity(resource string) Quantity {
	value, _ := n.Get(status).Entry(1, resource)
	return Quantity(value.Text(1))
}

// Allocatable amount of a resource, "" when there is none.
func (n NodeView) Allocatable(resource string) Quantity {
	value, _ := n.Get(status).Entry(2, resource)
	return Quantity(value.Text(1))
}

// Images calls each with the names of the images that are there, until it returns
// false.
func (n NodeView) Images(each func(name string) bool) {
	more := true
	n.Get(status).All(8, func(image Message) bool {
		image.All(1, func(name Message) bool {
			more = each(string(name))
			return more
		})
		return more
	})
}

// PodView reads a v1 Pod. What has no method here is in its Message.
type PodView struct{ object }

// PodViewOf reads a pod from its protobuf.
func PodViewOf(data []byte) PodView { return PodView{object{data}} }

// Namespace of the pod.
func (p PodView) Namespace() string { return p.Get(metadata).Text(3) }

// ServiceAccount of the pod.
func (p PodView) ServiceAccount() string { return p.Get(spec).Text(8) }

// SchedulerName of the pod.
func (p PodView) SchedulerName() string { return p.Get(spec).Text(19) }

// Priority of the pod.
func (p PodView) Priority() int32 { return int32(p.Get(spec).Number(25)) }

// NodeSelector by key.
func (p PodView) NodeSelector(key string) (string, bool) {
	value, ok := p.Get(spec).Entry(7, key)
	return string(value), ok
}

// PodToleration is a toleration as it is written.
type PodToleration struct{ Key, Operator, Value, Effect string }

// Tolerations of the pod.
func (p PodView) Tolerations() (out []PodToleration) {
	p.Get(spec).All(22, func(t Message) bool {
		out = append(out, PodToleration{t.Text(1), t.Text(2), t.Text(3), t.Text(4)})
		return true
	})
	return out
}

// Container of a pod.
type Container struct{ Message }

// Containers of the pod.
func (p PodView) Containers() []Container { return p.containers(2) }

// InitContainers of the pod.
func (p PodView) InitContainers() []Container { return p.containers(20) }

func (p PodView) containers(field int) (out []Container) {
	p.Get(spec).All(field, func(c Message) bool {
		out = append(out, Container{c})
		return true
	})
	return out
}

// Name of the container.
func (c Container) Name() string { return c.Text(1) }

// Image of the container.
func (c Container) Image() string { return c.Text(2) }

// Limit of a resource, "" when there is none.
func (c Container) Limit(resource string) Quantity {
	value, _ := c.Get(8).Entry(1, resource)
	return Quantity(value.Text(1))
}

// Request of a resource, "" when there is none.
func (c Container) Request(resource string) Quantity {
	value, _ := c.Get(8).Entry(2, resource)
	return Quantity(value.Text(1))
}
