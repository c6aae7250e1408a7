package cgroup

// QoS is a pod's quality-of-service class as its group's place shows it.
type QoS string

// The classes that have groups of their own; guaranteed pods stand beside them.
const (
	Guaranteed QoS = ""
	Burstable  QoS = "burstable"
	BestEffort QoS = "besteffort"
)

// PodsRoot is the group of all pods below a node's root group, as the kubelet names it.
func PodsRoot(root string) string { return Join(root, "kubepods") }

// Class is the group of all pods of one class. The class Guaranteed has none: it is PodsRoot.
func Class(root string, class QoS) string { return Join(root, "kubepods", string(class)) }

// Pod is the group of one pod, by its UID.
func Pod(root string, class QoS, uid string) string {
	return Join(root, "kubepods", string(class), "pod"+uid)
}
