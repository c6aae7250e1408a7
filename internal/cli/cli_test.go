package cli

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

// barque runs one command line in this process.
func barque(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var stdout, stderr bytes.Buffer
	code = Main(ctx, args, Streams{In: strings.NewReader(""), Out: &stdout, Err: &stderr})
	return code, stdout.String(), stderr.String()
}

// refused runs a command line that must fail with one line on standard error, the last, that
// says want; logs may stand before it.
func refused(t *testing.T, code int, want string, args ...string) {
	t.Helper()
	got, out, errs := barque(t, args...)
	lines := strings.Split(strings.TrimSpace(errs), "\n")
	last := lines[len(lines)-1]
	if got != code || !strings.HasPrefix(last, "barque: ") || !strings.Contains(last, want) {
		t.Errorf("barque %s: code %d, want %d with %q; got %q %q", strings.Join(args, " "), got, code, want, out, errs)
	}
	for _, noise := range []string{"strconv.", "json:", "ParseAddr", "goroutine", "Usage:"} {
		if strings.Contains(last, noise) {
			t.Errorf("barque %s speaks of %s: %q", strings.Join(args, " "), noise, last)
		}
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

const (
	goodToken = "bq1.463f1391b686f273ba2d02216ed7cf7875f61b4ed54bbf0e7caf73a014a59606.m8flis.c1y9tvxfzxpiqrcy"
	nowhere   = "https://127.0.0.1:1"
)

func TestWrongCommandLines(t *testing.T) {
	dir := t.TempDir()
	for want, args := range map[string][]string{
		`there is no command "sail"`:                     {"sail"},
		"there is no flag --nope":                        {"server", "--nope"},
		`--https-port "x": give a whole number`:          {"server", "--https-port", "x"},
		`--https-port 70000: choose 1 to 65535`:          {"server", "--data-dir", dir, "--https-port", "70000"},
		`--etcd-peer-port 65535: choose 1 to 65534`:      {"server", "--data-dir", dir, "--etcd-peer-port", "65535"},
		`--etcd-client-port -1: choose`:                  {"server", "--data-dir", dir, "--etcd-client-port", "-1"},
		`--vip "x": give an IP address`:                  {"server", "--vip", "x"},
		`--cluster-cidr "x": give a range`:               {"server", "--cluster-cidr", "x"},
		`--node-monitor-grace-period 1s: choose 20s`:     {"server", "--data-dir", dir, "--node-monitor-grace-period", "1s"},
		"choose percentages of which the first":          {"server", "--data-dir", dir, "--image-gc-high-threshold", "80"},
		`--image-gc-low-threshold "x": give a whole`:     {"agent", "--image-gc-low-threshold", "x"},
		`--fence-after "x": give a time`:                 {"agent", "--fence-after", "x"},
		`--vip: give an IP address`:                      {"server", "--vip"},
		"--data-dir is missing":                          {"server"},
		"--remove-dead-after 9m59s: choose 10m":          {"server", "--data-dir", dir, "--remove-dead-after", "9m59s"},
		"--replace-dead-after 59s: choose 1m":            {"server", "--data-dir", dir, "--replace-dead-after", "59s"},
		"--remove-dead-after 1ms: choose 1s":             {"server", "--data-dir", dir, "--remove-dead-after", "1ms", "--hasty-removal"},
		"--certificate-lifetime 1s: choose 30s or more":  {"server", "--data-dir", dir, "--certificate-lifetime", "1s"},
		"--within -1h0m0s: give a positive time":         {"certs", "--within", "-1h"},
		`--output "yaml": choose table or json`:          {"certs", "-o", "yaml"},
		"--data-dir and --kubeconfig":                    {"certs", "--data-dir", dir, "--kubeconfig", "x"},
		"--remove-dead-after 1ms: choose":                {"server", "--data-dir", dir, "--remove-dead-after", "1ms"},
		"barque server remove needs one server's name":   {"server", "remove"},
		"barque server takes no argument":                {"server", "sail"},
		"--timeout -1s: give a positive time":            {"leave", "--timeout", "-1s"},
		"barque leave takes no argument":                 {"leave", "server-1"},
		"--server is missing":                            {"agent", "--data-dir", dir},
		`--server "nowhere": give a URL`:                 {"agent", "--data-dir", dir, "--server", "nowhere"},
		`--join "http://a": give a URL`:                  {"server", "--data-dir", dir, "--join", "http://a"},
		"needs --encryption-provider-config: give":       {"server", "--data-dir", dir, "--encryption-provider-config-automatic-reload"},
		`encryption has no subcommand "sail"`:            {"encryption", "sail"},
		`snapshot has no subcommand "sail"`:              {"snapshot", "sail"},
		"barque snapshot verify needs one snapshot":      {"snapshot", "verify"},
		"barque snapshot restore needs one snapshot":     {"snapshot", "restore", "a", "b"},
		"shall hold the server's data":                   {"snapshot", "restore", "a"},
		"--at \"-1\": give a revision":                   {"snapshot", "restore", "a", "--data-dir", dir, "--at", "-1"},
		"--snapshot-every 1s: choose 1m0s or more":       {"server", "--data-dir", dir, "--disable", "agent", "--snapshot-every", "1s"},
		"--snapshot-keep 0: choose 1 or more":            {"server", "--data-dir", dir, "--disable", "agent", "--snapshot-keep", "0"},
		`--disable "api"`:                                {"server", "--data-dir", dir, "--disable", "api"},
		`--disable "api": agent, scheduler and`:          {"server", "--data-dir", dir, "--disable", "agent,scheduler,controllers,api"},
		`--anonymous-auth "x": give true or false`:       {"server", "--anonymous-auth=x"},
		`--oidc-required-claim "x": give a claim=value`:  {"server", "--oidc-required-claim", "x"},
		`-cache-ttl "x": give a time`:                    {"server", "--authentication-token-webhook-cache-ttl", "x"},
		"--oidc-issuer-url and --oidc-client-id":         {"server", "--data-dir", dir, "--disable", "agent", "--oidc-client-id", "a"},
		`--authorization-mode "Rbac": choose of`:         {"server", "--data-dir", dir, "--disable", "agent", "--authorization-mode", "Rbac"},
		`has no subcommand "turn"`:                       {"service-account-key", "turn"},
		`"Sail": choose among LimitRanger, Service`:      {"server", "--data-dir", dir, "--disable-admission-plugins", "ResourceQuota,Sail"},
		`--log-level "loud": choose`:                     {"server", "--data-dir", dir, "--log-level", "loud"},
		`--node-name "A_b"`:                              {"server", "--data-dir", dir, "--node-name", "A_b"},
		"choose an address in --service-cidr":            {"server", "--data-dir", dir, "--cluster-dns", "192.0.2.1"},
		"overlap: choose ranges apart":                   {"server", "--data-dir", dir, "--cluster-cidr", "10.43.0.0/16"},
		"leave --bind-address out":                       {"server", "--data-dir", dir, "--vip", "192.0.2.1", "--bind-address", "127.0.0.1"},
		"barque up takes no argument":                    {"up", "three"},
		`barque image has no subcommand "pull"`:          {"image", "pull"},
		"barque image import needs the file":             {"image", "import"},
		"barque image remove needs the name":             {"image", "remove"},
		`barque token has no subcommand "make"`:          {"token", "make"},
		"barque token delete needs one token's id":       {"token", "delete"},
		`--usage "king": choose server, agent or any`:    {"token", "create", "--usage", "king"},
		"--ttl -1s: give a positive time":                {"token", "create", "--ttl", "-1s"},
		"there is no flag --foo: a key is a long flag's": {"server", "--config", write(t, "foo: 1")},
		"https-port: give a value or a list":             {"server", "--config", write(t, "https-port: {a: b}")},
		"https-port: give one value, not a list":         {"server", "--config", write(t, "https-port: [1, 2]")},
		`--https-port "abc": give a whole number`:        {"server", "--config", write(t, "https-port: abc")},
		"it is no YAML map of long flags":                {"server", "--config", write(t, "- a")},
		"did not find expected":                          {"agent", "--config", write(t, "[1")},
		"can't be read (no such file or directory)":      {"up", "--config", filepath.Join(dir, "none")},
		"there is no flag --config: a key":               {"up", "--config", write(t, "config: x")},
	} {
		refused(t, 2, want, args...)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("a wrong command line left %v behind", entries)
	}
}

func TestConfigFile(t *testing.T) {
	// The values of a file are taken, and the command line wins over them.
	file := write(t, "https-port: 70000\ntls-san: [a, b]\ndisable: agent\ndata-dir: "+t.TempDir()+"\n")
	refused(t, 2, "--https-port 70000: choose", "server", "--config", file)
	refused(t, 2, "--https-port 80000: choose", "server", "--config", file, "--https-port", "80000")
}

func TestNoCluster(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	t.Setenv("KUBECONFIG", none)
	refused(t, 1, "there is no cluster in", "status", "--dir", none)
	refused(t, 1, "there is no cluster of `barque up` in", "image", "list", "--dir", none)
	refused(t, 1, "there is no archive", "image", "import", none)
	refused(t, 1, "start one with `barque up`", "status", "--kubeconfig", none)
	refused(t, 1, "start one with `barque up`", "token", "list")
	refused(t, 1, "start one with `barque up`", "token", "create")
	refused(t, 1, "start one with `barque up`", "kubeconfig")
	refused(t, 1, "can't be read", "kubeconfig", "--merge", "--kubeconfig", none)
	refused(t, 1, "start one with `barque up`", "kubectl", "get", "pods")
	refused(t, 1, "is for `barque up`", "machine", "server")
}

// A directory of somebody else's is neither mixed with a cluster nor removed.
func TestForeignDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, 1, "such as precious: choose another --dir", "up", "--dir", dir)
	refused(t, 1, "such as precious: choose another --dir", "down", "--dir", dir)
	refused(t, 1, "holds precious, which is not of barque", controlPlane(t, dir)...)
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("the directory was changed: %v", entries)
	}
}

