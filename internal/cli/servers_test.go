package cli

import (
	"strings"
	"testing"
	"time"

	"barque.dev/internal/cluster/membership"
)

func TestRoleOf(t *testing.T) {
	for want, m := range map[string]membership.Server{
		"leader":  {Name: "a", Leader: true},
		"voter":   {Name: "a"},
		"joining": {Learner: true},
		"standby": {Name: "a", Learner: true},
		"witness": {Name: "a", Witness: "https://a"},
	} {
		if got := roleOf(m); got != want {
			t.Errorf("%+v is %s, want %s", m, got, want)
		}
	}
}

func TestOutlook(t *testing.T) {
	standby := membership.Server{Name: "f", Learner: true, Answers: true}
	for want, list := range map[string]membership.List{
		"there is no quorum":                         {Spare: -1},
		"no server that answers":                     {Spare: 0},
		"one server that answers":                    {Spare: 1},
		"2 servers that answer":                      {Spare: 2},
		"until `barque server":                       {},
		"reaches for 72h0m0s is r":                   {Grace: 72 * time.Hour, Replace: time.Hour},
		"reaches for 1h0m0s is replaced by one of 2": {Grace: 72 * time.Hour, Replace: time.Hour, Servers: []membership.Server{standby, standby}},
		"reaches for 30m0s is replaced by one of 1": {
			Grace: 30 * time.Minute, Replace: time.Hour, Servers: []membership.Server{standby, {Name: "g", Learner: true}, {Learner: true}},
		},
	} {
		if got := outlook(list); !strings.Contains(got, want) {
			t.Errorf("%+v: %q, want %q", list, got, want)
		}
	}
}
