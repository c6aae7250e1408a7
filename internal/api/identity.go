package api

// ServersGroup is the organization of the client certificates that servers show each other. Whoever has one may
// have the cluster's keys, so no signer that the API knows signs it.
const ServersGroup = "barque:servers"
