package drill

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"barque.dev/internal/drill/check"
	"barque.dev/internal/drill/work"
)

// workloads is what controllers have to do in a round, and what is seen of it. A nil one does nothing.
type workloads struct {
	round        *round
	load         *work.Load
	observer     *work.Observer
	stopLoad     context.CancelFunc
	stopObserver context.CancelFunc
	working      sync.WaitGroup
	observing    sync.WaitGroup
}

// employ begins to give controllers work, where the drill has workloads.
func (r *round) employ(ctx context.Context) (*workloads, error) {
	if !r.Workloads {
		return nil, nil //nolint:nilnil // it does nothing
	}
	clients, err := r.clients()
	if err != nil {
		return nil, err
	}
	w := &workloads{
		round:    r,
		load:     &work.Load{Namespace: r.namespace, Clients: clients, Seed: r.Seed},
		observer: work.NewObserver(clients[0], r.namespace, r.running),
	}
	creating, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	if err := eventually(creating, func() error { return w.load.Create(creating) }); err != nil {
		return nil, err
	}
	loading, stopLoad := context.WithCancel(ctx)
	observing, stopObserver := context.WithCancel(ctx)
	w.stopLoad, w.stopObserver = stopLoad, stopObserver
	w.working.Go(func() { w.load.Run(loading) })
	w.observing.Go(func() { w.observer.Run(observing) })
	return w, nil
}

// settleTimeout bounds how long controllers take until all is as it should be. It is long: what is judged is whether they
// get there.
const settleTimeout = 4 * time.Minute

// settle gives no more work, and waits until all is done. What was seen until then is judged by retire.
func (w *workloads) settle(ctx context.Context) error {
	if w == nil {
		return nil
	}
	w.stopLoad()
	w.working.Wait()
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	if err := eventually(ctx, func() error { return w.load.Settled(ctx) }); err != nil {
		return fmt.Errorf("controllers do not get done within %v: %w", settleTimeout, err)
	}
	return nil
}

// retire ends all of it, and judges what was seen. What was wrong is kept in the report.
func (w *workloads) retire() (check.Verdict, error) {
	if w == nil {
		return check.Verdict{}, nil
	}
	w.stopLoad()
	w.stopObserver()
	w.working.Wait()
	w.observing.Wait()
	record, err := w.observer.Record()
	v := check.Verdict{Violations: work.Judge(record)}
	w.round.Progress("round %d: controllers were seen to change %d objects, pods were looked at %d times: %d violations",
		w.round.rounds+1, len(record.Sights), len(record.Samples), len(v.Violations))
	if len(v.Violations) > 0 {
		if werr := record.Write(filepath.Join(w.round.Report, "work-"+w.round.namespace+".json")); werr != nil {
			return v, werr
		}
	}
	return v, err
}

// clients speak to the virtual IP, and to each server.
func (d *drill) clients() ([]kubernetes.Interface, error) {
	config, err := d.cluster.Config()
	if err != nil {
		return nil, err
	}
	urls := []string{config.Host}
	for _, m := range d.servers() {
		own, err := d.cluster.MachineConfig(m)
		if err != nil {
			return nil, err
		}
		urls = append(urls, own.Host)
	}
	var clients []kubernetes.Interface
	for _, url := range urls {
		own := rest.CopyConfig(config)
		own.Host, own.QPS = url, -1
		client, err := kubernetes.NewForConfig(own)
		if err != nil {
			return nil, err
		}
		clients = append(clients, client)
	}
	return clients, nil
}

// running lists the pods that run on any machine.
func (d *drill) running() (all []string, err error) {
	for _, m := range d.cluster.Machines {
		pods, err := m.Pods()
		if err != nil {
			return nil, err
		}
		all = append(all, pods...)
	}
	return all, nil
}
