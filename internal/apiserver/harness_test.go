package apiserver_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/api"
	apirbac "barque.dev/internal/api/rbac"
	"barque.dev/internal/apiserver"
	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/apiserver/relay"
	"barque.dev/internal/auth"
	"barque.dev/internal/auth/image"
	"barque.dev/internal/auth/rbac"
	"barque.dev/internal/pki"
	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Started by imports, for as long as the process lives.
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"),
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
	)
}

// cluster is a control plane without nodes, on loopback.
type cluster struct {
	url     string
	pki     *pki.Authorities
	store   *store.Store
	reg     *registry.Registry
	metrics *prometheus.Registry
	server  *apiserver.Server
	stop    func()
}

// start starts a control plane; tune may change its server's configuration.
func start(tb testing.TB, tune func(*apiserver.Config)) *cluster {
	tb.Helper()
	return startOn(tb, etcdtest.New(tb, 1, nil).Member(0), tune)
}

// startOn is start on a member of an etcd cluster that may have others.
func startOn(tb testing.TB, member *etcd.Member, tune func(*apiserver.Config)) *cluster {
	tb.Helper()
	return startAs(tb, member, auth.Options{}, tune)
}

// startAs is startOn with what an operator says about access.
func startAs(tb testing.TB, member *etcd.Member, options auth.Options, tune func(*apiserver.Config)) *cluster {
	tb.Helper()
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	c := &cluster{metrics: prometheus.NewRegistry()}
	var err error
	if c.pki, err = pki.New(time.Now()); err != nil {
		tb.Fatal(err)
	}
	if c.store, err = store.Open(tb.Context(), store.Config{Backend: member, CompactEvery: -1}); err != nil {
		tb.Fatal(err)
	}
	background(tb, "store", c.store.Run)

	access, err := auth.New(tb.Context(), auth.Config{
		Image:    image.NewTables(func(gr schema.GroupResource) *store.Table { return c.reg.Table(gr) }, auth.Indexes()...),
		ClientCA: c.pki.Cluster.Pool(), FrontProxyCA: c.pki.FrontProxy.PEM(),
		SigningKey: c.pki.ServiceAccounts.Key, PublicKeys: c.pki.ServiceAccounts.Public,
		Options: options, ServerID: "one", Metrics: c.metrics, Log: log,
	})
	if err != nil {
		tb.Fatal(err)
	}
	background(tb, "access", access.Run)
	virtual := map[string]registry.Handler{}
	for name, create := range access.Virtual() {
		virtual[name] = func(ctx context.Context, r registry.Request, obj runtime.Object) (runtime.Object, error) {
			return create(ctx, r.Namespace, r.Name, obj)
		}
	}
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}
	c.reg, err = registry.New(registry.Config{
		Store: c.store, Authorizer: access.Authorizer, Virtual: virtual, ServiceCIDRs: cidrs,
		NodePortRange: utilnet.PortRange{Base: 30000, Size: 2768}, Log: log,
	})
	if err != nil {
		tb.Fatal(err)
	}
	if err := c.reg.Bootstrap(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	c.serve(tb, access, log, tune)
	return c
}

func (c *cluster) serve(tb testing.TB, access *auth.Auth, log *slog.Logger, tune func(*apiserver.Config)) {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	c.url = fmt.Sprintf("https://127.0.0.1:%d", port)
	cert := issue(tb, c.pki.Cluster, pki.APIServer(pki.ServerNames{}))
	cfg := apiserver.Config{
		Registry: c.reg, Authenticator: access.Authenticator, Audiences: access.Audiences, Authorizer: access.Authorizer,
		Listener: listener, Paths: access.Handlers(), Metrics: c.metrics,
		TLS:      &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: access.ClientCAs(), ClientAuth: tls.RequestClientCert},
		Identity: apiserver.Identity{Name: "one", Address: "127.0.0.1", Port: port},
		Readyz: []healthz.HealthChecker{healthz.NamedCheck("etcd", func(*http.Request) error {
			return c.store.Healthy()
		})},
		Kubelet: relay.Config{},
		Log:     log,
	}
	if tune != nil {
		tune(&cfg)
	}
	if c.server, err = apiserver.New(cfg); err != nil {
		tb.Fatal(err)
	}
	ready := make(chan struct{})
	c.stop = background(tb, "apiserver", func(ctx context.Context) error {
		return c.server.Run(ctx, func() { close(ready) })
	})
	select {
	case <-ready:
	case <-time.After(10 * time.Second):
		tb.Fatal("the server is not ready")
	}
}

