package node

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/cluster/join"
	"barque.dev/internal/cluster/leadership"
	"barque.dev/internal/cluster/membership"
	"barque.dev/internal/pki"
	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
)

const joinPath = join.PathPrefix

// enter finds out which cluster this server is of: the one it was of before, the one it is told
// to join, or a new one. It gets the cluster's keys and, when it joins, is made a learner.
func (s *Server) enter(ctx context.Context) error {
	known, err := s.home.member()
	if err != nil {
		return err
	}
	dir := s.home.path("pki")
	switch {
	case known != "":
		if err := s.checkSame(known); err != nil {
			return err
		}
		if err := s.recallFacts(); err != nil {
			return err
		}
		if s.pki, err = pki.Open(dir); err == nil && s.lacksData() {
			return s.comeBack(ctx)
		}
	case s.cfg.Join != "":
		return s.join(ctx, dir)
	case s.cfg.Witness:
		return errors.New("a witness votes for others, and can't found a cluster: give it --join and --token")
	default:
		s.pki, err = pki.OpenOrCreate(dir)
	}
	if err != nil {
		return fmt.Errorf("the cluster's keys in %s: %w", dir, err)
	}
	return nil
}

// checkSame refuses a token of another cluster than the one whose data is here.
func (s *Server) checkSame(known string) error {
	if s.cfg.Token == "" {
		return nil
	}
	token, err := join.ParseToken(s.cfg.Token)
	if err != nil {
		return fmt.Errorf("--token: %w", err)
	}
	if token.CAHash != "" && token.CAHash != known {
		return fmt.Errorf("%s holds the data of another cluster than the token is for: choose another --data-dir, or remove this one", s.home.dir)
	}
	return nil
}

func (s *Server) peerURL() string {
	return "https://" + netip.AddrPortFrom(s.cfg.AdvertiseAddress, uint16(s.cfg.EtcdPeerPort)).String()
}

func (s *Server) join(ctx context.Context, dir string) error {
	if s.cfg.Token == "" {
		return errors.New("--join needs --token: make one with `barque token create` on a server of the cluster")
	}
	token, err := join.ParseToken(s.cfg.Token)
	if err != nil {
		return fmt.Errorf("--token: %w", err)
	}
	request := join.ServerRequest{Name: s.cfg.NodeName, PeerURL: s.peerURL(), Version: apiserver.KubernetesVersion, Reads: []string{join.ReadsEncryption}}
	if len(s.cfg.EtcdEndpoints) > 0 {
		request.Name, request.PeerURL = "", ""
	}
	joined, err := join.Server(ctx, join.Options{URL: s.cfg.Join, Token: token}, request)
	if err != nil {
		return fmt.Errorf("join %s: %w", s.cfg.Join, err)
	}
	s.home.keep()
	if err := s.takeFacts(joined.Facts); err != nil {
		return err
	}
	var bundle pki.Bundle
	if err := json.Unmarshal(joined.Keys, &bundle); err != nil {
		return fmt.Errorf("join %s: the keys it sent: %w", s.cfg.Join, err)
	}
	if s.pki, err = pki.Open(dir); err == nil && s.pki.Cluster.Hash() != joined.Facts.CAHash {
		return fmt.Errorf("%s holds the keys of another cluster: choose another --data-dir, or remove this one", dir)
	} else if errors.Is(err, pki.ErrNotFound) {
		s.pki, err = pki.Import(dir, bundle)
	}
	if err != nil {
		return fmt.Errorf("the cluster's keys in %s: %w", dir, err)
	}
	return s.keepMembers(joined.Members)
}

// keepMembers writes down whom this server joins: a crash before etcd has started would otherwise forget it.
func (s *Server) keepMembers(list []join.Member) error {
	members, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return os.WriteFile(s.home.path("members.json"), members, 0o600)
}

// maxKnown bounds how many servers' URLs are remembered.
const maxKnown = 16

// expect writes down where the API of a server that joins will be, as far as can be told from where its etcd is: should this one
// lose its data before it has heard of the other, it finds its way back by that.
func (s *Server) expect(peerURL string, f join.Facts) error {
	u, err := url.Parse(peerURL)
	if err != nil {
		return fmt.Errorf("peer URL: %w", err)
	}
	s.factsMu.Lock()
	defer s.factsMu.Unlock()
	api := "https://" + net.JoinHostPort(u.Hostname(), strconv.Itoa(s.cfg.HTTPSPort))
	if slices.Contains(s.others, api) {
		return nil
	}
	s.others = append([]string{api}, s.others...)
	return s.writeFacts(f)
}

