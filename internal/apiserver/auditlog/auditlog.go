// Package auditlog opens the audit log of an API server: the policy that says what is written, and the backends that it
// is written to. They are upstream's (k8s.io/apiserver/pkg/audit and plugin/pkg/audit), with upstream's options; what is put
// together here is what those options say.
package auditlog

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"gopkg.in/natefinch/lumberjack.v2"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/audit/policy"
	"k8s.io/apiserver/plugin/pkg/audit/buffered"
	auditfile "k8s.io/apiserver/plugin/pkg/audit/log"
	"k8s.io/apiserver/plugin/pkg/audit/truncate"
	auditwebhook "k8s.io/apiserver/plugin/pkg/audit/webhook"
)

// How a backend takes events.
const (
	// Batch gathers events and writes them later. When its buffer is full, events are lost.
	Batch = "batch"
	// Blocking has each request wait until its events are written, or could not be.
	Blocking = "blocking"
	// BlockingStrict is Blocking, and refuses a request whose arrival could not be written down.
	BlockingStrict = "blocking-strict"
)

// Modes lists them.
func Modes() []string { return []string{Batch, Blocking, BlockingStrict} }

// Formats lists how events can be written to a file.
func Formats() []string { return slices.Clone(auditfile.AllowedFormats) }

// Options say what is audited, and where to. Without a policy nothing is.
type Options struct {
	// PolicyFile is a Policy of audit.k8s.io/v1.
	PolicyFile string
	Log        LogOptions
	Webhook    WebhookOptions
}

// LogOptions are for a log on this machine.
type LogOptions struct {
	// Path is the file's; "-" is standard output, and empty is no log.
	Path string
	// MaxAge is in days, and MaxSize, at which the file is put aside, in megabytes; MaxBackups is a number of files. 0
	// is no bound.
	MaxAge, MaxBackups, MaxSize int
	// Compress packs files that were put aside.
	Compress bool
	// Format is one of Formats.
	Format string
	BackendOptions
}

// WebhookOptions are for a server that events are sent to.
type WebhookOptions struct {
	// ConfigFile is a kubeconfig; empty is no webhook.
	ConfigFile string
	// InitialBackoff is how long to wait before a first retry.
	InitialBackoff time.Duration
	BackendOptions
}

// BackendOptions are for any backend.
type BackendOptions struct {
	// Mode is one of Modes.
	Mode  string
	Batch buffered.BatchConfig // for the mode of that name
	// Truncate bounds events and batches by leaving out what is too large.
	Truncate bool
	Sizes    truncate.Config
	// Version is the API version of events.
	Version string
}

// Defaults are stock's.
func Defaults() Options {
	backend := func(mode string, batch buffered.BatchConfig) BackendOptions {
		batch.BufferSize = 10000
		return BackendOptions{
			Mode: mode, Batch: batch, Version: auditv1.SchemeGroupVersion.String(),
			Sizes: truncate.Config{MaxBatchSize: 10 << 20, MaxEventSize: 100 << 10},
		}
	}
	return Options{
		Log: LogOptions{
			MaxAge: 366, MaxBackups: 100, MaxSize: 100, Format: auditfile.FormatJson,
			BackendOptions: backend(Blocking, buffered.BatchConfig{MaxBatchSize: 1}),
		},
		Webhook: WebhookOptions{
			InitialBackoff: auditwebhook.DefaultInitialBackoffDelay,
			BackendOptions: backend(Batch, buffered.BatchConfig{
				MaxBatchSize: 400, MaxBatchWait: 30 * time.Second,
				ThrottleEnable: true, ThrottleQPS: 10, ThrottleBurst: 15, AsyncDelegate: true,
			}),
		},
	}
}

// Check tells what is wrong with options, by the flags they come from.
func (o *Options) Check() error {
	var errs []error
	if o.Log.Path != "" {
		errs = append(errs, o.Log.check("log"))
		if !slices.Contains(auditfile.AllowedFormats, o.Log.Format) {
			errs = append(errs, fmt.Errorf("--audit-log-format %q: choose one of %s", o.Log.Format, strings.Join(auditfile.AllowedFormats, ", ")))
		}
		if o.Log.MaxAge < 0 || o.Log.MaxBackups < 0 || o.Log.MaxSize < 0 {
			errs = append(errs, errors.New("--audit-log-maxage, --audit-log-maxbackup, --audit-log-maxsize: choose 0 or more"))
		}
	}
	if o.Webhook.ConfigFile != "" {
		errs = append(errs, o.Webhook.check("webhook"))
	}
	if o.PolicyFile == "" && (o.Log.Path != "" || o.Webhook.ConfigFile != "") {
		errs = append(errs, errors.New("--audit-log-path and --audit-webhook-config-file need --audit-policy-file: without a policy nothing is audited"))
	}
	if o.PolicyFile != "" && o.Log.Path == "" && o.Webhook.ConfigFile == "" {
		errs = append(errs, errors.New("--audit-policy-file needs --audit-log-path or --audit-webhook-config-file: say where events go"))
	}
	return errors.Join(errs...)
}

