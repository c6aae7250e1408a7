package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"barque.dev/internal/auth/issuers/issuertest"
	"barque.dev/internal/testkit"
)

// planes are masters without agents, each on a loopback address of its own.
type planes struct {
	dir   string
	hosts []string
	flags []string // of the next one
}

// startPlanes starts a cluster of such masters, all with the same configuration file.
func startPlanes(t *testing.T, count int, config string) *planes {
	t.Helper()
	p := &planes{dir: t.TempDir()}
	file := filepath.Join(p.dir, "server.yaml")
	overwrite(t, file, config)
	p.flags = []string{"--config", file}
	for range count {
		p.add(t)
	}
	return p
}

// add starts one more.
func (p *planes) add(t *testing.T) {
	t.Helper()
	i := len(p.hosts)
	host := fmt.Sprintf("127.0.77.%d", i+1)
	p.hosts = append(p.hosts, host)
	p.start(t, i, p.flags...)
	if i == 0 {
		token, err := exec.Command(program, "token", "create", "--kubeconfig", p.kubeconfig(0), "--usage", "server").Output()
		if err != nil {
			t.Fatalf("create a token: %v", err)
		}
		p.flags = append(p.flags, "--join", "https://"+host+":6443", "--token", strings.TrimSpace(string(token)))
	}
}

func (p *planes) data(i int) string       { return filepath.Join(p.dir, fmt.Sprintf("data-%d", i)) }
func (p *planes) kubeconfig(i int) string { return filepath.Join(p.data(i), "kubeconfig") }
func (p *planes) log(i int) string        { return filepath.Join(p.dir, fmt.Sprintf("plane-%d.log", i)) }

// start starts one master, and returns when it is ready.
func (p *planes) start(t *testing.T, i int, args ...string) {
	t.Helper()
	cmd := exec.Command(program, append([]string{"server", "--disable", "agent", "--data-dir", p.data(i), "--node-name", fmt.Sprintf("plane-%d", i),
		"--bind-address", p.hosts[i], "--advertise-address", p.hosts[i]}, args...)...)
	log, err := os.Create(p.log(i))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Errorf("plane-%d does not end", i)
			_ = cmd.Process.Kill()
		}
		_ = log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("plane-%d:\n%s", i, text[max(0, len(text)-4000):])
		}
	})
	testkit.Eventually(t, 30*time.Second, fmt.Sprintf("plane-%d is ready", i), func() error {
		select {
		case <-ended:
			t.Fatalf("plane-%d ended", i)
		default:
		}
		config, err := clientcmd.BuildConfigFromFlags("", p.kubeconfig(i))
		if err != nil {
			return err
		}
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return err
		}
		return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(t.Context()).Error()
	})
}

// admin is the administrator at one master.
func (p *planes) admin(t *testing.T, i int) kubernetes.Interface {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", p.kubeconfig(i))
	if err != nil {
		t.Fatal(err)
	}
	return clientFor(t, config)
}

// bearing is whom a token names, at one master.
func (p *planes) bearing(t *testing.T, i int, token string) kubernetes.Interface {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", p.kubeconfig(i))
	if err != nil {
		t.Fatal(err)
	}
	return clientFor(t, &rest.Config{Host: config.Host, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: config.CAData}})
}

