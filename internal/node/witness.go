package node

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"barque.dev/internal/agent/live"
	"barque.dev/internal/cluster/detect"
	"barque.dev/internal/cluster/liveness"
	"barque.dev/internal/cluster/membership"
	"barque.dev/internal/reconnect"
	"barque.dev/internal/run"
	"barque.dev/internal/store/etcd"
)

// A witness is a vote and nothing else: it lets two servers agree when one of them is lost. It votes twice over. In etcd it is a
// member like the servers', with all that is in the log, that never leads for long. And it hears the beats of the nodes
// as servers do, and tells servers what it heard: whether most hear a node, and so whether its pods may run elsewhere, is
// decided among servers and witnesses together.

// witnessServices is what a witness runs, in the order in which it is started.
func (s *Server) witnessServices() []run.Service {
	services := []run.Service{
		run.Func("memory", releaseMemory),
		run.Func("etcd", s.member.Run),
		run.Func("stepping aside", func(ctx context.Context) error { return membership.StepAside(ctx, s.member, s.cfg.Log) }),
		run.Func("failure detector", s.detector.Run),
		run.Func("departure", s.depart),
		{Name: "hearing", Run: s.hear},
		{Name: "member mark", Run: s.markWitness},
	}
	return services
}

// openVote starts the member, and makes what a witness answers with.
func (s *Server) openVote(ctx context.Context) (err error) {
	// By this it comes back should it lose its data, and its name is known from it.
	if _, err = s.serverCertificate(); err != nil {
		return err
	}
	if s.member, err = s.startMember(ctx); err != nil {
		return err
	}
	s.opened.Store(true)
	s.membership = membership.New(membership.Config{Member: s.member, Log: s.cfg.Log})
	if s.detector, err = s.newDetector(); err != nil {
		return err
	}
	s.tracker = liveness.NewTracker(liveness.Config{
		Peers: func() []liveness.Peer { return nil }, Log: s.cfg.Log,
		MayBeat: s.isNode,
		MayAsk:  func(r *http.Request) bool { return s.returning(r) != "" },
	})
	return nil
}

func (s *Server) newDetector() (*detect.Detector, error) {
	listen := net.JoinHostPort(s.cfg.BindAddress.String(), strconv.Itoa(s.cfg.EtcdPeerPort+1))
	d, err := detect.New(detect.Config{Member: s.member, Listen: listen, Log: s.cfg.Log})
	if err != nil {
		return nil, fmt.Errorf("watch for failures: %w", err)
	}
	return d, nil
}

// witnessEnd is how long answers that are under way may take when a witness stops.
const witnessEnd = time.Second

// hear answers nodes, servers, and whoever asks whether the witness is well.
func (s *Server) hear(ctx context.Context, ready func()) error {
	serving, err := s.keeper("apiserver", s.pki.Cluster, s.servingRequest())
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(livePath, s.tracker.Handler())
	mux.Handle(membership.PathReached, s.serversControl().Reached())
	mux.HandleFunc("GET /readyz", s.serveVotes)
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS12, GetCertificate: serving.GetCertificate, ClientCAs: s.pki.Cluster.Pool(), ClientAuth: tls.RequestClientCert,
		},
	}
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(s.listener, "", "") }()
	ready()
	select {
	case err := <-served:
		return fmt.Errorf("answer nodes and servers: %w", err)
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), witnessEnd)
	defer cancel()
	if server.Shutdown(end) != nil {
		_ = server.Close()
	}
	<-served
	return nil
}

// serveVotes tells whether the witness has somebody to vote for.
func (s *Server) serveVotes(w http.ResponseWriter, _ *http.Request) {
	if err := s.healthy(); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ok")
}

// healthy tells whether the cluster has a quorum, as far as this machine knows.
func (s *Server) healthy() error {
	switch {
	case s.store != nil:
		return s.store.Healthy()
	case !s.member.HasLeader():
		return errors.New("there is no leader")
	}
	return nil
}

// markWitness notes that the witness belongs to the cluster, once the cluster knows of it.
func (s *Server) markWitness(ctx context.Context, ready func()) error {
	select {
	case <-s.member.Ready():
	case <-ctx.Done():
		return nil
	}
	if err := s.keepFacts(s.facts()); err != nil {
		return err
	}
	if err := s.home.markMember(s.pki.Cluster.Hash()); err != nil {
		return err
	}
	ready()
	for run.Pause(ctx, factsPeriod) {
		if err := s.keepFacts(s.facts()); err != nil {
			s.cfg.Log.Warn("what is known of the cluster was not written down", "error", err)
		}
	}
	return nil
}

