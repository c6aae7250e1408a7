package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/cluster/snapshot"
	"barque.dev/internal/cluster/snapshot/bucket"
	"barque.dev/internal/encryption"
	"barque.dev/internal/pki"
	"barque.dev/internal/run"
)

// SnapshotOptions say when a server takes snapshots of the cluster, and where they are kept.
type SnapshotOptions struct {
	// Every is how often; 0 for never. Keep is how many of those stay.
	Every time.Duration
	Keep  int
	// Dir holds them; empty for a directory in DataDir.
	Dir string
	// Bucket is where they are copied to, if it has a name, and BucketKeep how many of each server stay there. Keep may be 0 then.
	Bucket     bucket.Config
	BucketKeep int
}

// Defaults of SnapshotOptions: the last two days, every six hours on each server.
const (
	DefaultSnapshotEvery = 6 * time.Hour
	DefaultSnapshotKeep  = 8
	// minSnapshotEvery keeps a disk from having to write the database over and over.
	minSnapshotEvery = time.Minute
	// snapshotsDir is where snapshots are in a data directory.
	snapshotsDir = "snapshots"
)

func (o *SnapshotOptions) complete(dataDir string) error {
	if o.Every != 0 && o.Every < minSnapshotEvery {
		return fmt.Errorf("--snapshot-every %v: choose %v or more, or 0 for never", o.Every, minSnapshotEvery)
	}
	if err := o.completeBucket(); err != nil {
		return err
	}
	if o.Keep < 0 || o.Keep < 1 && o.Every != 0 && o.Bucket.Bucket == "" {
		return fmt.Errorf("--snapshot-keep %d: choose 1 or more (0 only with --snapshot-s3-bucket), or --snapshot-every 0 for no snapshots", o.Keep)
	}
	if o.Dir == "" {
		o.Dir = filepath.Join(dataDir, snapshotsDir)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return fmt.Errorf("--snapshot-dir %s: %w", o.Dir, err)
	}
	o.Dir = dir
	return nil
}

// s3Flags begins the names of the server's flags for its bucket.
const s3Flags = "--snapshot-s3-"

func (o *SnapshotOptions) completeBucket() error {
	o.Bucket.Flags = s3Flags
	switch {
	case o.Bucket.Bucket == "" && (o.Bucket.Endpoint != "" || o.Bucket.Prefix != "" || o.Bucket.CA != "" || o.Bucket.Credentials != "" || o.Bucket.Region != ""):
		return errors.New("--snapshot-s3-bucket is missing: name the bucket that snapshots are copied to, or leave the other --snapshot-s3-… flags out")
	case o.Bucket.Bucket == "":
		return nil
	case o.Every == 0:
		return errors.New("--snapshot-s3-bucket: only scheduled snapshots are copied to it, and --snapshot-every 0 takes none")
	case o.BucketKeep < 1:
		return fmt.Errorf("--snapshot-s3-keep %d: choose 1 or more", o.BucketKeep)
	}
	b, err := bucket.Open(o.Bucket)
	if err != nil {
		return err
	}
	b.Close()
	return nil
}

// remote is the bucket that snapshots are copied to; nil for none.
func (o *SnapshotOptions) remote() (snapshot.Remote, error) {
	if o.Bucket.Bucket == "" {
		return nil, nil
	}
	return bucket.Open(o.Bucket)
}

// openSnapshots makes what takes snapshots, and adds what serves them.
func (s *Server) openSnapshots(handlers map[string]http.Handler) error {
	if s.member == nil {
		for _, path := range snapshot.Paths(apiserver.LongPaths) {
			handlers[path] = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				http.Error(w, "the cluster's etcd is one of yours: save it with `etcdctl snapshot save`, and pki in a server's --data-dir", http.StatusNotImplemented)
			})
		}
		return nil
	}
	remote, err := s.cfg.Snapshots.remote()
	if err != nil {
		return err
	}
	s.snapshots = snapshot.NewKeeper(snapshot.Config{
		Source: s.member, Dir: s.cfg.Snapshots.Dir, Server: s.cfg.NodeName, Cluster: s.pki.Cluster.Hash(),
		Version: version, Kubernetes: apiserver.KubernetesVersion,
		Every: s.cfg.Snapshots.Every, Keep: s.cfg.Snapshots.Keep, Remote: remote, RemoteKeep: s.cfg.Snapshots.BucketKeep,
		Servers: s.memberNames, Keys: s.keys, Facts: s.facts, Check: checkElsewhere, Log: s.cfg.Log,
	})
	s.snapshots.Register(s.metrics)
	maps.Copy(handlers, s.snapshots.Handlers(apiserver.LongPaths))
	return nil
}

