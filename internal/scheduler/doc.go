// Package scheduler assigns pods to nodes.
//
// A decision ([Decide]) is a pure function of a pod and a [Snapshot] of the cluster: filters
// say why a node cannot take the pod, scores rank those that can. Where none can, [Preempt], as pure,
// says which pods of lower priority would have to go. Around them stands a loop
// ([Scheduler]): a [Cluster] that follows nodes, pods and namespaces and hands out snapshots in constant
// time, a queue that knows which pods wait for what, and binding and eviction, which run beside the next
// decisions. It runs on the server that leads; every write is fenced.
//
// A [Node] is immutable and replaced when something on it changes, so a snapshot is a slice of
// pointers and costs nothing to take. What a pod asks for is computed once ([Pod]). Filters and scores are
// values in two tables ([filters], [scores]).
//
// # What depends on other nodes
//
// Topology constraints and affinity between pods ask how many pods of some kind are in a domain: the nodes
// that have the same value of a label. Such counts are sums over nodes, kept in [Books] from one decision to
// the next under a name that says what is counted: for a constraint its namespace,
// selector, keys and which nodes count for it; for a term its namespaces, selector and key. Pods made from one template
// share them. Since nodes are immutable, a sum is brought in step with a snapshot by comparing its
// pointers with those that were added last, and by replacing what the few nodes contributed that are
// others now. So nothing is counted when pods and nodes come and go; pods that use no such feature pay nothing;
// a pod that does pays a walk over as many pointers as there are nodes, and the pods on
// those that changed; and it can't matter how often, how late or in which order events arrive, failed bindings
// included. Decide gives the same with books that are empty; sums that no decision needs are forgotten.
//
// Anti-affinity holds both ways. For the terms of pods that are on nodes there is one more sum: every distinct
// term, in which domains pods have it, and with what weight. Terms are filed under a label that those have whom
// they are about, so that a pod finds the terms about it without looking at all. Where no
// pod on a node has terms, none of this is asked.
//
// # Preemption
//
// [Preempt] tries on each node that refused for reasons that fewer pods may do away with: without all pods
// of lower priority first, then with as many of them as the pod fits beside. Sums follow what is supposed
// ([query.suppose]): one node is replaced by another for a while. Then the pod is nominated to
// the node: its room counts as taken for others that are not above it, the API shows it, and it waits for the
// victims to end. Until it has told the API all that, it is not tried again; when a
// pod ends on the node, it is tried at once.
package scheduler
