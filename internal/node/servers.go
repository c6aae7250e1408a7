package node

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/cluster/liveness"
)

// leaseMemory is for how long a server counts whose identity Lease ran out: it may just be down.
const leaseMemory = time.Hour

// serverNames names the cluster's servers: etcd's members, or, with an etcd of the user's, those that hold an identity
// Lease, or did.
func (s *Server) serverNames(ctx context.Context) ([]string, error) {
	if s.membership != nil {
		var names []string
		for _, member := range s.membership.List() {
			if member.Name != "" && member.Witness == "" { // it has started
				names = append(names, member.Name)
			}
		}
		return names, nil
	}
	leases, err := s.identityLeases(ctx)
	if err != nil {
		return nil, err
	}
	return holders(leases, time.Now()), nil
}

// holders names who holds a lease, or did not long ago.
func holders(leases []coordinationv1.Lease, now time.Time) []string {
	var names []string
	for i := range leases {
		spec := &leases[i].Spec
		if spec.HolderIdentity != nil && spec.RenewTime != nil && now.Sub(spec.RenewTime.Time) < leaseMemory {
			names = append(names, *spec.HolderIdentity)
		}
	}
	return names
}

// identityLeases are those that servers hold, or held.
func (s *Server) identityLeases(ctx context.Context) ([]coordinationv1.Lease, error) {
	var leases coordinationv1.LeaseList
	err := s.client.List(ctx, &leases, ctrlclient.InNamespace(apiserver.LeaseNamespace),
		ctrlclient.MatchingLabels{apiserver.LeaseLabel: apiserver.LeaseLabelValue})
	if err != nil {
		return nil, fmt.Errorf("list the servers' leases: %w", err)
	}
	return leases.Items, nil
}

// servers lists the servers by their identity leases, those that were cut short included: a
// server that does not answer must count as one that was asked.
func (s *Server) servers() []liveness.Peer {
	if s.client == nil { // a witness knows no leases
		return nil
	}
	leases, err := s.identityLeases(context.Background())
	if err != nil {
		return nil
	}
	var peers []liveness.Peer
	for i := range leases {
		l := &leases[i]
		address := l.Annotations[apiserver.AddressAnnotation]
		if address == "" {
			continue
		}
		peers = append(peers, liveness.Peer{
			Name: strings.TrimPrefix(l.Name, apiserver.LeasePrefix), URL: "https://" + address,
		})
	}
	return peers
}

func (s *Server) peers() []liveness.Peer {
	return slices.DeleteFunc(s.servers(), func(p liveness.Peer) bool { return p.Name == s.cfg.NodeName })
}

// ownURL is where others reach this server's API.
func (s *Server) ownURL() string {
	return "https://" + net.JoinHostPort(s.cfg.AdvertiseAddress.String(), strconv.Itoa(s.cfg.HTTPSPort))
}

// virtualURL is where a server that leads is reached; "" without a virtual IP.
func (s *Server) virtualURL() string {
	if !s.cfg.VIP.IsValid() {
		return ""
	}
	return "https://" + net.JoinHostPort(s.cfg.VIP.String(), strconv.Itoa(s.cfg.HTTPSPort))
}

// identityLease is the Lease, by its name alone, that a server holds while it serves.
func (s *Server) identityLease(name string) *coordinationv1.Lease {
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: apiserver.LeaseNamespace, Name: apiserver.LeasePrefix + name}}
}

func (s *Server) serverURLs() []string {
	if s.cfg.Witness {
		return besideEtcd(s.membership.List(), s.cfg.HTTPSPort)
	}
	urls := []string{s.ownURL()}
	for _, p := range s.peers() {
		urls = append(urls, p.URL)
	}
	return urls
}
