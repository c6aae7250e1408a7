// Package dns answers the cluster's names on every node, in this process: no pod, no single point of
// failure, and no hop to another node.
//
// It is CoreDNS as a library: its server, its forwarding with health checks, its cache and its lookup
// logic for service backends (CNAME chains, SRV with extra records, NXDOMAIN against NODATA). Nothing is
// configured through Corefiles or the process-wide plugin registry; the chain is put together in
// [New]: cluster names, then cache, then forward.
//
// CoreDNS' own kubernetes plugin is not used. It keeps informers of its own, a second copy of
// every Service and EndpointSlice beside the one that the service proxy needs, and it imports CoreDNS'
// command line, flags included. What it adds to CoreDNS' backend logic is the Kubernetes DNS specification
// (schema 1.1.0), which backend.go states over the shared [source.Source].
//
// The server listens on the cluster's DNS address, which every node carries on its loopback device. So
// pods and the node itself reach the node's own server, and the service proxy leaves the address
// alone.
package dns