// besideEtcd are the URLs at which the members' APIs are, as far as can be told from where their etcd is.
func besideEtcd(members []etcd.MemberInfo, port int) (urls []string) {
	for _, mb := range members {
		for _, peer := range mb.PeerURLs {
			if u, err := url.Parse(peer); err == nil && mb.Witness == "" {
				urls = append(urls, "https://"+net.JoinHostPort(u.Hostname(), strconv.Itoa(port)))
			}
		}
	}
	return urls
}

// witnesses lists the cluster's.
func (s *Server) witnesses() []liveness.Peer {
	if s.membership == nil {
		return nil
	}
	var list []liveness.Peer
	for _, mb := range s.membership.List() {
		if mb.Witness != "" {
			list = append(list, liveness.Peer{Name: mb.Name, URL: mb.Witness})
		}
	}
	return list
}

// jury is who hears the nodes, beside this server.
func (s *Server) jury() []liveness.Peer { return append(s.peers(), s.witnesses()...) }

// witnessesPath is where servers tell nodes the witnesses' URLs, in JSON.
const witnessesPath = "/barque/v1/witnesses"

func (s *Server) serveWitnesses(w http.ResponseWriter, r *http.Request) {
	if s.caller(r) == nil {
		http.Error(w, "only machines of the cluster may ask", http.StatusForbidden)
		return
	}
	urls := []string{}
	for _, p := range s.witnesses() {
		urls = append(urls, p.URL)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(urls)
}

// witnessPeriod is how often a node asks who the witnesses are.
const witnessPeriod = 5 * time.Second

// followWitnesses learns who the witnesses are. They stay known while no server answers.
func (w *worker) followWitnesses(ctx context.Context) error {
	for {
		if err := w.askWitnesses(ctx); err != nil && ctx.Err() == nil {
			w.cfg.Log.Debug("the witnesses are not known", "error", err)
		}
		if !run.Pause(ctx, witnessPeriod) {
			return nil
		}
	}
}

func (w *worker) askWitnesses(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, witnessPeriod)
	defer cancel()
	data, err := w.client.CoreV1().RESTClient().Get().AbsPath(witnessesPath).DoRaw(ctx)
	if err != nil {
		return fmt.Errorf("ask for the witnesses: %w", err)
	}
	var urls []string
	if err := json.Unmarshal(data, &urls); err != nil {
		return fmt.Errorf("ask for the witnesses: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.witnesses = urls
	return nil
}

// liveServers are the servers and witnesses to hold live connections to, each by a client of its own.
func (w *worker) liveServers() []live.Server {
	w.mu.Lock()
	defer w.mu.Unlock()
	var urls []string
	for _, s := range w.balancer.Status() {
		urls = append(urls, "https://"+s.Address)
	}
	for _, url := range w.witnesses {
		if !slices.Contains(urls, url) {
			urls = append(urls, url)
		}
	}
	servers := make([]live.Server, 0, len(urls))
	for _, url := range urls {
		if _, ok := w.live[url]; !ok {
			w.live[url] = live.Server{URL: url, Client: &http.Client{Transport: reconnect.New(&http.Transport{
				TLSClientConfig: w.cfg.certs.ClientTLS(), ForceAttemptHTTP2: true, TLSHandshakeTimeout: 2 * time.Second, IdleConnTimeout: time.Minute,
			})}}
		}
		servers = append(servers, w.live[url])
	}
	return servers
}

// checkWitness refuses what a witness can't do.
func (c *ServerConfig) checkWitness() error {
	switch {
	case !c.Witness:
		return nil
	case len(c.EtcdEndpoints) > 0:
		return errors.New("--witness with --etcd-endpoints: leave one of them out, since a witness is a member of the embedded etcd")
	case c.EtcdClientPort != 0:
		return errors.New("--witness with --etcd-client-port: leave the port out, since a witness serves no clients")
	}
	c.DisableAgent, c.DisableScheduler, c.DisableControllers = true, true, true
	return nil
}

// role is what the data directory says of the machine.
func (c *ServerConfig) role() string {
	if c.Witness {
		return "witness"
	}
	return "server"
}
