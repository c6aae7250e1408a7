package upgrade

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

// fleet is a cluster of fakes, and what was done to them.
type fleet struct {
	did []string
	sum map[string]string
	// refuses, reverts and sickens name a machine that does so.
	refuses, reverts, sickens string
}

type fakeRemote struct {
	f    *fleet
	name string
	last *Record
}

func (r fakeRemote) Status(context.Context) (Status, error) {
	return Status{Machine: r.name, Sum: r.f.sum[r.name], Running: Version{Barque: r.f.sum[r.name]}, Last: *r.last}, nil
}

func (r fakeRemote) Send(_ context.Context, sum string, program io.Reader) error {
	data, err := io.ReadAll(program)
	if err != nil || string(data) != "program" || sum != "new" {
		return fmt.Errorf("sent %q, %q, %w", data, sum, err)
	}
	r.f.did = append(r.f.did, "send "+r.name)
	if r.f.refuses == r.name {
		return errors.New("wrong machine")
	}
	return nil
}

func (r fakeRemote) Switch(_ context.Context, sum string) error {
	r.f.did = append(r.f.did, "switch "+r.name)
	*r.last = Record{Phase: Done, Sum: sum, From: Version{Barque: r.f.sum[r.name]}}
	if r.f.reverts == r.name {
		r.last.Phase, r.last.Reason = Reverted, "it was not ready"
		return nil
	}
	r.f.sum[r.name] = sum
	return nil
}

func (r fakeRemote) Back(context.Context) error {
	r.f.did = append(r.f.did, "back "+r.name)
	r.f.sum[r.name] = "old"
	return nil
}

func TestRollout(t *testing.T) {
	machines := []Machine{{Name: "a", Server: true, Leads: true}, {Name: "b", Server: true}, {Name: "c"}, {Name: "d", Server: true}}
	sends := []string{"snapshot", "send b", "send a", "send c"}
	for name, c := range map[string]struct {
		fleet
		want string // the error
		did  []string
	}{
		"well":    {fleet{}, "", append(slices.Clone(sends), "switch b", "switch a", "switch c")},
		"refused": {fleet{refuses: "a"}, "nothing was changed: a does not take the program", []string{"snapshot", "send b", "send a"}},
		"reverts": {fleet{reverts: "a"}, "1 of 3 machines were upgraded", append(slices.Clone(sends), "switch b", "switch a")},
		"sick":    {fleet{sickens: "b"}, "not well with it", append(slices.Clone(sends), "switch b", "back b")},
	} {
		t.Run(name, func(t *testing.T) {
			f := c.fleet
			f.sum = map[string]string{"a": "old", "b": "old", "c": "old", "d": "new"} // d was upgraded earlier
			lasts := map[string]*Record{"a": {}, "b": {}, "c": {}, "d": {}}
			r := Rollout{
				Sum: "new", Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("program")), nil },
				Remote: func(m Machine) Remote { return fakeRemote{&f, m.Name, lasts[m.Name]} },
				Healthy: func(context.Context) error {
					if f.sickens != "" && f.sum[f.sickens] == "new" {
						return errors.New("no leader")
					}
					return nil
				},
				Snapshot: func(context.Context) (string, error) { f.did = append(f.did, "snapshot"); return "there", nil },
				Say:      t.Logf,
				Pace:     Pace{Machine: time.Second, Heal: 10 * time.Millisecond, Settle: time.Millisecond, Look: time.Millisecond},
			}
			err := r.Run(t.Context(), machines)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if !slices.Equal(f.did, c.did) {
				t.Errorf("did %q, want %q", f.did, c.did)
			}
		})
	}
}
