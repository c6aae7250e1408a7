// Command tool is the program inside the integration tests' image: what busybox can't do.
//
//	tool serve BASE DIR   answers by HTTP on port BASE, TCP on BASE+1..3 and gRPC on BASE+4, each
//	                      for three probes, as long as the probe's file is in DIR
//	tool api PATH         asks the cluster's API, with the pod's own service account
//	tool webhook ADDRESS DIR
//	                      is an admission webhook, with the certificate in DIR
//	tool extension ADDRESS DIR GROUP
//	                      is an aggregated API server of GROUP, which has buoys; DIR holds its
//	                      certificate and the front proxy's authority
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"google.golang.org/grpc"
	health "google.golang.org/grpc/health/grpc_health_v1"
)

// probes are the names of the files, HTTP paths and gRPC services, in the order of the TCP ports.
var probes = []string{"startup", "readiness", "liveness"}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "tool:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 3 && args[0] == "serve":
		base, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return serve(base, args[2])
	case len(args) == 2 && args[0] == "api":
		return askAPI(args[1])
	case len(args) == 3 && args[0] == "webhook":
		return serveWebhook(args[1], args[2])
	case len(args) == 4 && args[0] == "extension":
		return serveExtension(args[1], args[2], args[3])
	}
	return errors.New("usage: tool serve BASE DIR | tool api PATH | tool webhook ADDRESS DIR | tool extension ADDRESS DIR GROUP")
}

// serve answers until it fails.
func serve(base int, dir string) error {
	there := func(name string) bool {
		_, err := os.Stat(filepath.Join(dir, filepath.Base(name)))
		return err == nil
	}
	failed := make(chan error)
	go func() {
		failed <- http.ListenAndServe(":"+strconv.Itoa(base), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !there(r.URL.Path) {
				http.Error(w, "not now", http.StatusServiceUnavailable)
			}
		}))
	}()
	for i, name := range probes {
		go func() { failed <- serveTCP(base+1+i, func() bool { return there(name) }) }()
	}
	go func() {
		l, err := net.Listen("tcp", ":"+strconv.Itoa(base+4))
		if err != nil {
			failed <- err
			return
		}
		s := grpc.NewServer()
		health.RegisterHealthServer(s, &healthServer{there: there})
		failed <- s.Serve(l)
	}()
	return <-failed
}

// serveTCP listens while on says so.
func serveTCP(port int, on func() bool) error {
	var l net.Listener
	for range time.Tick(50 * time.Millisecond) {
		switch {
		case on() && l == nil:
			var err error
			if l, err = net.Listen("tcp", ":"+strconv.Itoa(port)); err != nil {
				return err
			}
		case !on() && l != nil:
			_ = l.Close()
			l = nil
		}
	}
	return nil
}

type healthServer struct {
	health.UnimplementedHealthServer
	there func(string) bool
}

// Check implements health.HealthServer.
func (s *healthServer) Check(_ context.Context, r *health.HealthCheckRequest) (*health.HealthCheckResponse, error) {
	if s.there(r.Service) {
		return &health.HealthCheckResponse{Status: health.HealthCheckResponse_SERVING}, nil
	}
	return &health.HealthCheckResponse{Status: health.HealthCheckResponse_NOT_SERVING}, nil
}

// askAPI prints the status and the body of what the API answers.
func askAPI(path string) error {
	const dir = "/var/run/secrets/kubernetes.io/serviceaccount"
	token, err := os.ReadFile(filepath.Join(dir, "token"))
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return errors.New("no certificate in ca.crt")
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	req, err := http.NewRequest(http.MethodGet, "https://kubernetes.default.svc"+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+string(token))
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	fmt.Println(resp.Status)
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}
