package proc

import (
	"net"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"
)

func TestOwnProcess(t *testing.T) {
	before, err := Weigh(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	const size = 64 << 20
	block := make([]byte, size)
	for i := range block {
		block[i] = 1
	}
	spent, err := CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	after, err := Weigh(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// Up to eight times as much under the race detector, which keeps a shadow of it.
	if grown := after.Private - before.Private; grown < 60 || grown > 600 {
		t.Errorf("64 MiB more are %.1f MB of private memory", grown)
	}
	if after.Proportional < after.Private {
		t.Errorf("%.1f MB with shared pages, %.1f MB without", after.Proportional, after.Private)
	}
	for started := time.Now(); time.Since(started) < 5*time.Second; {
		if now, err := CPU(os.Getpid()); err != nil || now > spent {
			runtime.KeepAlive(block)
			return
		}
	}
	t.Error("a busy process has spent no time")
}

func TestMissingProcess(t *testing.T) {
	if _, err := Weigh(1 << 30); err == nil {
		t.Error("a process that does not exist weighs something")
	}
	if _, err := CPU(1 << 30); err == nil {
		t.Error("a process that does not exist has spent something")
	}
}

func TestPorts(t *testing.T) {
	found, err := Ports(4)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range found {
		l, err := net.Listen("tcp", "127.0.0.1:"+p)
		if err != nil {
			t.Errorf("port %s: %v", p, err)
			continue
		}
		defer l.Close()
		first, _ := strconv.Atoi(found[0])
		if n, err := strconv.Atoi(p); err != nil || n != first+i {
			t.Errorf("ports %v do not follow each other", found)
		}
	}
}
