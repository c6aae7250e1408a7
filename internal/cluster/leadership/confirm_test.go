package leadership_test

import (
	"context"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"barque.dev/internal/cluster/leadership"
	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

// confirms asks whether a server leads, with nothing that it knows from before.
func (s *server) confirms(t *testing.T, within time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	since := time.Now()
	asked, err := s.l.Confirm(ctx, since)
	if err == nil && asked.Before(since) {
		t.Errorf("%s confirms that it led %v before the question", s.name, since.Sub(asked))
	}
	return err
}

// The leader alone can show that it leads, and only with a majority.
func TestConfirm(t *testing.T) {
	c := etcdtest.New(t, 3, nil)
	var servers []*server
	for _, m := range c.Running() {
		s, _ := serve(t, m, leadership.Config{Name: m.Name(), Member: m})
		servers = append(servers, s)
	}
	first := c.Leader()
	servers[first].lead(t)
	for i, s := range servers {
		if err := s.confirms(t, 5*time.Second); (err == nil) != (i == first) {
			t.Errorf("%s confirms that it leads: %v; %s does", s.name, err, servers[first].name)
		}
	}
	before := time.Now()
	if asked, err := servers[first].l.Confirm(t.Context(), before.Add(-time.Minute)); err != nil || asked.After(before) {
		t.Errorf("it asks a majority about what it knows: %v, %v", asked, err)
	}
	for i := range servers {
		if i != first {
			c.Crash(i)
		}
	}
	if err := servers[first].confirms(t, 200*time.Millisecond); err == nil {
		t.Error("a leader without a majority confirms that it leads")
	}
}

// A leader that finds its fence gone has stopped to lead when it knows.
func TestConfirmNoticesTheLoss(t *testing.T) {
	c := etcdtest.New(t, 1, nil)
	m := c.Member(0)
	s, _ := serve(t, m, leadership.Config{Name: "n", Member: m})
	ctx := s.lead(t)
	if _, err := m.Server().DeleteRange(t.Context(), &etcdserverpb.DeleteRangeRequest{Key: []byte(mustFence(t, ctx).Key)}); err != nil {
		t.Fatal(err)
	}
	// It takes the fence again at once when it notices by itself; either way, not under the old one.
	if err := s.confirms(t, 5*time.Second); err == nil && ctx.Err() == nil {
		t.Error("it confirms that it leads without its fence")
	}
	if ctx.Err() == nil {
		t.Error("it knows that it leads no longer, and its work goes on")
	}
}

func TestConfirmOnRemote(t *testing.T) {
	client := etcdtest.FreeURL(t)
	c := etcdtest.New(t, 1, func(_ int, cfg *etcd.Config) { cfg.ClientListen = client })
	r, err := etcd.Dial(t.Context(), etcd.RemoteConfig{Endpoints: []string{client}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	s, _ := serve(t, r, leadership.Config{Name: "n", Remote: r})
	ctx := s.lead(t)
	if err := s.confirms(t, 5*time.Second); err != nil {
		t.Errorf("the leader can't confirm that it leads: %v", err)
	}
	if _, err := c.Member(0).Server().DeleteRange(t.Context(), &etcdserverpb.DeleteRangeRequest{Key: []byte(mustFence(t, ctx).Key)}); err != nil {
		t.Fatal(err)
	}
	if err := s.confirms(t, 5*time.Second); err == nil {
		t.Error("it confirms that it leads without its key")
	}
	if ctx.Err() == nil {
		t.Error("it knows that it leads no longer, and its work goes on")
	}
}
