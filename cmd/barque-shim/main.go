// Command barque-shim is the process that stands between containerd and the containers of one
// pod. It is containerd's runc shim, built as a small program of its own: it starts itself anew
// for every pod, and stays as long as the pod does, so its size and start-up time count.
//
// containerd's plugin registry is global and filled by whatever packages happen to be linked
// in. It is emptied first, and filled with the one service that a shim is there for.
package main

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
)

func main() {
	registry.Reset()
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn:   taskService,
	})
	shim.RunShim(context.Background(), manager.NewShimManager("io.containerd.runc.v2"))
}

// taskService makes the service by which containerd creates, starts, watches and deletes the
// containers of this shim's pod.
func taskService(ic *plugin.InitContext) (any, error) {
	p, err := ic.GetByID(plugins.EventPlugin, "publisher")
	if err != nil {
		return nil, err
	}
	s, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
	if err != nil {
		return nil, err
	}
	publisher, ok := p.(shim.Publisher)
	if !ok {
		return nil, fmt.Errorf("shim: the event publisher is a %T", p)
	}
	stop, ok := s.(shutdown.Service)
	if !ok {
		return nil, fmt.Errorf("shim: the shutdown service is a %T", s)
	}
	return task.NewTaskService(ic.Context, publisher, stop)
}
