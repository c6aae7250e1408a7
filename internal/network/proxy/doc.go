// Package proxy makes Services reachable on a node, in the kernel's packet path, by nftables through
// netlink. No external program is needed and no packet passes through this process.
//
// # How it works
//
// The table "barque" holds a few fixed base chains (base.go) and two verdict maps: addresses
// (destination address, protocol, port) for cluster, external and load balancer addresses, and ports
// (protocol, port) for node ports and host ports on any local address. The first packet of a
// connection is looked up once, whatever the number of services, and sent to the chain of
// its service port, which picks an endpoint at random and rewrites the destination. Connection
// tracking handles the rest of the connection.
//
// [Compile] turns one Service and its EndpointSlices into [Rules]: a pure function. Every
// chain's name ends in a hash of its contents, so a chain never changes: new contents are a new chain,
// to which the map's elements move in the same transaction. Therefore:
//
//   - what the kernel holds can be compared with what it should hold by names and map
//     elements alone, which is how a restarted process takes over without touching what is right;
//   - a change costs what has changed: a transaction holds the chains and elements that differ.
//
// [Proxy] follows the API, collects changes for a moment when they come in bursts, and applies
// them. When the kernel refuses a transaction, or someone else changed the table, it reads the table
// again and repairs the difference.
//
// # Semantics
//
// They are those of kube-proxy: endpoints that are ready, or else those terminating but still
// serving (KEP-1669); internalTrafficPolicy and externalTrafficPolicy; session affinity by client address;
// topology hints (KEP-2433, KEP-4444); loadBalancerSourceRanges; node ports on every local address but not on loopback.
// Traffic to a service without endpoints is rejected at once; traffic that has none because of a Local
// policy is dropped. Traffic whose reply would otherwise not pass this node again is masqueraded: from
// outside the cluster with policy Cluster, from the node itself to a cluster address, and from a pod to itself.
//
// The cluster DNS address is special: every node answers it from a local socket (package dns), so the proxy
// leaves traffic to it alone, whatever the endpoints of the Service that documents it.
//
// The family is IPv4. Everything is written for one family per table, so that IPv6 is a second
// table with the same plan.
package proxy