// keepFacts writes down what all servers must agree on, for the next start.
func (s *Server) keepFacts(f join.Facts) error {
	s.factsMu.Lock()
	defer s.factsMu.Unlock()
	return s.writeFacts(f)
}

// writeFacts is keepFacts under its lock.
func (s *Server) writeFacts(f join.Facts) error {
	// Servers that stopped are known too: this one may be the last to stop, and the first to come back.
	for _, url := range s.others {
		if len(f.Servers) < maxKnown && !slices.Contains(f.Servers, url) {
			f.Servers = append(f.Servers, url)
		}
	}
	s.others = f.Servers
	data, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(s.home.path("facts.json")); err == nil && bytes.Equal(old, data) {
		return nil
	}
	return pki.WriteFile(s.home.path("facts.json"), data, 0o600)
}

// recallFacts takes what was written down at an earlier start.
func (s *Server) recallFacts() error {
	data, err := os.ReadFile(s.home.path("facts.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var f join.Facts
	if err == nil {
		err = json.Unmarshal(data, &f)
	}
	if err != nil {
		return fmt.Errorf("read what is known of the cluster: %w", err)
	}
	return s.takeFacts(f)
}

// takeFacts makes what all servers must agree on the cluster's, whatever the flags say.
func (s *Server) takeFacts(f join.Facts) error {
	s.others = f.Servers
	parse := func(list []string, what string, into *netip.Prefix) error {
		if len(list) == 0 {
			return fmt.Errorf("what is known of the cluster names no %s", what)
		}
		p, err := netip.ParsePrefix(list[0])
		if err != nil {
			return fmt.Errorf("what is known of the cluster: its %s: %w", what, err)
		}
		*into = p
		return nil
	}
	if err := errors.Join(parse(f.ClusterCIDRs, "cluster CIDR", &s.cfg.ClusterCIDR), parse(f.ServiceCIDRs, "service CIDR", &s.cfg.ServiceCIDR)); err != nil {
		return err
	}
	if len(f.ClusterDNS) > 0 {
		dns, err := netip.ParseAddr(f.ClusterDNS[0])
		if err != nil {
			return fmt.Errorf("what is known of the cluster: its DNS address: %w", err)
		}
		s.cfg.ClusterDNS = dns
	}
	if f.ClusterDomain != "" {
		s.cfg.ClusterDomain = f.ClusterDomain
	}
	if vip, err := netip.ParseAddr(f.VirtualIP); err == nil && !s.cfg.VIP.IsValid() {
		s.cfg.VIP = vip
	}
	s.cfg.APIName = cmp.Or(s.cfg.APIName, f.APIName)
	return nil
}

// openEtcd starts the embedded member, or connects to the user's etcd.
func (s *Server) openEtcd(ctx context.Context) (store.Backend, error) {
	var err error
	if len(s.cfg.EtcdEndpoints) > 0 {
		s.remote, err = etcd.Dial(ctx, etcd.RemoteConfig{
			Endpoints: s.cfg.EtcdEndpoints, TLS: etcd.TLSFiles{Cert: s.cfg.EtcdCert, Key: s.cfg.EtcdKey, CA: s.cfg.EtcdCA}, Log: s.cfg.Log,
		})
		if err != nil {
			return nil, fmt.Errorf("no etcd answers at --etcd-endpoints %s: start it, or correct the URLs and the --etcd-…file flags (%w)",
				strings.Join(s.cfg.EtcdEndpoints, ","), err)
		}
		s.leadership, err = leadership.New(leadership.Config{Name: s.cfg.NodeName, Remote: s.remote, Publish: s.publish, Log: s.cfg.Log})
		return s.remote, err
	}
	if s.member, err = s.startMember(ctx); err != nil {
		return nil, err
	}
	s.membership = membership.New(membership.Config{Member: s.member, Log: s.cfg.Log})
	if s.detector, err = s.newDetector(); err != nil {
		return nil, err
	}
	s.leadership, err = leadership.New(leadership.Config{Name: s.cfg.NodeName, Member: s.member, Publish: s.publish, Log: s.cfg.Log})
	return s.member, err
}

func (s *Server) startMember(ctx context.Context) (*etcd.Member, error) {
	addrs := []netip.Addr{s.cfg.AdvertiseAddress}
	if _, err := s.keeper("etcd-peer", s.pki.Etcd, pki.EtcdPeer(s.cfg.NodeName, addrs)); err != nil {
		return nil, err
	}
	if err := pki.WriteFile(s.home.path("certs", "etcd-peer-ca.crt"), s.pki.Etcd.PEM(), 0o600); err != nil {
		return nil, err
	}
	files := etcd.TLSFiles{Cert: s.home.path("certs", "etcd-peer.crt"), Key: s.home.path("certs", "etcd-peer.key"), CA: s.home.path("certs", "etcd-peer-ca.crt")}
	cfg := etcd.Config{
		Name: s.cfg.NodeName, DataDir: s.home.path("etcd"), Log: s.cfg.Log,
		PeerURL: s.peerURL(), PeerTLS: files, Token: s.pki.Cluster.Hash()[:16],
		ListenPeer: "https://" + netip.AddrPortFrom(s.cfg.BindAddress, uint16(s.cfg.EtcdPeerPort)).String(),
		Fail:       s.fail,
	}
	if s.cfg.Witness {
		cfg.Witness = s.ownURL()
	}
	if s.cfg.EtcdClientPort != 0 {
		cfg.ClientListen = "https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(s.cfg.EtcdClientPort))
		cfg.ClientTLS = files
	}
	if data, err := os.ReadFile(s.home.path("members.json")); err == nil {
		var members []join.Member
		if err := json.Unmarshal(data, &members); err != nil {
			return nil, fmt.Errorf("read the cluster's members: %w", err)
		}
		cfg.Existing = true
		cfg.InitialCluster = map[string]string{}
		for _, m := range members {
			cfg.InitialCluster[m.Name] = m.PeerURL
		}
		cfg.InitialCluster[s.cfg.NodeName] = s.peerURL()
	}
	member, err := etcd.Start(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	return member, nil
}

// joinHandler lets others join through this server.
func (s *Server) joinHandler() (http.Handler, error) {
	cfg := join.HandlerConfig{
		Reader: s.client, CA: s.pki.Cluster.PEM(), Log: s.cfg.Log,
		Keys:  s.keys,
		Facts: func(context.Context) (join.Facts, error) { return s.facts(), nil }, MayJoin: s.mayJoin,
		Returning: s.returning, MayReturn: s.mayReturn,
	}
	if s.membership != nil {
		cfg.AddMember = s.addMember
	}
	return join.NewHandler(cfg)
}

func (s *Server) facts() join.Facts {
	f := join.Facts{
		CAHash:       s.pki.Cluster.Hash(),
		ClusterCIDRs: []string{s.cfg.ClusterCIDR.String()}, ServiceCIDRs: []string{s.cfg.ServiceCIDR.String()},
		ClusterDNS: []string{s.cfg.ClusterDNS.String()}, ClusterDomain: s.cfg.ClusterDomain,
		NodePorts: nodePorts.String(), Version: apiserver.KubernetesVersion,
		Servers: s.serverURLs(), APIName: s.cfg.APIName,
	}
	if s.cfg.VIP.IsValid() {
		f.VirtualIP = s.cfg.VIP.String()
	}
	return f
}

// addMember takes a joining server into etcd.
func (s *Server) addMember(ctx context.Context, req join.ServerRequest) ([]join.Member, error) {
	infos, err := s.membership.AddLearner(ctx, req.Name, req.PeerURL)
	switch {
	case errors.Is(err, membership.ErrNameTaken), errors.Is(err, membership.ErrAddressTaken):
		return nil, fmt.Errorf("%w: %w", join.ErrConflict, err)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", join.ErrTryAgain, err)
	}
	if err := errors.Join(s.welcome(ctx, req.Name), s.expect(req.PeerURL, s.facts())); err != nil {
		return nil, fmt.Errorf("%w: %w", join.ErrTryAgain, err)
	}
	var members []join.Member
	for _, info := range infos {
		for _, url := range info.PeerURLs {
			name := info.Name
			if name == "" && url == req.PeerURL {
				name = req.Name
			}
			members = append(members, join.Member{ID: info.ID, Name: name, PeerURL: url})
		}
	}
	return members, nil
}
