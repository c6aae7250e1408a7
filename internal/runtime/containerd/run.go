package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/runtime"
	"barque.dev/internal/runtime/images"
)

const (
	// startLimit is how long a new daemon may take until it answers. Reading the state of
	// many pods takes seconds on a slow disk.
	startLimit = 2 * time.Minute
	// stableAfter is how long a daemon has to live for its death to count as the first.
	stableAfter = time.Minute
	// longestPause is the longest time between a death and the next start.
	longestPause = 30 * time.Second
	// probeEvery and probeLimit: a daemon that runs, but did not answer to so many questions
	// in a row, each given so long, is killed. Containers do not notice.
	probeEvery  = 15 * time.Second
	probeLimit  = 20 * time.Second
	probesToAct = 4
)

// Run keeps the daemon running until ctx ends, and leaves it running then. It calls ready when
// CRI answers and the pause image is there. A daemon that runs already is kept if it is what
// it should be. One that dies is started again, at once at first, then after growing pauses;
// only a failure of the very first start is returned. Run fails if another process runs the
// same node.
func (r *Runtime) Run(ctx context.Context, ready func()) error {
	if err := r.makeDirs(); err != nil {
		return err
	}
	unlock, err := r.lock(ctx, false)
	if err != nil {
		return err
	}
	defer unlock()
	if err := makeShared(r.cfg.DataDir); err != nil {
		return err
	}
	m, err := inspect(r.data("containerd"))
	if err != nil {
		return err
	}
	config, err := r.render(m)
	if err != nil {
		return err
	}
	p, err := r.bringUp(ctx, config)
	if err != nil {
		return err
	}
	ready()
	return r.keep(ctx, p, config)
}

// keep waits for the daemon's death and starts it again, until ctx ends.
func (r *Runtime) keep(ctx context.Context, p *process, config []byte) error {
	deaths := 0
	for {
		born := time.Now()
		err := r.attend(ctx, p)
		p.close()
		if err != nil {
			return leave(ctx, err)
		}
		if time.Since(born) > stableAfter {
			deaths = 0
		}
		for {
			r.cfg.Log.Warn("containerd ended; starting it again", "after", pause(deaths), "log", r.LogFile())
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pause(deaths)):
			}
			deaths++
			p, err = r.bringUp(ctx, config)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return nil
			}
			r.cfg.Log.Error("containerd does not start", "error", err)
		}
	}
}

// leave turns the end of ctx into a clean one.
func leave(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// pause is how long to wait before the start that follows so many deaths in a row.
func pause(deaths int) time.Duration {
	if deaths == 0 {
		return 0
	}
	return min(time.Second<<min(deaths-1, 10), longestPause)
}

// attend returns nil when the daemon has ended, or ctx's error. Meanwhile it keeps the log
// short and kills a daemon that has stopped to answer.
func (r *Runtime) attend(ctx context.Context, p *process) error {
	inner, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() { r.probe(inner, p) })
	err := p.wait(ctx)
	cancel()
	group.Wait()
	return err
}

// probe asks the daemon now and then whether it is still there, until ctx ends.
func (r *Runtime) probe(ctx context.Context, p *process) {
	client, err := runtime.Dial(r.Endpoint(), runtime.Limits{Call: probeLimit})
	if err != nil {
		r.cfg.Log.Error("cannot watch containerd's health", "error", err)
		return
	}
	defer func() { _ = client.Close() }()
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	missed := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := r.trimLog(); err != nil {
			r.cfg.Log.Warn("containerd's log grows", "error", err)
		}
		_, err := client.Version(ctx, &cri.VersionRequest{Version: "v1"})
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			missed = 0
			continue
		}
		missed++
		r.cfg.Log.Warn("containerd does not answer", "error", err, "times", missed)
		if missed >= probesToAct {
			if err := p.signal(unix.SIGKILL); err != nil {
				r.cfg.Log.Error("cannot end a containerd that does not answer", "error", err)
			}
			missed = 0
		}
	}
}

// bringUp adopts or starts the daemon and waits until it can run pods.
func (r *Runtime) bringUp(ctx context.Context, config []byte) (*process, error) {
	var offset int64
	if info, err := os.Stat(r.LogFile()); err == nil && info.Size() < logLimit {
		offset = info.Size()
	}
	p, err := r.adoptOrStart(ctx, config)
	if err == nil {
		if err = r.waitReady(ctx, p); err == nil {
			return p, nil
		}
		defer p.close()
	}
	if ctx.Err() != nil {
		return nil, err
	}
	if why := r.complaint(offset); why != "" {
		err = fmt.Errorf("%w; it said: %s", err, why)
	}
	// A daemon that does not become ready would only be adopted again.
	if p != nil {
		err = errors.Join(err, p.end(ctx, stopGrace))
	}
	return nil, fmt.Errorf("start containerd (its log is %s): %w", r.LogFile(), err)
}

// waitReady returns nil when the daemon answers over CRI and has the pause image; an error
// when it ended instead, or took too long.
func (r *Runtime) waitReady(ctx context.Context, p *process) error {
	ended := errors.New("it ended right after its start")
	limit, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	limit, stop := context.WithTimeout(limit, startLimit)
	defer stop()
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel(nil)
	group.Go(func() {
		if p.wait(limit) == nil {
			cancel(ended)
		}
	})

	client, err := runtime.Dial(r.Endpoint(), runtime.Limits{})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	if err := client.WaitReady(limit); err != nil {
		if errors.Is(context.Cause(limit), ended) {
			return ended
		}
		return err
	}
	store, err := images.Open(r.Socket())
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	return store.EnsurePause(limit)
}
