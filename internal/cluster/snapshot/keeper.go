package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"barque.dev/internal/cluster/join"
	"barque.dev/internal/store/etcd"
)

// Source is the server's member of etcd; [etcd.Member] is one.
type Source interface {
	// ReadIndex waits until the member has applied all that was acknowledged.
	ReadIndex(ctx context.Context) (int64, error)
	Snapshot() (*etcd.Snapshot, error)
	DatabaseSize() int64
	Keys(ctx context.Context, revision int64) (int64, error)
}

var _ Source = (*etcd.Member)(nil)

// Config is what a Keeper stands on.
type Config struct {
	Source Source
	// Dir holds the snapshots; it is made if need be. Servers may share one.
	Dir string
	// Server is this server's name, Cluster the hash of the cluster's authority.
	Server, Cluster string
	// Version and Kubernetes are what this server is, and serves.
	Version, Kubernetes string
	// Every is how often this server takes a snapshot; 0 for never. Keep is how many of those stay, at least 1; with a Remote,
	// 0 for those that are not there yet, and of these the newest alone.
	Every time.Duration
	Keep  int
	// Remote is where those are copied to, and RemoteKeep how many stay there, at least 1; nil for nowhere.
	Remote     Remote
	RemoteKeep int
	// Servers names all servers, which take turns.
	Servers func() []string
	// Keys are the cluster's, as they are now, Facts what else a server has to know of it.
	Keys  func() (json.RawMessage, error)
	Facts func() join.Facts
	// Check reads a snapshot back and says what is wrong with it. scratch is an empty directory for what it unpacks.
	Check func(ctx context.Context, path, scratch string) error
	Log   *slog.Logger
	// Now is the clock, Disk how many bytes are free on a directory's disk, and how many it has; nil for the system's.
	Now  func() time.Time
	Disk func(dir string) (free, total int64, err error)
}

// A Keeper takes a server's snapshots and keeps them. Its methods are safe for concurrent use.
type Keeper struct {
	cfg Config
	log *slog.Logger
	// busy is held while a snapshot is taken: one at a time.
	busy    sync.Mutex
	metrics *metrics
	// patience is how long who is sent a snapshot may take for a piece of it.
	patience time.Duration

	mu      sync.Mutex
	problem string // why the last scheduled one was not taken; guarded by mu
	remote  remote
	// another is told of each scheduled one; it holds one.
	another chan struct{}
}

// Errors that callers tell apart with errors.Is.
var (
	// ErrBusy: one snapshot is taken at a time.
	ErrBusy = errors.New("another snapshot is being taken by this server: try again when that is done")
	// ErrNoRoom: the disk would be too full for etcd.
	ErrNoRoom = errors.New("the disk has no room for a snapshot")
)

// NewKeeper makes a keeper.
func NewKeeper(cfg Config) *Keeper {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Disk == nil {
		cfg.Disk = diskOf
	}
	return &Keeper{cfg: cfg, log: cfg.Log.With("component", "snapshot"), metrics: newMetrics(), patience: patience, another: make(chan struct{}, 1)}
}

// Save takes a snapshot and keeps it until somebody removes it.
func (k *Keeper) Save(ctx context.Context) (Info, error) { return k.keep(ctx, false) }

// keep takes a snapshot and gives it its name.
func (k *Keeper) keep(ctx context.Context, scheduled bool) (Info, error) {
	began := k.cfg.Now()
	t, err := k.take(ctx, scheduled)
	if err != nil {
		return Info{}, err
	}
	defer t.discard()
	path := filepath.Join(k.cfg.Dir, t.manifest.Name().String())
	if err := os.Rename(t.path, path); err != nil {
		return Info{}, fmt.Errorf("take a snapshot: %w", err)
	}
	if err := syncDir(k.cfg.Dir); err != nil {
		return Info{}, fmt.Errorf("take a snapshot: %w", err)
	}
	k.metrics.took(t.manifest, t.size)
	k.log.Info("a snapshot was taken", "file", path, "revision", t.manifest.Revision, "bytes", t.size, "took", k.cfg.Now().Sub(began).Round(time.Millisecond))
	return infoOf(t.manifest.Name(), t.size), nil
}

// taken is a snapshot that was written and checked, and has no name yet.
type taken struct {
	path     string
	size     int64
	manifest Manifest
	release  func()
}

// discard removes it, unless it got its name, and lets another be taken.
func (t *taken) discard() {
	_ = os.Remove(t.path)
	t.release()
}

// take writes a snapshot and checks it. The caller must discard it.
func (k *Keeper) take(ctx context.Context, scheduled bool) (_ *taken, err error) {
	if !k.busy.TryLock() {
		return nil, ErrBusy
	}
	t := &taken{release: k.busy.Unlock}
	defer func() {
		if err != nil {
			t.discard()
			err = fmt.Errorf("take a snapshot: %w", err)
		}
	}()
	if err := os.MkdirAll(k.cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := k.room(scheduled); err != nil {
		return nil, err
	}
	behind := k.behind(ctx)
	if behind && scheduled {
		return nil, errors.New("this server can't tell whether it has what was acknowledged: there is no quorum")
	}
	f, err := os.CreateTemp(k.cfg.Dir, k.temporary()+"*")
	if err != nil {
		return nil, err
	}
	t.path = f.Name()
	t.manifest, err = k.writeTo(ctx, f, scheduled, behind)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, err
	}
	stat, err := os.Stat(t.path)
	if err != nil {
		return nil, err
	}
	t.size = stat.Size()
	return t, k.check(ctx, t.path)
}

