package plane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// ClientTLS is a client's configuration from PEM files.
func ClientTLS(ca, cert, key []byte) (*tls.Config, error) {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("client certificate: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("authority's certificate: not PEM")
	}
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}, nil
}

// Adopt takes the administrator's credentials from a kubeconfig that one of the programs is about to write.
func (p *Programs) Adopt(ctx context.Context, kubeconfig string) (found *rest.Config, err error) {
	err = p.Poll(ctx, "read "+kubeconfig, func(context.Context) error {
		if found, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
			return err
		}
		return rest.LoadTLSFiles(found)
	})
	return found, err
}

// Transport makes connections of its own; control may set options of their sockets.
func (p *Programs) Transport(config *tls.Config, control func(network, address string, c syscall.RawConn) error) *http.Transport {
	dialer := &net.Dialer{Timeout: 5 * time.Second, Control: control}
	return &http.Transport{
		TLSClientConfig: config.Clone(), DisableCompression: true,
		DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = p.Network.Do(func() (err error) {
				conn, err = dialer.DialContext(ctx, network, address)
				return err
			})
			return conn, err
		},
	}
}

// AwaitReady waits until an API server says that it is.
func (p *Programs) AwaitReady(ctx context.Context, url string, config *tls.Config) error {
	client := &http.Client{Timeout: 5 * time.Second, Transport: p.Transport(config, nil)}
	defer client.CloseIdleConnections()
	return p.Poll(ctx, url+"/readyz", func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
}
