package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
)

// maxShutdownDelay is less than what service managers wait for a process to end, 90 s, by what the rest of it takes.
const maxShutdownDelay = time.Minute

// linger returns a context that ends as ctx does, but by ShutdownDelay later. Meanwhile all services run, and the API server sends
// clients elsewhere. Who has left the cluster, or recovers it, has nothing to wait for.
func (s *Server) linger(ctx context.Context) context.Context {
	if s.cfg.ShutdownDelay == 0 || s.api == nil {
		return ctx
	}
	later, end := context.WithCancelCause(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		cause := context.Cause(ctx)
		if errors.Is(cause, ErrLeft) || errors.Is(cause, errRecover) || !s.up.Load() {
			end(cause)
			return
		}
		s.cfg.Log.Info("about to stop: clients are sent elsewhere", "for", s.cfg.ShutdownDelay)
		s.api.Retire()
		time.AfterFunc(s.cfg.ShutdownDelay, func() { end(cause) })
	})
	return later
}

// checkEntrance tells what is wrong with how clients find the servers.
func (c *ServerConfig) checkEntrance() error {
	if c.ShutdownDelay < 0 || c.ShutdownDelay > maxShutdownDelay {
		return fmt.Errorf("--shutdown-delay-duration %v: choose 0s to %v", c.ShutdownDelay, maxShutdownDelay)
	}
	if c.ConnectionAge < 0 {
		return fmt.Errorf("--connection-age %v: choose 0, which is never, or more", c.ConnectionAge)
	}
	if c.APIName == "" {
		return nil
	}
	name, port := splitName(c.APIName)
	if _, err := netip.ParseAddr(name); err != nil && len(validation.IsDNS1123Subdomain(name)) > 0 {
		return fmt.Errorf("--api-dns-name %q: give a DNS name such as api.example.org, or an IP, and the port if it is not %d", c.APIName, c.HTTPSPort)
	}
	if n, err := strconv.Atoi(port); port != "" && (err != nil || n < 1 || n > 65535) {
		return fmt.Errorf("--api-dns-name %q: choose a port from 1 to 65535", c.APIName)
	}
	return nil
}