// temporary begins the names of what this server has not finished. It ends in what no server's name holds.
func (k *Keeper) temporary() string { return ".unfinished-" + k.cfg.Server + "_" }

// freshWithin bounds the wait for what others have acknowledged.
const freshWithin = 5 * time.Second

// behind tells whether this server may lack what others have acknowledged.
func (k *Keeper) behind(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, freshWithin)
	defer cancel()
	_, err := k.cfg.Source.ReadIndex(ctx)
	return err != nil
}

// writeTo writes a snapshot of now.
func (k *Keeper) writeTo(ctx context.Context, f *os.File, scheduled, behind bool) (Manifest, error) {
	keys, err := k.cfg.Keys()
	if err != nil {
		return Manifest{}, fmt.Errorf("read the cluster's keys: %w", err)
	}
	db, err := k.cfg.Source.Snapshot()
	if err != nil {
		return Manifest{}, err
	}
	defer db.Close()
	m := Manifest{
		Format: manifestFormat, Time: k.cfg.Now().UTC(), Server: k.cfg.Server, Cluster: k.cfg.Cluster,
		Version: k.cfg.Version, Kubernetes: k.cfg.Kubernetes, Scheduled: scheduled, Behind: behind,
		Revision: db.Revision, Compacted: db.Compacted, Facts: k.cfg.Facts(),
	}
	// As the member itself counts them, which the check compares with what it finds in the file.
	if m.Keys, err = k.cfg.Source.Keys(ctx, m.Revision); err != nil {
		return Manifest{}, err
	}
	return m, write(&steadyWriter{ctx: ctx, f: f}, m, keys, db)
}

// check reads a snapshot back.
func (k *Keeper) check(ctx context.Context, path string) error {
	scratch, err := os.MkdirTemp(k.cfg.Dir, k.temporary()+"check-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	if err := k.cfg.Check(ctx, path, scratch); err != nil {
		return fmt.Errorf("what was written is not right: %w", err)
	}
	return nil
}

// removeUnfinished removes what this server was writing when it ended.
func (k *Keeper) removeUnfinished() {
	left, _ := os.ReadDir(k.cfg.Dir)
	for _, e := range left {
		if strings.HasPrefix(e.Name(), k.temporary()) {
			_ = os.RemoveAll(filepath.Join(k.cfg.Dir, e.Name()))
		}
	}
}

// Info is a snapshot that is there.
type Info struct {
	File      string    `json:"file"`
	Time      time.Time `json:"time"`
	Revision  int64     `json:"revision"`
	Server    string    `json:"server"`
	Scheduled bool      `json:"scheduled"`
	// Bytes is the file's size.
	Bytes int64 `json:"bytes"`
	// Dir is where it is on Server, told of one that was just taken.
	Dir string `json:"dir,omitempty"`
}

func infoOf(n Name, size int64) Info {
	return Info{File: n.String(), Time: n.Time, Revision: n.Revision, Server: n.Server, Scheduled: n.Scheduled, Bytes: size}
}

// List lists the snapshots in a directory, by their names, the newest first. One that is not there has none.
func List(dir string) ([]Info, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var names []Name
	sizes := map[string]int64{}
	for _, e := range entries {
		n, ok := ParseName(e.Name())
		if !ok {
			continue
		}
		stat, err := e.Info()
		if err != nil {
			continue // it was removed meanwhile
		}
		names = append(names, n)
		sizes[n.String()] = stat.Size()
	}
	slices.SortFunc(names, byAge)
	list := make([]Info, 0, len(names))
	for _, n := range slices.Backward(names) {
		list = append(list, infoOf(n, sizes[n.String()]))
	}
	return list, nil
}

// own are the scheduled snapshots that this server took of this cluster, the newest first.
func (k *Keeper) own() ([]Info, error) {
	list, err := List(k.cfg.Dir)
	return ownOf(list, k.cfg.Server, k.cluster()), err
}

// prune removes scheduled snapshots that newer ones replace.
func (k *Keeper) prune() error {
	own, err := k.own()
	if err != nil {
		return err
	}
	for _, i := range older(own, max(1, k.cfg.Keep)) {
		err = errors.Join(err, os.Remove(filepath.Join(k.cfg.Dir, i.File)))
	}
	return err
}

// cluster is how names say it.
func (k *Keeper) cluster() string { return k.cfg.Cluster[:min(len(k.cfg.Cluster), clusterDigits)] }

// send takes a snapshot for who asked, and does not keep it.
func (k *Keeper) send(ctx context.Context, begin func(m Manifest, size int64) io.Writer) error {
	t, err := k.take(ctx, false)
	if err != nil {
		return err
	}
	f, err := os.Open(t.path)
	// Who asked may be slow, or gone: meanwhile others can be taken. The file lives as long as it is open.
	t.discard()
	if err != nil {
		return fmt.Errorf("take a snapshot: %w", err)
	}
	defer func() { _ = f.Close() }()
	k.metrics.took(t.manifest, t.size)
	if _, err := io.Copy(begin(t.manifest, t.size), f); err != nil {
		return fmt.Errorf("send the snapshot: %w", err)
	}
	k.log.Info("a snapshot was taken and sent to who asked for it", "revision", t.manifest.Revision, "bytes", t.size)
	return nil
}
