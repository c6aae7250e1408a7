package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	etcdversion "go.etcd.io/etcd/api/v3/version"

	"barque.dev/internal/cluster/upgrade"
)

// errSwitch: the process ends what it does, and becomes the program that is in its file now.
var errSwitch = errors.New("the program was replaced")

// orderSight answers with an upgrade.Sight.
const orderSight = "/sight"

// Version is what this program says of itself.
func Version() upgrade.Version {
	barque, kubernetes := Versions()
	return upgrade.Version{Barque: barque, Kubernetes: kubernetes, Etcd: etcdversion.Version}
}

// openUpgrades makes what replaces the machine's program. end stops the services.
func (h *home) openUpgrades(name string, end func(error), log *slog.Logger) (*upgrade.Upgrader, error) {
	program, err := upgrade.ProgramFile()
	if err != nil {
		log.Warn("this machine can't be upgraded until it is restarted", "err", err)
		program = ""
	}
	u := upgrade.New(upgrade.Config{Dir: h.dir, Program: program, Name: name, Self: Version(), Restart: func() { end(errSwitch) }, Log: log})
	return u, u.Resume()
}

// sightOrder tells a guard how this process is.
func sightOrder(u *upgrade.Upgrader, ready func() bool) order {
	return func(context.Context, json.RawMessage, say) (any, error) { return u.Sight(ready()) }
}

// Guard looks after the machine with the data directory while its program is replaced.
func Guard(ctx context.Context, dir string, log *slog.Logger) error {
	g := upgrade.Guard{Dir: dir, Bounds: upgrade.DefaultBounds, Log: log, Look: func(ctx context.Context) (s upgrade.Sight, err error) {
		ctx, cancel := context.WithTimeout(ctx, controlEnd)
		defer cancel()
		data, err := tell(ctx, dir, orderSight, nil, func(string) {})
		if err == nil {
			err = json.Unmarshal(data, &s)
		}
		return s, err
	}}
	if err := g.Run(ctx); err != nil {
		return fmt.Errorf("upgrade of %s: %w", dir, err)
	}
	return nil
}
