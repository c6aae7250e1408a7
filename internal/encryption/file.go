package encryption

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig/metrics"
	"k8s.io/apiserver/pkg/storage/value"

	"barque.dev/internal/run"
)

// FileConfig says where an EncryptionConfiguration is.
type FileConfig struct {
	Path string
	// Reload looks now and then whether the file has changed.
	Reload bool
	// Server is this server's name, for metrics.
	Server string
	// Every is how often Reload looks; 0 is a minute, as stock has it.
	Every time.Duration
	Log   *slog.Logger
}

const (
	reloadEvery = time.Minute
	// minGrace is how long at least a changed file's key services are given to answer.
	minGrace  = 10 * time.Second
	checkPoll = 100 * time.Millisecond
	// reloadCheck is the name of the one health check of a file that is reloaded, as stock has it.
	reloadCheck = "kms-providers"
)

// A File is an EncryptionConfiguration (apiserver.config.k8s.io/v1) in a file, which kube-apiserver's own
// code reads. It is safe for concurrent use.
type File struct {
	cfg     FileConfig
	log     *slog.Logger
	base    context.Context //nolint:containedctx // what is loaded lives as long as the file
	close   context.CancelFunc
	current atomic.Pointer[loaded]
}

// loaded is a file's content. It is immutable.
type loaded struct {
	*encryptionconfig.EncryptionConfiguration
	close context.CancelFunc
}

// OpenFile reads the file. Key services that it names may be away. Close must be called.
func OpenFile(ctx context.Context, cfg FileConfig) (*File, error) {
	if cfg.Every == 0 {
		cfg.Every = reloadEvery
	}
	f := &File{cfg: cfg, log: cfg.Log}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	f.base, f.close = context.WithCancel(context.WithoutCancel(ctx))
	l, err := f.load()
	if err != nil {
		f.close()
		return nil, fmt.Errorf("--encryption-provider-config %s: %w", cfg.Path, err)
	}
	f.current.Store(l)
	metrics.RecordEncryptionConfigLastConfigInfo(cfg.Server, l.EncryptionFileContentHash)
	return f, nil
}

// Close lets go of key services.
func (f *File) Close() { f.close() }

func (f *File) load() (*loaded, error) {
	ctx, cancel := context.WithCancel(f.base)
	config, err := encryptionconfig.LoadEncryptionConfig(ctx, f.cfg.Path, f.cfg.Reload, f.cfg.Server)
	if err != nil {
		cancel()
		return nil, err
	}
	return &loaded{config, cancel}, nil
}

// transformer is what the file says now about a resource, or nil.
func (f *File) transformer(gr schema.GroupResource) value.Transformer {
	all := f.current.Load().Transformers
	for _, rule := range []schema.GroupResource{gr, {Group: gr.Group, Resource: "*"}, {Group: "*", Resource: "*"}} {
		if t := all[rule]; t != nil {
			return t
		}
	}
	return nil
}

// mayCover tells whether the file says, or may come to say, something about a resource.
func (f *File) mayCover(gr schema.GroupResource) bool {
	return f.cfg.Reload || f.transformer(gr) != nil
}

// Checks tell whether the key services are well. Stock has them in /healthz and /readyz.
func (f *File) Checks() []healthz.HealthChecker {
	if !f.cfg.Reload {
		return f.current.Load().HealthChecks
	}
	return []healthz.HealthChecker{healthz.NamedCheck(reloadCheck, func(req *http.Request) error {
		return check(f.current.Load(), req)
	})}
}

func check(l *loaded, req *http.Request) error {
	var errs []error
	for _, c := range l.HealthChecks {
		errs = append(errs, c.Check(req))
	}
	return errors.Join(errs...)
}

// Run follows changes of the file until ctx ends, if it was asked for.
func (f *File) Run(ctx context.Context) error {
	defer f.close()
	if !f.cfg.Reload {
		<-ctx.Done()
		return nil
	}
	for run.Pause(ctx, f.cfg.Every) {
		changed, err := f.reload(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			metrics.RecordEncryptionConfigAutomaticReloadFailure(f.cfg.Server)
			f.log.Error("the changed encryption configuration is not used", "file", f.cfg.Path, "error", err)
		case changed:
			hash := f.current.Load().EncryptionFileContentHash
			metrics.RecordEncryptionConfigAutomaticReloadSuccess(f.cfg.Server, hash)
			f.log.Info("the changed encryption configuration is in use", "file", f.cfg.Path, "hash", hash)
		}
	}
	return nil
}

// reload puts a changed file to use once its key services answer.
func (f *File) reload(ctx context.Context) (changed bool, err error) {
	was := f.current.Load()
	hash, err := encryptionconfig.GetEncryptionConfigHash(f.cfg.Path)
	if err != nil || hash == was.EncryptionFileContentHash {
		return false, err
	}
	next, err := f.load()
	if err != nil {
		return false, err
	}
	if err := awaitHealth(ctx, next); err != nil {
		next.close()
		return false, err
	}
	f.current.Store(next)
	// Requests that are under way may still use the old key services.
	time.AfterFunc(was.KMSCloseGracePeriod, was.close)
	return true, nil
}

// awaitHealth gives key services a while to answer.
func awaitHealth(ctx context.Context, l *loaded) error {
	ctx, cancel := context.WithTimeout(ctx, max(l.KMSCloseGracePeriod, minGrace))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "/healthz/"+reloadCheck, http.NoBody)
	if err != nil {
		return err
	}
	for {
		err := check(l, req)
		if err == nil {
			return nil
		}
		if !run.Pause(ctx, checkPoll) {
			return fmt.Errorf("its key services are not well: %w", err)
		}
	}
}
