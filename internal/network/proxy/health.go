package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"barque.dev/internal/network/namespace"
	"k8s.io/apimachinery/pkg/types"
)

// healthServers answer load balancers that ask whether this node has endpoints of a service with
// external traffic policy Local: 200 when it has, 503 when not, and a short JSON text, on
// the service's health check node port.
type healthServers struct {
	ns      namespace.Namespace
	log     *slog.Logger
	group   sync.WaitGroup
	servers map[string]*healthServer // by owner
}

type healthServer struct {
	port  uint16
	local atomic.Int64
	http  *http.Server
}

// set brings the server of a service in line; nil stops it.
func (h *healthServers) set(owner string, name types.NamespacedName, check *HealthCheck) error {
	have := h.servers[owner]
	if have != nil && (check == nil || check.Port != have.port) {
		h.stop(owner)
		have = nil
	}
	if check == nil {
		return nil
	}
	if have == nil {
		var err error
		if have, err = h.start(name, check.Port); err != nil {
			return err
		}
		h.servers[owner] = have
	}
	have.local.Store(int64(check.Local))
	return nil
}

func (h *healthServers) start(name types.NamespacedName, port uint16) (*healthServer, error) {
	var l net.Listener
	err := h.ns.Do(func() error {
		var err error
		l, err = net.Listen("tcp4", net.JoinHostPort("", strconv.Itoa(int(port))))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on health check node port of service %s: %w", name, err)
	}
	s := &healthServer{port: port}
	s.http = &http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       30 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			n := s.local.Load()
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.FormatInt(n, 10))
			if n == 0 {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			body := map[string]any{
				"service":             map[string]string{"namespace": name.Namespace, "name": name.Name},
				"localEndpoints":      n,
				"serviceProxyHealthy": true,
			}
			if err := json.NewEncoder(w).Encode(body); err != nil {
				h.log.Debug("health check answer not sent", "service", name.String(), "error", err)
			}
		}),
	}
	h.group.Go(func() {
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			h.log.Warn("health check node port failed", "service", name.String(), "port", port, "error", err)
		}
	})
	return s, nil
}

func (h *healthServers) stop(owner string) {
	s := h.servers[owner]
	delete(h.servers, owner)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		if err := s.http.Close(); err != nil {
			h.log.Debug("close health check node port", "error", err)
		}
	}
}

// close stops all servers and waits for them.
func (h *healthServers) close() {
	for owner := range h.servers {
		h.stop(owner)
	}
	h.group.Wait()
}
