package node

import (
	"cmp"
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
	"barque.dev/internal/run"
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

// lookForArrivals is how often a server looks who else serves.
const lookForArrivals = 5 * time.Second

// followArrivals tells the API server when another one has come, or come back.
func (s *Server) followArrivals(ctx context.Context) error {
	known := map[string]time.Time{s.cfg.NodeName: {}}
	for first := true; ; first = false {
		if leases, err := s.identityLeases(ctx); err == nil && arrivals(known, leases) && !first {
			s.api.Grew()
		}
		if !run.Pause(ctx, lookForArrivals) {
			return nil
		}
	}
}

// arrivals tells whether others hold leases that they did not, and notes since when they do.
func arrivals(known map[string]time.Time, leases []coordinationv1.Lease) bool {
	some := false
	for i := range leases {
		spec := &leases[i].Spec
		if spec.HolderIdentity == nil || spec.AcquireTime == nil {
			continue
		}
		since, ok := known[*spec.HolderIdentity]
		if ok && since.IsZero() { // this server itself
			continue
		}
		known[*spec.HolderIdentity] = spec.AcquireTime.Time
		some = some || !ok || !since.Equal(spec.AcquireTime.Time)
	}
	return some
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

// entrance is where clients find whichever server is well: by the name that they are told, or the virtual IP; "" if there is neither.
func (s *Server) entrance() string {
	switch {
	case s.cfg.APIName != "":
		name, port := splitName(s.cfg.APIName)
		return "https://" + net.JoinHostPort(name, cmp.Or(port, strconv.Itoa(s.cfg.HTTPSPort)))
	case s.cfg.VIP.IsValid():
		return "https://" + net.JoinHostPort(s.cfg.VIP.String(), strconv.Itoa(s.cfg.HTTPSPort))
	}
	return ""
}

// splitName takes the port off a name or an address, if it has one.
func splitName(name string) (host, port string) {
	if host, port, err := net.SplitHostPort(name); err == nil {
		return host, port
	}
	return strings.Trim(name, "[]"), ""
}

// tlsNames are the names and addresses that only the user knows of.
func (s *Server) tlsNames() []string {
	if s.cfg.APIName == "" {
		return s.cfg.TLSNames
	}
	name, _ := splitName(s.cfg.APIName)
	return append([]string{name}, s.cfg.TLSNames...)
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
