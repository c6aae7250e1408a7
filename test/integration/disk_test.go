package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"barque.dev/internal/cluster/membership"
)

// smallDisk is what etcd takes at the start, which is most of all its log, and little more.
const smallDisk = "size=192m"

// A server whose disk is full ends and says what to do, while the others go on; with room again it catches up.
func TestServerWithAFullDisk(t *testing.T) {
	p := startPlanes(t, 1, "log-level: info\n")
	disk := p.data(1)
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, smallDisk); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})
	p.add(t)
	p.add(t)
	// Before the third votes, the two others are a majority only together.
	eventually(t, time.Minute, "three servers vote", func() error { return votes(t.Context(), p.admin(t, 0), 3) })
	filler := filepath.Join(disk, "filler")
	fill(t, filler)

	maps := p.admin(t, 0).CoreV1().ConfigMaps("default")
	write := func(name string) error {
		_, err := maps.Create(t.Context(), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: name}, BinaryData: map[string][]byte{"b": make([]byte, 500_000)},
		}, metav1.CreateOptions{})
		return err
	}
	written := 0
	eventually(t, time.Minute, "the server with the full disk ends", func() error {
		if err := write(fmt.Sprint("m", written)); err != nil {
			t.Fatalf("the others do not go on: %v", err)
		}
		written++
		said, err := os.ReadFile(p.log(1))
		if err != nil {
			return err
		}
		if !strings.Contains(string(said), "barque: etcd: the disk is full: ") || !strings.Contains(string(said), "make room on the disk of "+disk) {
			return errors.New("it has not said so")
		}
		return nil
	})
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	p.start(t, 1)
	if _, err := p.admin(t, 1).CoreV1().ConfigMaps("default").Get(t.Context(), fmt.Sprint("m", written-1), metav1.GetOptions{}); err != nil {
		t.Errorf("it did not catch up: %v", err)
	}
}

// votes tells unless the cluster has so many voting members.
func votes(ctx context.Context, client kubernetes.Interface, want int) error {
	var list membership.List
	if err := askJSON(ctx, client.Discovery().RESTClient(), membership.PathServers, &list); err != nil {
		return err
	}
	voters := slices.DeleteFunc(list.Servers, func(s membership.Server) bool { return s.Learner })
	if len(voters) != want {
		return fmt.Errorf("%d of %+v vote", len(voters), list.Servers)
	}
	return nil
}

// fill writes until there is no room.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 1<<20); len(block) > 0; {
		_, err := f.Write(block)
		switch {
		case err == nil:
		case errors.Is(err, unix.ENOSPC):
			block = block[:len(block)/2]
		default:
			t.Fatal(err)
		}
	}
}
