package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/client-go/rest"

	"barque.dev/test/plane"
	"barque.dev/test/proc"
)

// side is one of the two servers.
type side struct {
	plane.Programs
	name    string
	url     string
	address string      // host:port
	admin   *tls.Config // an administrator's
	nobody  *tls.Config // without a client certificate
}

func (s *side) at(url, address string, ca []byte, admin *rest.Config) (err error) {
	s.url, s.address = url, address
	if s.admin, err = plane.ClientTLS(ca, admin.CertData, admin.KeyData); err != nil {
		return err
	}
	s.nobody = s.admin.Clone()
	s.nobody.Certificates = nil
	return nil
}

// startBarque starts one server of ours as an API alone.
func startBarque(ctx context.Context, program, dir string) (*side, *rest.Config, error) {
	s := &side{name: "ours"}
	free, err := proc.Ports(4) // the one after the peers' is the detector's
	if err != nil {
		return s, nil, err
	}
	data := filepath.Join(dir, "barque")
	err = s.Launch(plane.Program{Name: "barque", Path: program, Dir: dir, KeepsState: true, Args: []string{
		"server", "--disable=agent,scheduler,controllers", "--log-level=warn", "--node-name=differential", "--data-dir=" + data,
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--https-port=" + free[0], "--etcd-peer-port=" + free[1],
	}})
	if err != nil {
		return s, nil, err
	}
	admin, err := s.Adopt(ctx, filepath.Join(data, "kubeconfig"))
	if err != nil {
		return s, nil, err
	}
	if err := s.at(admin.Host, "127.0.0.1:"+free[0], admin.CAData, admin); err != nil {
		return s, nil, err
	}
	return s, admin, s.AwaitReady(ctx, s.url, s.admin)
}

// anonymous makes stock answer strangers as we do: where health is asked for, and nowhere else.
const anonymous = `apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous: {enabled: true, conditions: [{path: /healthz}, {path: /livez}, {path: /readyz}]}
`

// startStock starts an etcd and a kube-apiserver. Their administrator is ours, so that both servers note the same user.
func startStock(ctx context.Context, programs, dir string, admin *rest.Config) (*side, error) {
	s := &side{name: "stock"}
	files, err := plane.WritePKI(dir)
	if err != nil {
		return s, err
	}
	clientCA := files.Path("client-ca.crt")
	// The administrator's authority is ours; stock's own etcd has another.
	if err := os.WriteFile(clientCA, admin.CAData, 0o600); err != nil {
		return s, err
	}
	authentication := filepath.Join(dir, "authentication.yaml")
	if err := os.WriteFile(authentication, []byte(anonymous), 0o600); err != nil {
		return s, err
	}
	m, err := plane.NewMember(0)
	if err != nil {
		return s, err
	}
	for _, p := range []plane.Program{
		{Name: "etcd", Args: m.EtcdFlags(dir, files, []plane.Member{m})},
		{Name: "kube-apiserver", Args: append(m.APIFlags(dir, files, clientCA), "--allow-privileged", "--authentication-config="+authentication)},
	} {
		p.Path, p.Dir = filepath.Join(programs, p.Name), dir
		if err := s.Launch(p); err != nil {
			return s, err
		}
	}
	if err := s.at(m.URL(), "127.0.0.1:"+m.API, files.CA, admin); err != nil {
		return s, err
	}
	return s, s.AwaitReady(ctx, s.url, s.admin)
}

// start starts both below dir. What has been started is returned also with an error.
func start(ctx context.Context, o options, dir string) (stock, ours *side, err error) {
	ours, admin, err := startBarque(ctx, o.barque, dir)
	if err != nil {
		return &side{}, ours, fmt.Errorf("start Barque: %w", err)
	}
	if stock, err = startStock(ctx, o.programs, dir, admin); err != nil {
		return stock, ours, fmt.Errorf("start stock: %w", err)
	}
	return stock, ours, nil
}

func stop(sides ...*side) error {
	var failures []error
	for _, s := range sides {
		if s != nil {
			failures = append(failures, s.Stop())
		}
	}
	return errors.Join(failures...)
}