func (o *BackendOptions) check(name string) error {
	flag := func(format string, args ...any) error {
		return fmt.Errorf("--audit-%s-%s", name, fmt.Sprintf(format, args...))
	}
	if !slices.Contains(Modes(), o.Mode) {
		return flag("mode %q: choose one of %s", o.Mode, strings.Join(Modes(), ", "))
	}
	if o.Version != auditv1.SchemeGroupVersion.String() {
		return flag("version %q: only %s is known", o.Version, auditv1.SchemeGroupVersion)
	}
	if o.Sizes.MaxEventSize <= 0 || o.Sizes.MaxBatchSize < o.Sizes.MaxEventSize {
		return flag("truncate-max-event-size %d, --audit-%s-truncate-max-batch-size %d: choose a positive size of events, and of batches no less",
			o.Sizes.MaxEventSize, name, o.Sizes.MaxBatchSize)
	}
	if o.Mode != Batch {
		return nil
	}
	switch b := o.Batch; {
	case b.BufferSize <= 0:
		return flag("batch-buffer-size %d: choose 1 or more", b.BufferSize)
	case b.MaxBatchSize <= 0:
		return flag("batch-max-size %d: choose 1 or more", b.MaxBatchSize)
	case b.ThrottleEnable && b.ThrottleQPS <= 0:
		return flag("batch-throttle-qps %v: choose more than 0", b.ThrottleQPS)
	case b.ThrottleEnable && b.ThrottleBurst <= 0:
		return flag("batch-throttle-burst %d: choose 1 or more", b.ThrottleBurst)
	}
	return nil
}

// Log is an audit log. The backend is to be run while requests are served, and shut down after the last.
type Log struct {
	Policy  audit.PolicyRuleEvaluator
	Backend audit.Backend
	abandon func() // nil without a webhook
}

// Abandon gives up on a webhook: events that it has not taken yet are lost, which is counted and told, and who waits for
// them goes on. Files are not concerned.
func (l *Log) Abandon() {
	if l.abandon != nil {
		l.abandon()
	}
}

// Open opens the log that options, which were checked, ask for; nil if they ask for none.
func Open(o Options, log *slog.Logger) (*Log, error) {
	if o.PolicyFile == "" {
		return nil, nil //nolint:nilnil // no log is asked for
	}
	rules, err := policy.LoadPolicyFromFile(o.PolicyFile)
	if err != nil {
		return nil, fmt.Errorf("--audit-policy-file: %w", err)
	}
	out := &Log{Policy: policy.NewPolicyRuleEvaluator(rules)}
	if o.Log.Path != "" {
		w, err := o.Log.open()
		if err != nil {
			return nil, fmt.Errorf("--audit-log-path: %w", err)
		}
		out.Backend = o.Log.wrap(auditfile.NewBackend(&loud{w: w, log: log.With("path", o.Log.Path)}, o.Log.Format, auditv1.SchemeGroupVersion))
	}
	if o.Webhook.ConfigFile != "" {
		hook, err := newHook(o.Webhook.ConfigFile, o.Webhook.InitialBackoff)
		if err != nil {
			return nil, fmt.Errorf("--audit-webhook-config-file: %w", err)
		}
		out.abandon = hook.end
		wrapped := o.Webhook.wrap(hook)
		if out.Backend != nil {
			wrapped = audit.Union(out.Backend, wrapped)
		}
		out.Backend = wrapped
	}
	return out, nil
}

// open opens the file for appending, which has to be possible at the start.
func (o *LogOptions) open() (io.Writer, error) {
	if o.Path == "-" {
		return os.Stdout, nil
	}
	if err := os.MkdirAll(filepath.Dir(o.Path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(o.Path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if o.MaxSize == 0 {
		return f, nil
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	return &lumberjack.Logger{Filename: o.Path, MaxAge: o.MaxAge, MaxBackups: o.MaxBackups, MaxSize: o.MaxSize, Compress: o.Compress}, nil
}

// wrap gives a backend its mode and its bounds.
func (o *BackendOptions) wrap(b audit.Backend) audit.Backend {
	switch o.Mode {
	case Batch:
		b = buffered.NewBackend(b, o.Batch)
	case Blocking:
		b = lenient{b}
	}
	if o.Truncate {
		b = truncate.NewBackend(b, o.Sizes, auditv1.SchemeGroupVersion)
	}
	return b
}

// lenient lets requests go on whose events could not be written. That they could not has been counted and told.
type lenient struct{ audit.Backend }

func (l lenient) ProcessEvents(events ...*auditinternal.Event) bool {
	l.Backend.ProcessEvents(events...)
	return true
}

// loud tells when writing fails, and when it works again. Each event that is lost is counted by the backend.
type loud struct {
	w      io.Writer
	log    *slog.Logger
	failed atomic.Bool
}

func (l *loud) Write(p []byte) (int, error) {
	n, err := l.w.Write(p)
	switch {
	case err != nil && !l.failed.Swap(true):
		l.log.Error("the audit log can't be written: events are lost", "error", err)
	case err == nil && l.failed.Load() && l.failed.Swap(false):
		l.log.Info("the audit log can be written again")
	}
	return n, err
}
