package etcd

import "context"

// OpenLog is openLog.
var OpenLog = openLog

// Isolate leaves a recovery as a crash does, right before the revision is raised.
func Isolate(ctx context.Context, name, dir string, cfg Config) error {
	cfg.Name, cfg.DataDir, cfg.PeerURL, cfg.ForceNewCluster = name, dir, "http://127.0.0.1:0", true
	return isolate(ctx, dir, &cfg)
}