// memberNames are the names of etcd's members that have started.
func (s *Server) memberNames() []string {
	var names []string
	for _, m := range s.membership.List() {
		if m.Name != "" {
			names = append(names, m.Name)
		}
	}
	return names
}

func (s *Server) snapshotServices() []run.Service {
	if s.snapshots == nil {
		return nil
	}
	return []run.Service{run.Func("snapshots", s.snapshots.Run)}
}

// CheckSnapshot reads a snapshot, compares it with its checksums, unpacks it into an empty directory and looks whether
// its keys open what is encrypted in it.
func CheckSnapshot(ctx context.Context, file, scratch string) (*snapshot.Contents, error) {
	c, _, err := readSnapshot(ctx, file, scratch)
	return c, err
}

// readSnapshot is CheckSnapshot that returns the record of the keys which Secrets are encrypted with, too; nil if
// there is none.
func readSnapshot(ctx context.Context, file, scratch string) (*snapshot.Contents, []byte, error) {
	var record []byte
	c, err := snapshot.Unpack(ctx, file, scratch, func(key, value []byte) error {
		if string(key) == encryption.RecordKey {
			record = bytes.Clone(value)
		}
		return nil
	})
	if err != nil || c.Manifest == nil {
		return c, record, err
	}
	authorities, err := authoritiesOf(c)
	if err == nil {
		err = opens(authorities, record)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", file, err)
	}
	return c, record, nil
}

// authoritiesOf reads the keys in a snapshot of Barque's.
func authoritiesOf(c *snapshot.Contents) (*pki.Authorities, error) {
	var bundle pki.Bundle
	if err := json.Unmarshal(c.Keys, &bundle); err != nil {
		return nil, errors.New("the cluster's keys in it can't be read") // the error could quote them
	}
	authorities, err := bundle.Authorities()
	if err != nil {
		return nil, fmt.Errorf("the cluster's keys in it: %w", err)
	}
	if authorities.Cluster.Hash() != c.Manifest.Cluster {
		return nil, errors.New("the keys in it are of another cluster")
	}
	return authorities, nil
}

// opens tells whether a cluster's keys open the record of the keys that its Secrets are encrypted with.
func opens(authorities *pki.Authorities, record []byte) error {
	if record == nil {
		return nil
	}
	sealer, err := sealer(authorities)
	if err != nil {
		return err
	}
	return sealer.Check(record)
}

// checkNice is the niceness with which a snapshot is checked beside a server that has other things to do, checkIO the
// priority of its reads and writes: the last of the usual class (ioprio_set(2)).
const (
	checkNice = 10
	checkIO   = 2<<13 | 7
)

// checkElsewhere checks a snapshot in a process of its own: it takes memory that is given back at its end, and what is
// damaged may end it.
func checkElsewhere(ctx context.Context, file, scratch string) error {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "snapshot", "verify", "--scratch", scratch, file)
	var said bytes.Buffer
	cmd.Stderr = &said
	// With this process ends the other, whose parent is this very thread.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("check the snapshot: %w", err)
	}
	_ = unix.Setpriority(unix.PRIO_PROCESS, cmd.Process.Pid, checkNice)
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, 1, uintptr(cmd.Process.Pid), checkIO)
	err := cmd.Wait()
	if err == nil {
		return nil
	}
	first, _, _ := strings.Cut(strings.TrimSpace(said.String()), "\n")
	return fmt.Errorf("check the snapshot: %w: %s", err, strings.TrimPrefix(first, "barque: "))
}