// overwrite replaces a file at once.
func overwrite(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func authenticationOf(i *issuertest.Issuer, rules string) string {
	return i.Configuration(`  claimMappings:
    username: {expression: "'oidc:' + claims.email"}
    groups: {claim: groups, prefix: "oidc:"}
  claimValidationRules:
  - {expression: "claims.?email_verified.orValue(true) == true", message: "the address is not verified"}
` + rules)
}

// A user of an issuer is the same user at every master; rules refuse at every master, also those
// that come while the masters run; and the key of service account tokens is rotated under load.
func TestUsersOfAnIssuerAtEveryMaster(t *testing.T) {
	issuer := issuertest.Start(t)
	path := filepath.Join(t.TempDir(), "authentication.yaml")
	overwrite(t, path, authenticationOf(issuer, ""))
	p := startPlanes(t, 3, "authentication-config: "+path+"\nauthorization-mode: [Node, RBAC]\n")
	admin := p.admin(t, 0)
	if _, err := admin.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "ops"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "view"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: "oidc:ops"}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	token := func(name string, more map[string]any) string {
		claims := map[string]any{"aud": "barque", "sub": name, "email": name + "@example.com"}
		for k, v := range more {
			claims[k] = v
		}
		return issuer.Token(t, claims)
	}
	list := func(i int, token string) error {
		_, err := p.bearing(t, i, token).CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{})
		return err
	}
	ops := map[string]any{"groups": []string{"ops"}}
	ann, bob := token("ann", ops), token("bob", nil)
	unverified := token("ann", map[string]any{"groups": []string{"ops"}, "email_verified": false})
	for i := range p.hosts {
		// The roles that others are made of are gathered by the leader, and reach each master by and by.
		testkit.Eventually(t, 20*time.Second, fmt.Sprintf("ann reads pods at plane-%d", i), func() error { return list(i, ann) })
		if err := list(i, bob); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `"oidc:bob@example.com"`) {
			t.Errorf("bob at plane-%d: %v", i, err)
		}
		if err := list(i, unverified); !apierrors.IsUnauthorized(err) {
			t.Errorf("an address that is not verified, at plane-%d: %v", i, err)
		}
	}

	overwrite(t, path, authenticationOf(issuer, "  userValidationRules:\n  - {expression: \"user.username != 'oidc:eve@example.com'\", message: \"eve left\"}\n"))
	for i := range p.hosts {
		testkit.Eventually(t, 20*time.Second, fmt.Sprintf("the new rule refuses at plane-%d", i), func() error {
			fresh := token("eve", map[string]any{"groups": []string{"ops"}, "jti": time.Now().String()})
			if err := list(i, fresh); !apierrors.IsUnauthorized(err) {
				return fmt.Errorf("eve got %w", err)
			}
			return nil
		})
		if err := list(i, token("cyd", ops)); err != nil {
			t.Errorf("cyd at plane-%d: %v", i, err)
		}
	}
	p.rotate(t)
}

// rotate rotates the key of service account tokens, as docs/access.md says.
func (p *planes) rotate(t *testing.T) {
	t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "rotation"}}
	if _, err := p.admin(t, 0).CoreV1().ServiceAccounts("default").Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	issue := func(i int) string {
		t.Helper()
		made, err := p.admin(t, i).CoreV1().ServiceAccounts("default").CreateToken(t.Context(), account.Name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return made.Status.Token
	}
	who := func(i int, token string) error {
		_, err := p.bearing(t, i, token).AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		return err
	}
	everywhere := func(what, token string) {
		t.Helper()
		for i := range p.hosts {
			if err := who(i, token); err != nil {
				t.Errorf("%s at plane-%d: %v", what, i, err)
			}
		}
	}
	step := func(name string, files ...string) {
		t.Helper()
		if out, err := exec.Command(program, "service-account-key", name, "--data-dir", p.data(0)).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		for i := 1; i < len(p.hosts); i++ {
			for _, file := range files {
				content, err := os.ReadFile(filepath.Join(p.data(0), "pki", file))
				if err != nil {
					t.Fatal(err)
				}
				overwrite(t, filepath.Join(p.data(i), "pki", file), string(content))
			}
		}
	}
	keys := func(i int) int {
		set, err := p.admin(t, i).Discovery().RESTClient().Get().AbsPath("/openid/v1/jwks").Do(t.Context()).Raw()
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(set, []byte(`"kid"`))
	}
	accepted := func(want int) {
		t.Helper()
		for i := range p.hosts {
			testkit.Eventually(t, 20*time.Second, fmt.Sprintf("plane-%d accepts %d keys", i, want), func() error {
				if got := keys(i); got != want {
					return fmt.Errorf("it accepts %d", got)
				}
				return nil
			})
		}
	}
	old := issue(1)
	step("prepare", "sa.pub", "sa-next.key")
	accepted(2)
	step("switch", "sa.pub", "sa.key")
	var fresh string
	for i := range p.hosts {
		testkit.Eventually(t, 20*time.Second, fmt.Sprintf("plane-%d signs with the new key", i), func() error {
			if fresh = issue(i); keyOf(fresh) == keyOf(old) {
				return fmt.Errorf("it signs with the old one")
			}
			return nil
		})
		everywhere("a token of the new key", fresh)
	}
	everywhere("a token of the old key", old)
	step("retire", "sa.pub")
	accepted(1)
	for i := range p.hosts {
		if err := who(i, old); !apierrors.IsUnauthorized(err) {
			t.Errorf("a token of a retired key at plane-%d: %v", i, err)
		}
	}
	everywhere("a token of the new key, at the end,", fresh)
}

// keyOf is the part of a token that names its key.
func keyOf(token string) string {
	head, _, _ := strings.Cut(token, ".")
	return head
}
