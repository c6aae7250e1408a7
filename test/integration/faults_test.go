package integration

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"barque.dev/internal/local"
)

// plugged pulls the machine's cable, or puts it back; the machine goes on.
func (c *cluster) plugged(t testing.TB, m *local.Machine, in bool) {
	t.Helper()
	if err := m.SetCable(in); err != nil {
		t.Fatal(err)
	}
}

func signal(t testing.TB, m *local.Machine, s syscall.Signal) {
	t.Helper()
	if err := m.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// A writer makes conditional updates through the virtual IP, each on top of the one before.
type writer struct {
	stop func() writerReport
	// acked is called by tests to learn how many updates were acknowledged.
	acked func() int
}

type writerReport struct {
	writes int
	gap    time.Duration // the longest time between two acknowledged writes
	lost   string        // says so when an acknowledged write was lost
}

// write starts a writer on an object of its own. Its requests and dials are short, so that one that
// hangs at a dead server is made again; and it makes them itself, since client-go waits for a
// second before it does.
func (c *cluster) write(t *testing.T, ns, name string) *writer {
	t.Helper()
	config, err := c.Config()
	if err != nil {
		t.Fatal(err)
	}
	config.Timeout = time.Second
	config.Dial = (&net.Dialer{Timeout: 200 * time.Millisecond}).DialContext
	client := clientFor(t, config).CoreV1()
	var object *corev1.ConfigMap
	eventually(t, bound, name+" is there to write to", func() (err error) {
		object, err = client.ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"n": "0"}}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) { // by an attempt that was not answered in time
			object, err = client.ConfigMaps(ns).Get(t.Context(), name, metav1.GetOptions{})
		}
		return err
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ask := func(request *rest.Request) (*corev1.ConfigMap, error) {
		answer := &corev1.ConfigMap{}
		return answer, request.MaxRetries(0).Namespace(ns).Resource("configmaps").Name(name).Do(ctx).Into(answer)
	}
	var mu sync.Mutex
	var report writerReport
	var done sync.WaitGroup
	done.Go(func() {
		last := time.Now()
		for ctx.Err() == nil {
			next := object.DeepCopy()
			next.Data["n"] = strconv.Itoa(report.writes + 1)
			updated, err := ask(client.RESTClient().Put().Body(next))
			if err != nil {
				if updated, err = ask(client.RESTClient().Get()); err != nil {
					continue
				}
				// What was not acknowledged may or may not have been written.
				switch n, _ := strconv.Atoi(updated.Data["n"]); n {
				case report.writes:
					object = updated
					continue
				case report.writes + 1:
				default:
					mu.Lock()
					report.lost = fmt.Sprintf("%d was acknowledged, and %d is there", report.writes, n)
					mu.Unlock()
					return
				}
			}
			object = updated
			mu.Lock()
			report.writes++
			report.gap = max(report.gap, time.Since(last))
			mu.Unlock()
			last = time.Now()
		}
	})
	stop := sync.OnceValue(func() writerReport { cancel(); done.Wait(); return report })
	t.Cleanup(func() { stop() })
	return &writer{stop: stop, acked: func() int { mu.Lock(); defer mu.Unlock(); return report.writes }}
}

// goesOn waits until the writer was acknowledged some more writes.
func (w *writer) goesOn(t *testing.T) {
	t.Helper()
	from := w.acked()
	eventually(t, bound, "writes through the virtual IP go on", func() error {
		if n := w.acked() - from; n < 10 {
			return fmt.Errorf("%d since", n)
		}
		return nil
	})
}

// well stops the writer and checks what it saw.
func (w *writer) well(t *testing.T, what string, longest time.Duration) {
	t.Helper()
	r := w.stop()
	t.Logf("%s: %d writes, longest gap %v", what, r.writes, r.gap.Round(time.Millisecond))
	if r.lost != "" {
		t.Errorf("%s: an acknowledged write was lost: %s", what, r.lost)
	}
	if r.gap > longest {
		t.Errorf("%s: no write was acknowledged for %v", what, r.gap)
	}
}

// visit asks a URL over and over, with a new connection each time, until the test ends. It returns
// the longest time without an answer so far.
func visit(t *testing.T, url string) (longest func() time.Duration) {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var mu sync.Mutex
	var most time.Duration
	last := time.Now()
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(25 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return
			}
			reply, err := client.Do(request)
			if err != nil {
				continue
			}
			_ = reply.Body.Close()
			if reply.StatusCode == http.StatusOK {
				mu.Lock()
				most = max(most, time.Since(last))
				last = time.Now()
				mu.Unlock()
			}
		}
	})
	t.Cleanup(func() { cancel(); done.Wait() })
	return func() time.Duration { mu.Lock(); defer mu.Unlock(); return max(most, time.Since(last)) }
}

// leader is the machine that holds the leader's lease.
func (c *cluster) leader(t testing.TB) *local.Machine {
	t.Helper()
	var found *local.Machine
	eventually(t, bound, "somebody leads", func() error {
		name, err := c.holder(t.Context(), c.client(t))
		for _, m := range c.Machines {
			if m.Name == name && m.Running() {
				found = m
				return nil
			}
		}
		return fmt.Errorf("%q does: %w", name, err)
	})
	return found
}

func (c *cluster) holder(ctx context.Context, client kubernetes.Interface) (string, error) {
	lease, err := client.CoordinationV1().Leases(metav1.NamespaceSystem).Get(ctx, "kube-scheduler", metav1.GetOptions{})
	if err != nil || lease.Spec.HolderIdentity == nil {
		return "", err
	}
	return *lease.Spec.HolderIdentity, nil
}

// others are the machines beside one.
func (c *cluster) others(m *local.Machine) []*local.Machine {
	var list []*local.Machine
	for _, o := range c.Machines {
		if o.Name != m.Name {
			list = append(list, o)
		}
	}
	return list
}

// lives are the signs of life that pods leave in a directory which all machines share: each pod
// touches a file NAME.NODE.UID all the time.
func lives(dir, pod string) map[string]time.Time {
	found := map[string]time.Time{}
	files, _ := filepath.Glob(filepath.Join(dir, pod+".*"))
	for _, f := range files {
		if info, err := os.Stat(f); err == nil {
			found[strings.TrimPrefix(filepath.Base(f), pod+".")] = info.ModTime()
		}
	}
	return found
}
