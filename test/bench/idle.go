package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"barque.dev/internal/local"
	"barque.dev/test/proc"
	"barque.dev/test/report"
)

func measureIdle(ctx context.Context, b *bench) (err error) {
	c, err := b.newCluster()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.down()) }()
	if err := c.up(ctx); err != nil {
		return err
	}
	if _, err := c.DeploySample(ctx, quiet); err != nil {
		return err
	}
	for _, m := range c.Machines {
		config, err := c.MachineConfig(m)
		if err != nil {
			return err
		}
		config.QPS, config.Timeout = -1, 20*time.Second
		if err := fetchEverything(ctx, config); err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
	}
	b.say("everything was fetched; now it idles")
	rest := time.Minute
	if b.quick {
		rest = 10 * time.Second
	}
	if err := sleep(ctx, rest/4); err != nil {
		return err
	}
	for _, m := range c.Machines {
		if err := b.weigh(m); err != nil {
			return err
		}
	}
	return b.idleCPU(ctx, c, rest)
}

// fetchEverything asks a server for every OpenAPI document and lists every kind, as JSON and as protobuf.
func fetchEverything(ctx context.Context, config *rest.Config) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	get := client.Discovery().RESTClient()
	if _, err := get.Get().AbsPath("/openapi/v2").DoRaw(ctx); err != nil {
		return fmt.Errorf("fetch /openapi/v2: %w", err)
	}
	paths, err := client.Discovery().OpenAPIV3().Paths()
	if err != nil {
		return fmt.Errorf("fetch /openapi/v3: %w", err)
	}
	for path, doc := range paths {
		if _, err := doc.Schema("application/json"); err != nil {
			return fmt.Errorf("fetch /openapi/v3/%s: %w", path, err)
		}
	}
	objects, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	lists, err := client.Discovery().ServerPreferredResources()
	if err != nil {
		return fmt.Errorf("discover: %w", err)
	}
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return err
		}
		for _, r := range list.APIResources {
			if !strings.Contains(strings.Join(r.Verbs, " "), "list") {
				continue
			}
			if _, err := objects.Resource(gv.WithResource(r.Name)).List(ctx, metav1.ListOptions{}); err != nil {
				return fmt.Errorf("list %s: %w", r.Name, err)
			}
		}
	}
	return nil
}

// weigh adds what a machine's processes weigh.
func (b *bench) weigh(m *local.Machine) error {
	server, err := proc.Weigh(m.PID())
	if err != nil {
		return err
	}
	var runtime, shims proc.Memory
	for pid, command := range processesWith(m.DataDir() + "/") {
		use, err := proc.Weigh(pid)
		if err != nil {
			continue // it has ended
		}
		switch {
		case strings.Contains(command, "barque-containerd "):
			runtime.Private += use.Private
			runtime.Proportional += use.Proportional
		case strings.Contains(command, "containerd-shim"):
			shims.Private += use.Private
			shims.Proportional += use.Proportional
		}
	}
	b.say("%s: server %.0f (%.0f), containerd %.0f (%.0f), shims %.0f (%.0f) MB private (proportional)", m.Name,
		server.Private, server.Proportional, runtime.Private, runtime.Proportional, shims.Private, shims.Proportional)
	const all = "etcd, API server, scheduler and controllers where it leads, agent, network, DNS; after all of OpenAPI and a list of every kind"
	b.add(report.Figure{Name: "server, private memory", Unit: "MB", Aim: "150", Includes: all + "; anonymous memory"}, server.Private)
	b.add(report.Figure{Name: "server, proportional memory", Unit: "MB", Aim: "150", Includes: all + "; the program's pages are shared by three servers here"}, server.Proportional)
	b.add(report.Figure{Name: "containerd, private memory", Unit: "MB", Includes: "one a machine"}, runtime.Private)
	b.add(report.Figure{Name: "containerd, proportional memory", Unit: "MB", Includes: "one a machine"}, runtime.Proportional)
	b.add(report.Figure{Name: "shims, private memory", Unit: "MB", Includes: "all of a machine: one a pod, one pod of the sample here"}, shims.Private)
	return nil
}

// idleCPU measures over a while in which nobody asks for anything.
func (b *bench) idleCPU(ctx context.Context, c *cluster, length time.Duration) error {
	before := map[int]time.Duration{}
	for _, m := range c.Machines {
		used, err := proc.CPU(m.PID())
		if err != nil {
			return err
		}
		before[m.PID()] = used
	}
	started := time.Now()
	if err := sleep(ctx, length); err != nil {
		return err
	}
	for _, m := range c.Machines {
		used, err := proc.CPU(m.PID())
		if err != nil {
			return err
		}
		b.add(report.Figure{Name: "server, CPU", Unit: "% of a core", Includes: fmt.Sprintf("over %v without clients; the sample's probes go on", length)},
			100*(used-before[m.PID()]).Seconds()/time.Since(started).Seconds())
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
