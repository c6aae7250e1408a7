package detect

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

const (
	dialTimeout = 500 * time.Millisecond
	dialAgain   = 500 * time.Millisecond // while the leader was never connected
	dialSoon    = 10 * time.Millisecond  // after a connection broke

	// heldMost and heldPerHost bound the connections of other members' detectors, which
	// carry nothing.
	heldMost    = 256
	heldPerHost = 8
)

// holdOn keeps a connection to address. When it breaks and the next is refused, it sends the
// cause to gone and returns. An address that never could be connected is not reported: there may
// be another reason for that.
func holdOn(ctx context.Context, address string, gone chan<- error) {
	connected := false
	dialer := net.Dialer{Timeout: dialTimeout, KeepAlive: -1}
	for ctx.Err() == nil {
		conn, err := dialer.DialContext(ctx, "tcp", address)
		switch {
		case err == nil:
			connected = true
			waitForEnd(ctx, conn)
			continue
		case connected && errors.Is(err, syscall.ECONNREFUSED):
			gone <- err
			return
		}
		pause := dialAgain
		if connected {
			pause = dialSoon
		}
		waitFor(ctx, nil, pause)
	}
}

// waitForEnd returns when the other side has closed or reset the connection, or ctx ended.
func waitForEnd(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	_, _ = conn.Read(make([]byte, 1)) // nobody ever writes
}

// hold keeps the connections that others make, until ctx ends.
func (d *Detector) hold(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { d.listener.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	var mu sync.Mutex
	hosts := make(map[string]int)
	all := 0
	for {
		conn, err := d.listener.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return
		}
		if err != nil {
			d.log.Warn("accept", "error", err)
			waitFor(ctx, nil, dialSoon)
			continue
		}
		host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
		mu.Lock()
		tooMany := all >= heldMost || hosts[host] >= heldPerHost
		if !tooMany {
			all++
			hosts[host]++
		}
		mu.Unlock()
		if tooMany {
			conn.Close()
			continue
		}
		wg.Go(func() {
			waitForEnd(ctx, conn)
			mu.Lock()
			defer mu.Unlock()
			all--
			if hosts[host]--; hosts[host] == 0 {
				delete(hosts, host)
			}
		})
	}
}
