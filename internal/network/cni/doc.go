// Package cni connects pods to the node's network: it is the CNI plugin (spec 1.1) that the container
// runtime calls as the program barque-cni, and what the network service shares with it.
//
// Every pod has an interface eth0 with one /32 address of the node's range and a default route through
// the bridge's address. So all traffic between pods, also of one node, is routed, and passes the
// packet filter like any other: services and policies work without the kernel's bridge
// netfilter. They work with it as well, which other programs on the machine may have switched on
// (net.bridge.bridge-nf-call-iptables): then the kernel bridges a packet that a service sends back to the
// same bridge. That is why ports hairpin, and why they are not isolated from each other.
//
// Addresses are leases: one file per address in a directory of the node's state (see [Store]). The file
// also holds the pod's host ports, which the network service follows there. So a host port lives exactly
// as long as the pod's network, through restarts of everything, and with no API server to ask.
//
// The package is linked into a small program that runs for every pod's start and stop: keep its
// imports few.
package cni
