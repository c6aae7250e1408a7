// Package scheduler assigns pods to nodes.
//
// A decision ([Decide]) is a pure function of a pod and a [Snapshot] of the cluster: filters
// say why a node cannot take the pod, scores rank those that can. Around it stands a loop
// ([Scheduler]): a [Cluster] that follows nodes and pods and hands out snapshots in constant
// time, a queue that knows which pods wait for what, and binding, which runs beside the next
// decisions. It runs on the server that leads; every write is fenced.
//
// A [Node] is immutable and replaced when something on it changes, so a snapshot is a slice of
// pointers and costs nothing to take. What a pod asks for is computed once ([Pod]).
//
// Filters and scores are values in two tables ([filters], [scores]); inter-pod affinity,
// topology constraints and volumes add rows, preemption reads the reasons.
package scheduler
