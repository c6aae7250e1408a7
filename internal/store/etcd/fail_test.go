package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sys/unix"

	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

// fullDiskEnv makes the test's program a member whose disk is full; its value is peer URL and data directory.
const fullDiskEnv = "BARQUE_TEST_FULL_DISK"

// fillDisk runs a member, puts /dev/full in the place of its write-ahead log, and writes. It prints what the member
// fails with.
func fillDisk(config string) error {
	url, dir, _ := strings.Cut(config, " ")
	failed := make(chan error, 1)
	m, err := etcd.Start(context.Background(), etcd.Config{Name: "one", DataDir: dir, PeerURL: url, Fail: func(err error) {
		select {
		case failed <- err:
		default:
		}
	}})
	if err != nil {
		return err
	}
	<-m.Ready()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name()))
		if err != nil || filepath.Ext(target) != ".wal" {
			continue
		}
		var n int
		if _, err := fmt.Sscan(fd.Name(), &n); err != nil {
			return err
		}
		if err := unix.Dup3(int(full.Fd()), n, unix.O_CLOEXEC); err != nil {
			return err
		}
	}
	go func() {
		_, _ = m.Txn(context.Background(), &etcdserverpb.TxnRequest{Success: []*etcdserverpb.RequestOp{{
			Request: &etcdserverpb.RequestOp_RequestPut{RequestPut: &etcdserverpb.PutRequest{Key: []byte("k"), Value: make([]byte, 1<<20)}},
		}}})
	}()
	err = <-failed
	fmt.Println(errors.Is(err, etcd.ErrDiskFull), err)
	return nil
}

// A member that can't write its log says so, and acknowledges nothing.
func TestDiskFull(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), fullDiskEnv+"="+etcdtest.FreeURL(t)+" "+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "true the disk is full: failed to save Raft") {
		t.Errorf("%v: %s", err, out)
	}
}

// A member that is removed ends by itself, which its Run tells; one that is closed, or told to end, does not complain.
func TestRunTellsOfRemoval(t *testing.T) {
	c := etcdtest.New(t, 3, nil)
	leader := c.Leader()
	gone, told := (leader+1)%3, (leader+2)%3
	ended := make(chan error, 1)
	member := c.Member(gone)
	go func() { ended <- member.Run(context.Background()) }()
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := c.Member(told).Run(ctx); err != nil {
		t.Errorf("told to end: %v", err)
	}
	etcdtest.Eventually(t, "it is removed", func(ctx context.Context) error { return c.Member(leader).Remove(ctx, member.ID()) })
	if err := <-ended; !errors.Is(err, etcd.ErrRemoved) {
		t.Errorf("removed: %v", err)
	}
	member = c.Member(told)
	go func() { ended <- member.Run(context.Background()) }()
	c.Stop(told)
	if err := <-ended; err != nil {
		t.Errorf("closed: %v", err)
	}
}