func TestBrokenClusterState(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{"a: [b", "unknown: 1", "id: abcdef\n"} {
		if err := os.WriteFile(filepath.Join(dir, "cluster.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, 1, "cluster.yaml is damaged", "up", "--dir", dir)
		refused(t, 1, "remove the cluster with `barque down", "status", "--dir", dir)
	}
	if code, out, errs := barque(t, "down", "--dir", dir); code != 0 || exists(dir) {
		t.Errorf("it can't be removed: %s %s", out, errs)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// controlPlane is a server on free ports of the loopback address.
func controlPlane(t *testing.T, dir string, more ...string) []string {
	t.Helper()
	return append([]string{"server", "--data-dir", dir, "--disable", "agent", "--bind-address", "127.0.0.1", "--log-level", "error",
		"--https-port", strconv.Itoa(freePort(t)), "--etcd-peer-port", strconv.Itoa(freePort(t))}, more...)
}

// A start that fails leaves nothing behind, not even a parent of the data directory.
func TestFailedStartLeavesNothing(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	p, before := strconv.Itoa(port), strconv.Itoa(port-1)
	top := t.TempDir()
	dir := filepath.Join(top, "a", "b")
	refused(t, 1, "for the API, is taken", controlPlane(t, dir, "--https-port", p)...)
	refused(t, 1, "for etcd's peers, is taken", controlPlane(t, dir, "--etcd-peer-port", p)...)
	refused(t, 1, "for the failure detector, is taken", controlPlane(t, dir, "--etcd-peer-port", before)...)
	refused(t, 1, "for etcd's clients, is taken", controlPlane(t, dir, "--etcd-client-port", p)...)
	refused(t, 1, "is not an address of this machine", controlPlane(t, dir, "--bind-address", "192.0.2.77")...)
	refused(t, 1, "--join needs --token", controlPlane(t, dir, "--join", nowhere)...)
	refused(t, 1, "the token is damaged", controlPlane(t, dir, "--join", nowhere, "--token", "x")...)
	refused(t, 1, "the server cannot be reached", controlPlane(t, dir, "--join", nowhere, "--token", goodToken)...)
	refused(t, 1, "no etcd answers at --etcd-endpoints "+"http://127.0.0.1:1", controlPlane(t, dir, "--etcd-endpoints", "http://127.0.0.1:1")...)
	refused(t, 1, "can't be made", controlPlane(t, "/proc/none/dir")...)
	refused(t, 1, "--token is missing", "agent", "--data-dir", dir, "--server", nowhere, "--node-ip", "127.0.0.1")
	refused(t, 1, "the server cannot be reached", "agent", "--data-dir", dir, "--server", nowhere, "--token", goodToken, "--node-ip", "127.0.0.1")
	if entries, _ := os.ReadDir(top); len(entries) != 0 {
		t.Errorf("a start that failed left %v behind", entries)
	}
}

// A server keeps its directory to itself, and what it is.
func TestDataDirInUse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "server")
	args := controlPlane(t, dir)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan int, 1)
	var errs bytes.Buffer
	go func() { ended <- Main(ctx, args, Streams{In: strings.NewReader(""), Out: &bytes.Buffer{}, Err: &errs}) }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !exists(filepath.Join(dir, "joined")) {
		select {
		case code := <-ended:
			t.Fatalf("the server ended with %d: %s", code, &errs)
		case <-tick.C:
		}
	}
	refused(t, 1, "another barque runs with the data directory", controlPlane(t, dir)...)
	stop()
	if code := <-ended; code != 0 {
		t.Errorf("it ended with %d when it was told to: %s", code, &errs)
	}
	refused(t, 1, "holds the data of another cluster than the token is for", controlPlane(t, dir, "--token", goodToken)...)
	refused(t, 1, "is the data directory of a barque server", "agent", "--data-dir", dir, "--server", nowhere, "--node-ip", "127.0.0.1")
	if !exists(filepath.Join(dir, "etcd")) {
		t.Error("a refused start removed data")
	}
}

func TestKubeconfigMerge(t *testing.T) {
	config := func(server string) string {
		return "apiVersion: v1\nkind: Config\ncurrent-context: x\nclusters:\n- {name: x, cluster: {server: \"" + server + "\"}}\n" +
			"contexts:\n- {name: x, context: {cluster: x, user: x}}\nusers:\n- {name: x, user: {token: t}}\n"
	}
	mine := filepath.Join(t.TempDir(), "dir", "config")
	t.Setenv("KUBECONFIG", mine)
	for _, step := range []struct{ name, server string }{{"one", "https://192.0.2.1:6443"}, {"two", "https://192.0.2.2:6443"}, {"one", "https://192.0.2.3:6443"}} {
		code, _, errs := barque(t, "kubeconfig", "--merge", "--name", step.name, "--kubeconfig", write(t, config(step.server)))
		if code != 0 {
			t.Fatal(errs)
		}
	}
	got, err := clientcmd.LoadFromFile(mine)
	if err != nil {
		t.Fatal(err)
	}
	if got.CurrentContext != "one" || len(got.Clusters) != 2 || got.Clusters["one"].Server != "https://192.0.2.3:6443" || got.Clusters["two"].Server != "https://192.0.2.2:6443" {
		t.Errorf("merged into %+v", got)
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, args := range [][]string{{"help"}, {"up", "--help"}, {"server", "--help"}, {"agent", "--help"}, {"token", "create", "--help"}, {"image", "import", "--help"}, {"kubeconfig", "--help"}} {
		if code, out, errs := barque(t, args...); code != 0 || !strings.Contains(out, "Examples:") || errs != "" {
			t.Errorf("barque %s: %d %q %q", strings.Join(args, " "), code, out, errs)
		}
	}
	if code, out, _ := barque(t, "version"); code != 0 || !strings.Contains(out, "Kubernetes API v1.37") {
		t.Errorf("version: %d %q", code, out)
	}
}
