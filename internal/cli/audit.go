package cli

import (
	"strings"

	"github.com/spf13/pflag"

	"barque.dev/internal/apiserver/auditlog"
)

// auditFlags are kube-apiserver's flags for auditing, by its names.
func auditFlags(flags *pflag.FlagSet, o *auditlog.Options) {
	*o = auditlog.Defaults()
	flags.StringVar(&o.PolicyFile, "audit-policy-file", "", "`FILE` with the policy that says what is audited; without it nothing is")
	flags.StringVar(&o.Log.Path, "audit-log-path", "", "`FILE` that audit events are appended to; - for standard output")
	flags.IntVar(&o.Log.MaxAge, "audit-log-maxage", o.Log.MaxAge, "`days` for which old audit logs are kept; 0 for ever")
	flags.IntVar(&o.Log.MaxBackups, "audit-log-maxbackup", o.Log.MaxBackups, "`number` of old audit logs that are kept; 0 for all")
	flags.IntVar(&o.Log.MaxSize, "audit-log-maxsize", o.Log.MaxSize, "`megabytes` at which an audit log is put aside; 0 for never")
	flags.BoolVar(&o.Log.Compress, "audit-log-compress", false, "compress audit logs that are put aside")
	flags.StringVar(&o.Log.Format, "audit-log-format", o.Log.Format, "how events are written: "+strings.Join(auditlog.Formats(), " or "))
	backendFlags(flags, "audit-log-", &o.Log.BackendOptions)
	flags.StringVar(&o.Webhook.ConfigFile, "audit-webhook-config-file", "", "kubeconfig `FILE` of a server that audit events are sent to")
	flags.DurationVar(&o.Webhook.InitialBackoff, "audit-webhook-initial-backoff", o.Webhook.InitialBackoff, "how long to wait before a first retry")
	backendFlags(flags, "audit-webhook-", &o.Webhook.BackendOptions)
}

func backendFlags(flags *pflag.FlagSet, prefix string, o *auditlog.BackendOptions) {
	flags.StringVar(&o.Mode, prefix+"mode", o.Mode, "whether requests wait until their events are written: "+strings.Join(auditlog.Modes(), ", "))
	flags.IntVar(&o.Batch.BufferSize, prefix+"batch-buffer-size", o.Batch.BufferSize, "`events` that are kept until they are written, in mode batch; more are lost")
	flags.IntVar(&o.Batch.MaxBatchSize, prefix+"batch-max-size", o.Batch.MaxBatchSize, "`events` that are written together at most")
	flags.DurationVar(&o.Batch.MaxBatchWait, prefix+"batch-max-wait", o.Batch.MaxBatchWait, "how long an event waits for others")
	flags.BoolVar(&o.Batch.ThrottleEnable, prefix+"batch-throttle-enable", o.Batch.ThrottleEnable, "bound how often batches are written")
	flags.Float32Var(&o.Batch.ThrottleQPS, prefix+"batch-throttle-qps", o.Batch.ThrottleQPS, "`batches` a second, on average")
	flags.IntVar(&o.Batch.ThrottleBurst, prefix+"batch-throttle-burst", o.Batch.ThrottleBurst, "`batches` at once, after a pause")
	flags.BoolVar(&o.Truncate, prefix+"truncate-enabled", false, "leave objects out of events that are too large")
	flags.Int64Var(&o.Sizes.MaxEventSize, prefix+"truncate-max-event-size", o.Sizes.MaxEventSize, "`bytes` of an event at most")
	flags.Int64Var(&o.Sizes.MaxBatchSize, prefix+"truncate-max-batch-size", o.Sizes.MaxBatchSize, "`bytes` of a batch at most")
	flags.StringVar(&o.Version, prefix+"version", o.Version, "API `version` of events")
}
