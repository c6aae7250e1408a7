package apiserver

import (
	"context"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"
)

// A client keeps the connection that it has, so that the clients of a server that was away would all stay with the others for good. That is
// why connections are told to go when they are old, and soon after a server has come: over HTTP/2 by GOAWAY, over HTTP/1.1 by being
// closed after an answer. What is going on there goes on, watches included; the next request makes a connection anew, and whatever
// spreads new ones, such as the service default/kubernetes, a load balancer, or a DNS name, finds all servers.
//
// Kube-apiserver does so for one of many requests (--goaway-chance), which tells the busiest clients again and again, and the
// quiet ones hardly ever.
type turnover struct {
	// age is how old connections become, at least; at most twice that, each its own. 0 is for ever.
	age time.Duration
	// floating moves between the servers. A client that comes by it would only come back.
	floating netip.Addr
	// grew is when a server came last, in nanoseconds since 1970.
	grew atomic.Int64
}

// spread is the part of their age within which connections go after a server has come.
const spread = 5

// connAge is what is known of a connection.
type connAge struct {
	opened time.Time
	share  float64 // in [0, 1): when it goes, of the time within which all do
}

type connAgeKey struct{}

// note is http.Server's ConnContext.
func (t *turnover) note(ctx context.Context, conn net.Conn) context.Context {
	if t.floating.IsValid() && addressOf(conn.LocalAddr()) == t.floating.Unmap() {
		return ctx
	}
	return context.WithValue(ctx, connAgeKey{}, connAge{time.Now(), rand.Float64()})
}

func addressOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// turn tells the client to come back by another connection, if it is time for that, or the server is about to go.
func (s *Server) turn(h http.Header, req *http.Request) {
	conn, ok := req.Context().Value(connAgeKey{}).(connAge)
	if ok && req.Header.Get("Upgrade") == "" && (s.retiring.Err() != nil || s.turnover.due(conn, time.Now())) {
		h.Set("Connection", "close")
	}
}

func (t *turnover) due(c connAge, now time.Time) bool {
	if t.age == 0 {
		return false
	}
	share := func(d time.Duration) time.Duration { return time.Duration(c.share * float64(d)) }
	if now.Sub(c.opened) >= t.age+share(t.age) {
		return true
	}
	grew := time.Unix(0, t.grew.Load())
	return c.opened.Before(grew) && now.Sub(grew) >= share(t.age/spread)
}

// Retire has clients sent elsewhere while the server goes on to answer as before: /readyz fails, for load balancers, the server leaves the
// service default/kubernetes, and connections are told to go. It is called a while before Run's context ends, or not at all.
func (s *Server) Retire() { s.retire() }

// Grew is called when another server has begun to serve: a part of the clients should be its.
func (s *Server) Grew() { s.turnover.grew.Store(time.Now().UnixNano()) }
