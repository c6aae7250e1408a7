package join

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Paths of the protocol. All but PathCA want the token as a bearer token.
const (
	// PathPrefix is where Handler is mounted.
	PathPrefix = "/barque/v1/join/"
	// PathCA answers with the cluster's CA in PEM, to anybody.
	PathCA = PathPrefix + "ca"
	// PathServer takes a ServerRequest and answers with a ServerResponse.
	PathServer = PathPrefix + "server"
	// PathAgent answers with Facts.
	PathAgent = PathPrefix + "agent"
)

// Facts are what every machine of the cluster must agree on.
type Facts struct {
	// CAHash identifies the cluster.
	CAHash string `json:"caHash"`
	// ClusterCIDRs are where pods have addresses, ServiceCIDRs where services have.
	ClusterCIDRs  []string `json:"clusterCIDRs"`
	ServiceCIDRs  []string `json:"serviceCIDRs"`
	ClusterDNS    []string `json:"clusterDNS"`
	ClusterDomain string   `json:"clusterDomain"`
	// NodePorts is the range of node ports, as "30000-32767".
	NodePorts string `json:"nodePorts,omitempty"`
	// Servers are the API servers' URLs.
	Servers []string `json:"servers"`
	// VirtualIP is the address that follows a healthy server; may be empty.
	VirtualIP string `json:"virtualIP,omitempty"`
	// APIName is what a load balancer, or a DNS name of all servers, is called, maybe with a port; may be empty.
	APIName string `json:"apiName,omitempty"`
	// Version is the answering server's.
	Version string `json:"version"`
}

// A Member is a member of etcd.
type Member struct {
	ID      uint64 `json:"id,omitempty"`
	Name    string `json:"name"`
	PeerURL string `json:"peerURL"`
}

// ServerRequest is what a joining server tells of itself.
type ServerRequest struct {
	// Name is its node and member name, PeerURL where its etcd listens to others. Both empty
	// asks for the keys only, when etcd runs elsewhere.
	Name    string `json:"name,omitempty"`
	PeerURL string `json:"peerURL,omitempty"`
	Version string `json:"version"`
	// Reads are the newer things in etcd that it can read: ReadsEncryption.
	Reads []string `json:"reads,omitempty"`
}

// ReadsEncryption: the server reads what is encrypted with the cluster's own keys.
const ReadsEncryption = "encryption/1"

// ServerResponse is what makes a machine a server.
type ServerResponse struct {
	Facts Facts `json:"facts"`
	// Keys are the cluster's keys, a pki.Bundle in JSON.
	Keys json.RawMessage `json:"keys"`
	// Members are etcd's members, the new one among them.
	Members []Member `json:"members,omitempty"`
}

// A Code tells refusals apart.
type Code string

// The codes of refusals.
const (
	CodeUnknownToken Code = "UnknownToken"
	CodeExpiredToken Code = "ExpiredToken"
	CodeWrongUsage   Code = "WrongUsage"
	CodeTooMany      Code = "TooManyRequests"
	CodeTryAgain     Code = "TryAgain"
	CodeBadRequest   Code = "BadRequest"
	CodeConflict     Code = "Conflict"
	CodeInternal     Code = "Internal"
)

// A Refusal is a server's answer when it does not let a machine in: a sentence that says what
// to do.
type Refusal struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

// Error implements error.
func (r *Refusal) Error() string { return r.Message }

// Refused tells whether err is a refusal with the code.
func Refused(err error, code Code) bool {
	var r *Refusal
	return errors.As(err, &r) && r.Code == code
}

// ErrTryAgain is wrapped by a callback's error that will pass by itself, such as a cluster
// that has no quorum now or that takes in another member. The joining side tries again.
var ErrTryAgain = errors.New("try again")

// ErrConflict is wrapped by a callback's error that the joining side must resolve, such as a
// name that another live member has.
var ErrConflict = errors.New("conflict")

// refusalOf turns a callback's error into an answer.
func refusalOf(err error) *Refusal {
	code := CodeInternal
	switch {
	case errors.Is(err, ErrTryAgain):
		code = CodeTryAgain
	case errors.Is(err, ErrConflict):
		code = CodeConflict
	}
	return &Refusal{Code: code, Message: fmt.Sprintf("the server could not add this machine: %v", err)}
}
