package apiserver

import (
	"testing"
	"time"
)

func TestDue(t *testing.T) {
	const age = 10 * time.Minute
	begin := time.Unix(1_700_000_000, 0)
	at := func(minutes float64) time.Time { return begin.Add(time.Duration(minutes * float64(time.Minute))) }
	for name, c := range map[string]struct {
		share  float64
		opened time.Time
		grew   time.Time
		now    time.Time
		due    bool
	}{
		"young":                                {0, at(0), time.Time{}, at(9.9), false},
		"the first to be old":                  {0, at(0), time.Time{}, at(10), true},
		"one in the middle":                    {0.5, at(0), time.Time{}, at(14.9), false},
		"one in the middle, old":               {0.5, at(0), time.Time{}, at(15), true},
		"the last":                             {0.99, at(0), time.Time{}, at(20), true},
		"a server came, and it is the first":   {0, at(0), at(5), at(5), true},
		"a server came, and its turn is later": {0.5, at(0), at(5), at(5.9), false},
		"a server came a minute ago":           {0.5, at(0), at(5), at(6), true},
		"opened since the server came":         {0, at(5.1), at(5), at(9), false},
	} {
		if never := new(turnover); never.due(connAge{c.opened, c.share}, c.now) {
			t.Errorf("%s: due without an age", name)
		}
		o := turnover{age: age}
		if !c.grew.IsZero() {
			o.grew.Store(c.grew.UnixNano())
		}
		if got := o.due(connAge{c.opened, c.share}, c.now); got != c.due {
			t.Errorf("%s: due is %v", name, got)
		}
	}
}
