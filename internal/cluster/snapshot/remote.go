package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// A Remote is a place elsewhere that scheduled snapshots are copied to, which servers share.
type Remote interface {
	// String says where it is, such as s3://bucket/prefix/: a name behind it is that of a snapshot there.
	String() string
	// List lists the snapshots there, the newest first.
	List(ctx context.Context) ([]Info, error)
	// Put copies a file there, under its own name, and compares what has arrived.
	Put(ctx context.Context, file string) error
	// Remove removes a snapshot there.
	Remove(ctx context.Context, name string) error
}

// RemoteStatus is what a server tells of its remote.
type RemoteStatus struct {
	Where string `json:"where"`
	// Keep is how many of the server's scheduled snapshots stay there.
	Keep int `json:"keep"`
	// Problem is why the last attempt to bring all there failed.
	Problem string `json:"problem,omitempty"`
	// Snapshots are those of the cluster, of all servers, as the server last saw it.
	Snapshots []Info `json:"snapshots"`
}

// remote is what a keeper knows of its remote; guarded by Keeper.mu.
type remote struct {
	problem string
	list    []Info // of all clusters
}

// missing are the snapshots here that are to be there: none of the same name and size is there, and they are among the newest so
// many of all. Lists are of one server and cluster; the newest comes first.
func missing(here, there []Info, keep int) []Info {
	all := slices.Clone(here)
	for _, i := range there {
		if !slices.ContainsFunc(here, func(h Info) bool { return h.File == i.File }) {
			all = append(all, i)
		}
	}
	slices.SortFunc(all, Newer)
	return slices.DeleteFunc(all[:min(keep, len(all))], func(i Info) bool { return holds(there, i) })
}

// holds tells whether a list has a snapshot of that name and size.
func holds(list []Info, i Info) bool {
	return slices.ContainsFunc(list, func(other Info) bool { return other.File == i.File && other.Bytes == i.Bytes })
}

// followRemote brings scheduled snapshots to the remote until ctx ends, apart from what takes them: a remote that is slow, or not
// there, keeps nobody from taking another.
func (k *Keeper) followRemote(ctx context.Context) {
	for ctx.Err() == nil {
		err := k.copyAll(ctx)
		if ctx.Err() != nil {
			return
		}
		k.tellRemote(err)
		again := time.NewTimer(min(retryAfter, k.cfg.Every))
		select {
		case <-k.another:
		case <-again.C:
		case <-ctx.Done():
		}
		again.Stop()
	}
}

// copyAll brings to the remote what is missing there, removes what is too old, and removes here what needs not be here.
func (k *Keeper) copyAll(ctx context.Context) error {
	here, err := k.own()
	if err != nil {
		return err
	}
	list, err := k.cfg.Remote.List(ctx)
	if err != nil {
		return err
	}
	k.seen(list)
	for _, i := range missing(here, ownOf(list, k.cfg.Server, k.cluster()), k.cfg.RemoteKeep) {
		err := k.cfg.Remote.Put(ctx, filepath.Join(k.cfg.Dir, i.File))
		if errors.Is(err, os.ErrNotExist) {
			continue // it was removed meanwhile
		}
		if err != nil {
			return err
		}
		k.metrics.copied.Set(float64(i.Time.Unix()))
		k.log.Info("a snapshot was copied", "to", k.cfg.Remote.String()+i.File, "bytes", i.Bytes)
	}
	if list, err = k.cfg.Remote.List(ctx); err != nil {
		return err
	}
	k.seen(list)
	there := ownOf(list, k.cfg.Server, k.cluster())
	for _, i := range older(there, k.cfg.RemoteKeep) {
		if err := k.cfg.Remote.Remove(ctx, i.File); err != nil {
			return err
		}
		k.unseen(i)
	}
	return k.leaveToRemote(here, there)
}

// leaveToRemote removes here what is there, if nothing is to be kept here.
func (k *Keeper) leaveToRemote(here, there []Info) error {
	if k.cfg.Keep > 0 {
		return nil
	}
	var err error
	for _, i := range here {
		if !holds(there, i) {
			continue
		}
		if failed := os.Remove(filepath.Join(k.cfg.Dir, i.File)); !errors.Is(failed, os.ErrNotExist) {
			err = errors.Join(err, failed)
		}
	}
	return err
}

func (k *Keeper) seen(list []Info) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.remote.list = list
}

func (k *Keeper) unseen(gone Info) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.remote.list = slices.DeleteFunc(slices.Clone(k.remote.list), func(i Info) bool { return i.File == gone.File })
}

// tellRemote notes how the last attempt ended.
func (k *Keeper) tellRemote(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.remote.problem = ""
	if err != nil {
		k.remote.problem = err.Error()
		k.metrics.copyFailures.Inc()
		k.log.Warn("snapshots were not copied, and stay here until they can be", "to", k.cfg.Remote.String(), "error", err)
	}
}

// remoteStatus is nil when there is no remote.
func (k *Keeper) remoteStatus() *RemoteStatus {
	if k.cfg.Remote == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	s := &RemoteStatus{Where: k.cfg.Remote.String(), Keep: k.cfg.RemoteKeep, Problem: k.remote.problem}
	for _, i := range k.remote.list {
		if n, _ := ParseName(i.File); n.Cluster == k.cluster() {
			s.Snapshots = append(s.Snapshots, i)
		}
	}
	return s
}

// lastThere is the newest scheduled snapshot of this server that it has seen in the remote.
func (k *Keeper) lastThere() []Info {
	k.mu.Lock()
	defer k.mu.Unlock()
	there := ownOf(k.remote.list, k.cfg.Server, k.cluster())
	return there[:min(1, len(there))]
}
