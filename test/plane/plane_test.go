package plane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

func TestPrograms(t *testing.T) {
	var p Programs
	dir := t.TempDir()
	for _, name := range []string{"one", "two"} {
		if err := p.Launch(Program{Name: name, Path: "/bin/sleep", Args: []string{"1000"}, Dir: dir}); err != nil {
			t.Fatal(err)
		}
	}
	if len(p.PIDs()) != 2 {
		t.Errorf("processes %v", p.PIDs())
	}
	p.Kill(func(c *Process) bool { return c.Name == "one" })
	if len(p.Running) != 1 || p.Running[0].Name != "two" {
		t.Errorf("%v run", p.Running)
	}
	if err := p.Stop(); err != nil || len(p.Running) != 0 {
		t.Errorf("stop: %v, %v run", err, p.Running)
	}
	if err := p.Launch(Program{Name: "none", Path: dir + "/none", Dir: dir}); err == nil {
		t.Error("a program that is not there runs")
	}
}

// Nobody waits for what has ended.
func TestPollEndsWithTheProgram(t *testing.T) {
	var p Programs
	if err := p.Launch(Program{Name: "brief", Path: "/bin/sh", Args: []string{"-c", "echo last words; exit 1"}, Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	err := p.Poll(t.Context(), "never", func(context.Context) error { return errors.New("not yet") })
	if err == nil || !strings.Contains(err.Error(), "brief ended") || !strings.Contains(err.Error(), "last words") {
		t.Errorf("poll: %v", err)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if err := p.Poll(t.Context(), "at once", func(context.Context) error { return nil }); err != nil {
		t.Error(err)
	}
}

// What the authority signed is a server and an administrator to who trusts it.
func TestPKI(t *testing.T) {
	files, err := WritePKI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(files.Path("server.crt"), files.Path("server.key"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(files.Path("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS.PeerCertificates[0].Subject.CommonName != "admin" {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	server.StartTLS()
	defer server.Close()
	config, err := ClientTLS(files.CA, files.AdminCert, files.AdminKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := new(Programs).AwaitReady(t.Context(), server.URL, config); err != nil {
		t.Error(err)
	}
	if _, err := ClientTLS([]byte("x"), files.AdminCert, files.AdminKey); err == nil {
		t.Error("an authority that is no PEM is trusted")
	}
}

func TestMember(t *testing.T) {
	m, err := NewMember(1)
	if err != nil {
		t.Fatal(err)
	}
	files := &PKI{dir: "/pki"}
	flags := strings.Join(m.EtcdFlags("/data", files, []Member{m}), " ")
	for _, want := range []string{"--name=etcd-2 ", "--data-dir=/data/etcd-2 ", "--initial-cluster=etcd-2=https://127.0.0.1:" + m.Peer + " "} {
		if !strings.Contains(flags, want) {
			t.Errorf("etcd's flags lack %q: %s", want, flags)
		}
	}
	if flags := strings.Join(m.APIFlags("/data", files, "/ca"), " "); !strings.Contains(flags, "--client-ca-file=/ca ") || !strings.Contains(flags, "--secure-port="+m.API+" ") || !strings.HasSuffix(m.URL(), m.API) {
		t.Errorf("the API server's flags: %s", flags)
	}
}
