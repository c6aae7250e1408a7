package work

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

const (
	// watchTime bounds one watch: a connection that died without a word is noticed by then, and nothing is missed.
	watchTime  = 5 * time.Second
	retryAfter = 50 * time.Millisecond
	sampleTime = 100 * time.Millisecond
)

// An Observer collects a [Record]. Its methods are for one round.
type Observer struct {
	namespace string
	client    kubernetes.Interface
	// pods lists those that run on any machine, by UID.
	pods  func() ([]string, error)
	began time.Time

	mu     sync.Mutex
	record Record
	err    error
}

// NewObserver makes an observer of a namespace; pods lists the UIDs of those that run on any machine.
func NewObserver(client kubernetes.Interface, namespace string, pods func() ([]string, error)) *Observer {
	return &Observer{namespace: namespace, client: client, pods: pods, began: time.Now()}
}

// Run observes until ctx ends.
func (o *Observer) Run(ctx context.Context) {
	var running sync.WaitGroup
	for _, w := range o.watched() {
		running.Go(func() { o.follow(ctx, w) })
	}
	running.Go(func() { o.sample(ctx) })
	running.Wait()
}

// Record is what was seen, once Run has returned. The error says what could not be looked at.
func (o *Observer) Record() (*Record, error) { return &o.record, o.err }

// Write keeps the record in a file.
func (r *Record) Write(path string) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode what was seen: %w", err)
	}
	return os.WriteFile(path, data, 0o600)
}

// sample looks at what runs, again and again.
func (o *Observer) sample(ctx context.Context) {
	tick := time.NewTicker(sampleTime)
	defer tick.Stop()
	for {
		at := time.Since(o.began)
		running, err := o.pods()
		o.mu.Lock()
		o.record.Samples = append(o.record.Samples, Sample{at, running})
		if err != nil {
			o.err = err
		}
		o.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// watched is how a kind is listed and watched.
type watched struct {
	kind  Kind
	list  func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error)
}

func (o *Observer) watched() []watched {
	pods, jobs, services := o.client.CoreV1().Pods(o.namespace), o.client.BatchV1().Jobs(o.namespace), o.client.CoreV1().Services(o.namespace)
	return []watched{
		{Pod, func(ctx context.Context, l metav1.ListOptions) (runtime.Object, error) { return pods.List(ctx, l) }, pods.Watch},
		{Job, func(ctx context.Context, l metav1.ListOptions) (runtime.Object, error) { return jobs.List(ctx, l) }, jobs.Watch},
		{Service, func(ctx context.Context, l metav1.ListOptions) (runtime.Object, error) { return services.List(ctx, l) }, services.Watch},
	}
}

// errGone: what came after the last event is not known any more.
var errGone = errors.New("the revision is gone")

// follow lists a kind and watches it from there. A watch that ends is taken up where it ended.
func (o *Observer) follow(ctx context.Context, w watched) {
	seen := ""
	for ctx.Err() == nil {
		var err error
		if seen == "" {
			seen, err = o.list(ctx, w)
		} else {
			seen, err = o.watch(ctx, w, seen)
		}
		if errors.Is(err, errGone) {
			seen = ""
		}
		if err == nil {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryAfter):
		}
	}
}

func (o *Observer) list(ctx context.Context, w watched) (revision string, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	list, err := w.list(ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	found, err := meta.ListAccessor(list)
	if err != nil {
		return "", err
	}
	at, err := strconv.ParseInt(found.GetResourceVersion(), 10, 64)
	if err != nil {
		return "", err
	}
	sights := []Sight{{Kind: w.kind, Revision: at, Reset: true}}
	err = meta.EachListItem(list, func(object runtime.Object) error {
		s, err := sight(object)
		s.Revision = at
		sights = append(sights, s)
		return err
	})
	if err != nil {
		return "", err
	}
	o.add(sights...)
	return found.GetResourceVersion(), nil
}

// watch follows one watch, and returns the revision that it has come to.
func (o *Observer) watch(ctx context.Context, w watched, from string) (seen string, err error) {
	ctx, cancel := context.WithTimeout(ctx, watchTime)
	defer cancel()
	watching, err := w.watch(ctx, metav1.ListOptions{ResourceVersion: from, AllowWatchBookmarks: true})
	if apierrors.IsGone(err) || apierrors.IsResourceExpired(err) {
		return from, errGone
	}
	if err != nil {
		return from, err
	}
	defer watching.Stop()
	for e := range watching.ResultChan() {
		if e.Type == watch.Error {
			err := apierrors.FromObject(e.Object)
			if apierrors.IsGone(err) || apierrors.IsResourceExpired(err) {
				err = errGone
			}
			return from, err
		}
		found, err := meta.Accessor(e.Object)
		if err != nil {
			return from, err
		}
		from = found.GetResourceVersion()
		if e.Type == watch.Bookmark {
			continue
		}
		s, err := sight(e.Object)
		if err != nil {
			return from, err
		}
		s.Gone = e.Type == watch.Deleted
		o.add(s)
	}
	return from, nil
}

func (o *Observer) add(sights ...Sight) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.record.Sights = append(o.record.Sights, sights...)
}

// sight is what counts here of an object.
func sight(object runtime.Object) (Sight, error) {
	found, err := meta.Accessor(object)
	if err != nil {
		return Sight{}, err
	}
	s := Sight{Name: found.GetName(), UID: string(found.GetUID())}
	if s.Revision, err = strconv.ParseInt(found.GetResourceVersion(), 10, 64); err != nil {
		return s, fmt.Errorf("%s: resourceVersion: %w", s.Name, err)
	}
	switch of := object.(type) {
	case *corev1.Pod:
		s.Kind, s.Of = Pod, of.Labels[label]
		if controller := metav1.GetControllerOf(of); controller != nil && controller.Kind == string(Job) {
			s.Of = string(controller.UID)
		}
		s.Succeeded = of.Status.Phase == corev1.PodSucceeded
		s.Active = !s.Succeeded && of.Status.Phase != corev1.PodFailed && of.DeletionTimestamp == nil
	case *batchv1.Job:
		s.Kind, s.Completions = Job, int(of.Status.Succeeded)
	case *corev1.Service:
		s.Kind = Service
		for _, ip := range of.Spec.ClusterIPs {
			if ip != corev1.ClusterIPNone {
				s.Takes = append(s.Takes, "cluster IP "+ip)
			}
		}
		for _, p := range of.Spec.Ports {
			if p.NodePort != 0 {
				s.Takes = append(s.Takes, fmt.Sprintf("node port %d/%s", p.NodePort, p.Protocol))
			}
		}
	default:
		return s, fmt.Errorf("%T is not looked at", object)
	}
	return s, nil
}
