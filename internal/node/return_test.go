package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"barque.dev/internal/cluster/join"
)

// A server that comes back tries all others before it gives up: one of them may be mistaken.
func TestEnterBy(t *testing.T) {
	conflict, unknown := &join.Refusal{Code: join.CodeConflict, Message: "it was removed"}, &join.Refusal{Code: join.CodeUnknownToken, Message: "who is that"}
	later, off := &join.Refusal{Code: join.CodeTryAgain, Message: "no quorum"}, fmt.Errorf("%w: refused", join.ErrUnreachable)
	forGood := func(list ...error) [][]error { return [][]error{list, list, list, list, list, list, list} }
	for what, tt := range map[string]struct {
		rounds [][]error // what each of the entrances a, b and c answers; nil takes it in
		by     string    // who takes it in
		says   string    // or why nobody does
		tries  int
	}{
		"the first takes it in":                       {rounds: [][]error{{nil}}, by: "a", tries: 1},
		"the first doesn't know it":                   {rounds: [][]error{{unknown, nil}}, by: "b", tries: 2},
		"the first says it was removed":               {rounds: [][]error{{conflict, off, nil}}, by: "c", tries: 3},
		"all refuse":                                  {rounds: forGood(conflict, unknown, conflict), says: "by c: it was removed", tries: 15},
		"one refuses, the others are off":             {rounds: forGood(off, conflict, off), says: "by b: it was removed", tries: 15},
		"one that was off takes it in":                {rounds: [][]error{{conflict, off, off}, {conflict, off, off}, {conflict, off, nil}}, by: "c", tries: 9},
		"one refuses, another is not sure":            {rounds: append(forGood(conflict, later, off), []error{conflict, nil}), by: "b", tries: 23},
		"all are off for long":                        {rounds: append(forGood(off, off, off), []error{nil}), by: "a", tries: 22},
		"a refusal counts anew after one not so sure": {rounds: append([][]error{{conflict, off, off}, {conflict, later, off}}, forGood(conflict, off, off)...), says: "by a: it was removed", tries: 21},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tries, entrances := 0, []string{"a", "b", "c"}
				got, err := enterBy(t.Context(), entrances, slog.New(slog.DiscardHandler), func(_ context.Context, url string) (*join.ServerJoin, error) {
					round := tries / len(entrances)
					tries++
					if err := tt.rounds[round][slices.Index(entrances, url)]; err != nil {
						return nil, err
					}
					return &join.ServerJoin{CA: []byte(url)}, nil
				})
				switch {
				case tt.by != "" && (err != nil || string(got.CA) != tt.by):
					t.Errorf("%v, %v", got, err)
				case tt.by == "" && (err == nil || !strings.HasSuffix(err.Error(), tt.says)):
					t.Errorf("%v, want %s", err, tt.says)
				}
				if tries != tt.tries {
					t.Errorf("%d tries, want %d", tries, tt.tries)
				}
			})
		})
	}
}

// It tries until it is told to end.
func TestEnterByEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		_, err := enterBy(ctx, []string{"a"}, slog.New(slog.DiscardHandler), func(context.Context, string) (*join.ServerJoin, error) {
			return nil, join.ErrUnreachable
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

// A founder that loses its data as soon as another server has joined finds its way back by that one.
func TestTheFirstToJoinIsAnEntrance(t *testing.T) {
	dir := t.TempDir()
	server := func() *Server {
		return &Server{cfg: ServerConfig{HTTPSPort: 6443, AdvertiseAddress: netip.MustParseAddr("10.0.0.1")}, home: &home{dir: dir}}
	}
	facts := join.Facts{ClusterCIDRs: []string{"10.42.0.0/16"}, ServiceCIDRs: []string{"10.43.0.0/16"}, Servers: []string{"https://10.0.0.1:6443"}}
	s := server()
	for _, peer := range []string{"https://10.0.0.2:2380", "https://10.0.0.2:2380", "https://[fd00::3]:2380"} {
		if err := s.expect(peer, facts); err != nil {
			t.Fatal(err)
		}
	}
	again := server()
	if err := again.recallFacts(); err != nil {
		t.Fatal(err)
	}
	if got, want := again.entrances(), []string{"https://[fd00::3]:6443", "https://10.0.0.2:6443"}; !slices.Equal(got, want) {
		t.Errorf("entrances %v, want %v", got, want)
	}
	if err := s.expect("://", facts); err == nil {
		t.Error("nonsense is an address")
	}
}

func TestRemovalIsNotHasty(t *testing.T) {
	for _, tt := range []struct {
		remove, replace time.Duration
		hasty           bool
		says            string
	}{
		{DefaultRemoveDead, DefaultReplaceDead, false, ""},
		{0, 0, false, ""},
		{10 * time.Minute, time.Minute, false, ""},
		{10*time.Minute - 1, 0, false, "--remove-dead-after"},
		{-time.Hour, 0, false, "--remove-dead-after"},
		{0, time.Minute - 1, false, "--replace-dead-after"},
		{3 * time.Second, 2 * time.Second, true, ""},
		{time.Second - 1, 0, true, "--remove-dead-after"},
		{0, time.Second - 1, true, "--replace-dead-after"},
	} {
		c := ServerConfig{RemoveDeadAfter: tt.remove, ReplaceDeadAfter: tt.replace, HastyRemoval: tt.hasty}
		err := c.checkRemoval()
		if (err == nil) != (tt.says == "") || err != nil && !strings.HasPrefix(err.Error(), tt.says) {
			t.Errorf("%v, %v, hasty %v: %v", tt.remove, tt.replace, tt.hasty, err)
		}
	}
}