// background runs a service until the returned function is called, or the test ends.
func background(tb testing.TB, name string, run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(ctx); err != nil {
			tb.Errorf("%s: %v", name, err)
		}
	}()
	stop = func() { cancel(); <-done }
	tb.Cleanup(stop)
	return stop
}

// tlsConfig is the TLS configuration of a client that is user in groups; without a user, of a stranger.
func (c *cluster) tlsConfig(tb testing.TB, user string, groups ...string) *tls.Config {
	tb.Helper()
	config := &tls.Config{RootCAs: c.pki.Cluster.Pool(), MinVersion: tls.VersionTLS12}
	if user == "" {
		return config
	}
	config.Certificates = []tls.Certificate{issue(tb, c.pki.Cluster, pki.Client(user, groups...))}
	return config
}

// issue makes a key and a certificate by an authority.
func issue(tb testing.TB, authority *pki.Authority, request pki.Request) tls.Certificate {
	tb.Helper()
	pair, err := authority.Issue(request, time.Now())
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := pair.TLS()
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}

// http is an HTTP client that is user in groups.
func (c *cluster) http(tb testing.TB, user string, groups ...string) *http.Client {
	tb.Helper()
	transport := &http.Transport{TLSClientConfig: c.tlsConfig(tb, user, groups...), ForceAttemptHTTP2: true, DisableCompression: true}
	tb.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

func (c *cluster) admin(tb testing.TB) *http.Client {
	return c.http(tb, pki.UserAdmin, pki.GroupMasters)
}

// config is a client-go configuration of user in groups.
func (c *cluster) config(tb testing.TB, user string, groups ...string) *rest.Config {
	tb.Helper()
	pair, err := c.pki.Cluster.Issue(pki.Client(user, groups...), time.Now())
	if err != nil {
		tb.Fatal(err)
	}
	return &rest.Config{Host: c.url, QPS: -1, TLSClientConfig: rest.TLSClientConfig{
		CAData: c.pki.Cluster.PEM(), CertData: pair.Certificate, KeyData: pair.Key,
	}}
}

func (c *cluster) client(tb testing.TB) kubernetes.Interface {
	tb.Helper()
	config := c.config(tb, pki.UserAdmin, pki.GroupMasters)
	config.ContentType = runtime.ContentTypeProtobuf
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		tb.Fatal(err)
	}
	return client
}

// wait waits until the default objects are there.
func (c *cluster) wait(tb testing.TB) {
	tb.Helper()
	client := c.client(tb)
	eventually(tb, "service default/kubernetes", func() error {
		_, err := client.CoreV1().Services("default").Get(tb.Context(), "kubernetes", metav1.GetOptions{})
		return err
	})
}

// bootstrap makes the stock roles and bindings.
func (c *cluster) bootstrap(tb testing.TB) {
	tb.Helper()
	config := c.config(tb, pki.UserAdmin, pki.GroupMasters)
	client, err := ctrlclient.New(config, ctrlclient.Options{Scheme: api.Scheme()})
	if err != nil {
		tb.Fatal(err)
	}
	if err := rbac.Bootstrap(tb.Context(), client, apirbac.Bootstrap(), slog.New(slog.DiscardHandler)); err != nil {
		tb.Fatal(err)
	}
}

func eventually(tb testing.TB, what string, f func() error) {
	tb.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(20 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			tb.Fatalf("%s: %v", what, err)
		case <-ticker.C:
		}
	}
}

// answer is a response that has been read.
type answer struct {
	code   int
	header http.Header
	body   string
}

// do sends a request with headers given as name, value, name, value.
func do(tb testing.TB, client *http.Client, method, url string, body io.Reader, headers ...string) answer {
	tb.Helper()
	a, err := try(tb, client, method, url, body, headers...)
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

// try is do for requests that may get no answer, or not all of it.
func try(tb testing.TB, client *http.Client, method, url string, body io.Reader, headers ...string) (answer, error) {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), method, url, body)
	if err != nil {
		tb.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b)}, err
}
