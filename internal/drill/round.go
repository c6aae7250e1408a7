package drill

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"barque.dev/internal/cluster/balance"
	"barque.dev/internal/drill/check"
	"barque.dev/internal/drill/history"
	"barque.dev/internal/drill/load"
	"barque.dev/internal/drill/probe"
)

const (
	// A round has so many faults, or fewer when its history is half full before.
	faultsPerRound = 8
	// historyLimit bounds a round's history, in entries of some 150 bytes.
	historyLimit = 400_000
	// orderTimeout bounds the search for an order of one object's operations.
	orderTimeout = 20 * time.Second
	// endTimeout bounds how long watchers and servers take to show the end.
	endTimeout = 2 * time.Minute
)

// round is one history: clients and watchers, and faults meanwhile.
type round struct {
	*drill
	namespace string
	recorder  *history.Recorder
	endpoints []load.Endpoint // the virtual IP, each server, and all of them balanced

	seen check.Verdict // of the workloads

	mu        sync.Mutex
	connected []*load.API
}

// round makes a round and judges it. last tells that the drill is over.
func (d *drill) round(ctx context.Context) (last bool, err error) {
	r := &round{drill: d, namespace: fmt.Sprintf("drill-%d", d.rounds+1), recorder: history.NewRecorder(historyLimit)}
	balancing, stop := context.WithCancel(ctx)
	defer stop()
	if r.endpoints, err = d.endpoints(balancing); err != nil {
		return false, err
	}
	if err := d.eachNamespace(ctx, r.namespace, create); err != nil {
		return false, err
	}
	defer r.close()
	err = r.play(ctx)
	if ctx.Err() != nil {
		if errors.Is(context.Cause(ctx), probe.ErrLost) {
			return false, errors.Join(ctx.Err(), r.keep(check.Verdict{}))
		}
		return false, ctx.Err()
	}
	verdict := check.All(r.recorder.History(), orderTimeout)
	verdict.Add(r.seen)
	d.rounds++
	d.verdict.Add(verdict)
	d.Progress("round %d: %d operations on %d objects, %d without an answer, %d lists, %d events: %d violations",
		d.rounds, verdict.Operations, verdict.Objects, verdict.Unknown, verdict.Lists, verdict.Events, len(verdict.Violations))
	if len(verdict.Violations) > 0 || err != nil {
		err = errors.Join(err, r.keep(verdict))
	}
	if err != nil || len(verdict.Violations) > 0 {
		return true, err
	}
	return d.over(), d.eachNamespace(ctx, r.namespace, remove)
}

// play has clients work while faults strike, and brings the history to its end.
func (r *round) play(ctx context.Context) (err error) {
	watching, stopWatching := context.WithCancel(ctx)
	var watchers sync.WaitGroup
	defer watchers.Wait()
	defer stopWatching()
	for _, e := range r.endpoints {
		watchers.Go(func() { r.connect(e).Watch(watching, r.recorder, "watcher-"+e.Name) })
	}
	if err := r.begin(ctx); err != nil {
		return err
	}
	employed, err := r.employ(ctx)
	if err != nil {
		return err
	}
	defer func() {
		var rerr error
		r.seen, rerr = employed.retire()
		err = errors.Join(err, rerr)
	}()
	working, stopWorking := context.WithCancel(ctx)
	var workers sync.WaitGroup
	objects := &load.Objects{}
	for i, e := range r.endpoints {
		// As many through the virtual IP as through all servers.
		for j := range max(1, (1-min(i, 1))*r.Servers) {
			name := fmt.Sprintf("client-%s-%d", e.Name, j+1)
			random := rand.New(rand.NewPCG(r.Seed, uint64(i*100+j)))
			workers.Go(func() { r.connect(e).Work(working, r.recorder, objects, name, random) })
		}
	}
	for i := 0; err == nil && i < faultsPerRound && !r.recorder.HalfFull() && (i == 0 || !r.over()); i++ {
		err = r.step(ctx)
	}
	stopWorking()
	workers.Wait()
	if err != nil {
		return err
	}
	return errors.Join(r.end(ctx), employed.settle(ctx))
}

// connect makes a client of its own.
func (r *round) connect(e load.Endpoint) *load.API {
	a := load.Connect(e, r.namespace)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.connected = append(r.connected, a)
	return a
}

func (r *round) close() {
	for _, a := range r.connected {
		a.Close()
	}
}

// begin waits until all watchers have begun, and lists nothing.
func (r *round) begin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	a := r.connect(r.endpoints[0])
	return eventually(ctx, func() error {
		if r.recorder.Watchers() < len(r.endpoints) {
			return errors.New("not all watchers have begun")
		}
		l, err := a.List(ctx, r.recorder, "begin")
		if err == nil {
			r.recorder.Start(l.Revision)
		}
		return err
	})
}

