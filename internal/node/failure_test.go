package node

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"barque.dev/internal/store/etcd"
)

// A server ends as soon as its etcd can't go on, whatever else it is at.
func TestOrFailure(t *testing.T) {
	s := &Server{failed: make(chan error, 1)}
	first, ended := errors.New("first"), errors.New("ended")
	forever := make(chan struct{})
	defer close(forever)
	s.fail(first)
	s.fail(errors.New("second"))
	if err := orFailure(s.failed, func() error { <-forever; return nil }); !errors.Is(err, first) {
		t.Errorf("failed: %v", err)
	}
	if err := orFailure(s.failed, func() error { return ended }); !errors.Is(err, ended) {
		t.Errorf("ended: %v", err)
	}
}

func TestAdviceOnEtcd(t *testing.T) {
	for kind, want := range map[error]string{
		etcd.ErrDiskFull: "make room on the disk of /data and start this server again",
		etcd.ErrDisk:     "dmesg",
		etcd.ErrDamaged:  "remove /data, and start this server again under the same name, with --join and a token: it gets everything from them",
		etcd.ErrRemoved:  "to take it in again, remove /data",
	} {
		err := adviseOnEtcd(fmt.Errorf("etcd: %w: 100%% of it", kind), "/data")
		if !errors.Is(err, kind) || !strings.Contains(err.Error(), "100% of it: ") || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "%!") {
			t.Errorf("%v, want %q", err, want)
		}
	}
	other := errors.New("port 6443 is taken")
	if err := adviseOnEtcd(other, "/data"); err != other || adviseOnEtcd(nil, "/data") != nil {
		t.Errorf("%v", err)
	}
}
