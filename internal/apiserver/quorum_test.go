package apiserver_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/store/etcd/etcdtest"
)

// Whom the loss of the quorum hits under way is told to try again, elsewhere; who comes later learns the reason at once,
// also from a client that tries ten times if it is told to.
func TestWithoutQuorum(t *testing.T) {
	members := etcdtest.New(t, 3, nil)
	c := startOn(t, members.Member(0), nil)
	c.wait(t)
	admin := c.admin(t)
	ask := func(query string) (answer, bool) {
		t.Helper()
		fresh := false
		trace := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { fresh = !i.Reused }})
		req, err := http.NewRequestWithContext(trace, "GET", c.url+"/api/v1/namespaces"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := admin.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer{resp.StatusCode, resp.Header, string(b)}, fresh
	}
	get := func() (answer, bool) { return ask("/default") }
	if a, _ := get(); a.code != http.StatusOK {
		t.Fatalf("with a quorum: %d", a.code)
	}
	stale := func(lost bool) {
		t.Helper()
		for _, query := range []string{"/default?resourceVersion=0", "?resourceVersion=0", "?resourceVersion=1&watch=1&timeoutSeconds=1"} {
			a, _ := ask(query)
			if w := a.header.Get("Warning"); a.code != http.StatusOK || strings.HasPrefix(w, `299 - "stale: `) != lost {
				t.Errorf("GET %s: %d, warning %q; the quorum is lost: %t", query, a.code, w, lost)
			}
		}
	}
	stale(false)
	// Asked all the while: how long a loss lasts is counted from its beginning, and to crash takes seconds here.
	var crashes sync.WaitGroup
	for i := 1; i <= 2; i++ {
		crashes.Go(func() { members.Crash(i) })
	}
	defer crashes.Wait()

	again, refused := 0, 0
	eventually(t, "the loss is told as one that lasts", func() error {
		a, fresh := get()
		if a.code != http.StatusServiceUnavailable {
			return fmt.Errorf("answered %d", a.code)
		}
		refused++
		if refused > 1 && !fresh {
			t.Error("a refused client came back on the same connection")
		}
		if wait := a.header.Get("Retry-After"); wait != "" {
			again++
			return fmt.Errorf("try again in %s s", wait)
		}
		if !strings.Contains(a.body, "no leader for") { // a leader that lost its followers takes a while to notice
			return errors.New(a.body)
		}
		return nil
	})
	stale(true)
	if again == 0 {
		t.Error("nobody was told to try again when the quorum was lost")
	}
	began := time.Now()
	_, err := c.client(t).CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{})
	if !apierrors.IsServiceUnavailable(err) || !apierrors.HasStatusCause(err, registry.CauseNoQuorum) || !strings.Contains(err.Error(), "no quorum: no leader") {
		t.Errorf("a client is told %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("after %v", took)
	}
}