// end lists what there is in the end, waits until every watcher has seen what comes after that, and until all
// servers show the same.
func (r *round) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	a := r.connect(r.endpoints[0])
	var end *history.List
	if err := eventually(ctx, func() (err error) { end, err = a.List(ctx, r.recorder, "end"); return err }); err != nil {
		return fmt.Errorf("list the end: %w", err)
	}
	last := history.Op{Client: "end", Kind: history.Create, Key: "the-end", Value: "the-end"}
	if err := eventually(ctx, func() error {
		a.Do(ctx, r.recorder, &last)
		if last.Outcome != history.OK && last.Outcome != history.Exists {
			return errors.New(last.Detail)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("write the end: %w", err)
	}
	// Who does not get there is found by the checks.
	_ = eventually(ctx, func() error {
		if r.recorder.SeenByAll() <= end.Revision {
			return errors.New("not all watchers have seen the end")
		}
		return nil
	})
	r.recorder.End(end, r.copies(ctx, end.Revision))
	return nil
}

// copies is what each server shows by itself once it has got to a revision: as soon as all show the same, or what they
// show when the time is over.
func (r *round) copies(ctx context.Context, revision int64) map[string][]string {
	servers := r.endpoints[1 : 1+r.Servers]
	apis := make([]*load.API, len(servers))
	for i, e := range servers {
		apis[i] = r.connect(e)
	}
	copies := map[string][]string{}
	_ = eventually(ctx, func() error {
		for i, e := range servers {
			objects, at, err := apis[i].Copy(ctx)
			if err != nil {
				return err
			}
			if copies[e.Name] = objects; at <= revision {
				return fmt.Errorf("%s is at revision %d", e.Name, at)
			}
		}
		for _, e := range servers[1:] {
			if !slices.Equal(copies[e.Name], copies[servers[0].Name]) {
				return errors.New("servers differ")
			}
		}
		return nil
	})
	return copies
}

// keep writes the history into the report, and a picture of each object whose operations have no order.
func (r *round) keep(verdict check.Verdict) error {
	const pictures = 5
	h := r.recorder.History()
	errs := []error{h.Write(filepath.Join(r.Report, fmt.Sprintf("history-%s.json", r.namespace)))}
	drawn := 0
	for _, v := range verdict.Violations {
		if v.Rule == check.Linearizable && drawn < pictures {
			drawn++
			errs = append(errs, check.Draw(h, v.Key, filepath.Join(r.Report, fmt.Sprintf("history-%s-%s.html", r.namespace, v.Key)), orderTimeout))
		}
	}
	return errors.Join(errs...)
}

// endpoints are the virtual IP, each server, and all servers by a balancer like that of agents, which works until ctx ends.
func (d *drill) endpoints(ctx context.Context) ([]load.Endpoint, error) {
	config, err := d.cluster.Config()
	if err != nil {
		return nil, err
	}
	certificates, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, fmt.Errorf("use the kubeconfig's certificates: %w", err)
	}
	names := map[string]string{}
	var urls []string
	all := []load.Endpoint{{Name: "vip", URL: config.Host, TLS: certificates, Answered: d.series.Add, Servers: names}}
	for _, m := range d.servers() {
		names[m.IP.String()] = m.Name
		own, err := d.cluster.MachineConfig(m)
		if err != nil {
			return nil, err
		}
		all = append(all, load.Endpoint{Name: m.Name, URL: own.Host, TLS: certificates, Answered: d.series.Add, Servers: names})
		urls = append(urls, own.Host)
	}
	balancer, err := balance.New(balance.Config{Name: "drill", Servers: urls, TLS: certificates})
	if err != nil {
		return nil, err
	}
	go func() { _ = balancer.Run(ctx) }()
	return append(all, load.Endpoint{Name: "balanced", URL: urls[0], Balancer: balancer, Answered: d.series.Add, Servers: names}), nil
}

func create(ctx context.Context, client kubernetes.Interface, name string) error {
	_, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func remove(ctx context.Context, client kubernetes.Interface, name string) error {
	err := client.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// eachNamespace makes or removes a round's namespace, asking until it is done.
func (d *drill) eachNamespace(ctx context.Context, name string, do func(context.Context, kubernetes.Interface, string) error) error {
	config, err := d.cluster.Config()
	if err != nil {
		return err
	}
	config.Timeout = answerTimeout
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	if err := eventually(ctx, func() error { return do(ctx, client, name) }); err != nil {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	return nil
}
