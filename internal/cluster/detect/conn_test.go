package detect

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

func TestHoldOn(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone, ended := make(chan error, 1), make(chan struct{})
	go func() { defer close(ended); holdOn(ctx, l.Addr().String(), gone) }()
	for range 3 { // a connection that breaks while the process lives
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-gone:
		t.Fatalf("gone while it accepts: %v", err)
	default:
	}
	l.Close()
	conn.Close()
	select {
	case err := <-gone:
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("gone: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("not noticed")
	}
	<-ended
}

func TestHoldOnNeverConnected(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	gone := make(chan error, 1)
	holdOn(ctx, address, gone)
	select {
	case err := <-gone:
		t.Errorf("gone: %v", err)
	default:
	}
}

func TestPing(t *testing.T) {
	p, err := newPinger()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	one, other := p.target(netip.MustParseAddr("127.0.0.1")), p.target(netip.MustParseAddr("127.0.0.2"))
	if one.replies() != 0 {
		t.Fatal("an answer before the first echo")
	}
	other.send()
	for range 3 {
		one.send()
	}
	got := 0
	for deadline := time.Now().Add(10 * time.Second); got < 3 && time.Now().Before(deadline); {
		got += one.replies()
	}
	if got != 3 {
		t.Errorf("%d answers to 3 echoes", got)
	}
	if one.matches([]byte("garbage")) || one.matches(nil) {
		t.Error("garbage is an answer")
	}
	unreachable := p.target(netip.MustParseAddr("255.255.255.255"))
	unreachable.send()
	if unreachable.replies() != 0 {
		t.Error("an answer from nowhere")
	}
}
