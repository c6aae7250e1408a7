package cli

import (
	"bytes"
	"strings"
	"testing"

	"barque.dev/internal/node"
	"barque.dev/internal/store/etcd"
)

func TestMayRecover(t *testing.T) {
	gone := node.RecoverMember{Name: "b", Peer: "https://10.0.0.2:2380", Votes: true}
	there := gone
	there.Answers = true
	for name, tt := range map[string]struct {
		plan    node.RecoverPlan
		force   bool
		refused string // "" when it may
	}{
		"most are lost":                     {plan: node.RecoverPlan{Dropped: []node.RecoverMember{gone, gone}}},
		"it leads":                          {plan: node.RecoverPlan{Quorum: true, Dropped: []node.RecoverMember{gone}}, refused: "has a quorum"},
		"it is alone":                       {refused: "a cluster of its own already"},
		"it is alone, but not done":         {plan: node.RecoverPlan{Begun: true}},
		"most answer":                       {plan: node.RecoverPlan{Dropped: []node.RecoverMember{there, gone}}, refused: "most servers answer"},
		"most answer, and it has begun":     {plan: node.RecoverPlan{Begun: true, Dropped: []node.RecoverMember{there, gone}}},
		"most answer, and it is insisted":   {plan: node.RecoverPlan{Dropped: []node.RecoverMember{there, gone}}, force: true},
		"a learner that answers is no help": {plan: node.RecoverPlan{Dropped: []node.RecoverMember{gone, gone, {Name: "c", Answers: true}}}},
	} {
		t.Run(name, func(t *testing.T) {
			err := mayRecover(&tt.plan, tt.force)
			if (err == nil) != (tt.refused == "") || err != nil && !strings.Contains(err.Error(), tt.refused) {
				t.Errorf("%v, want %q", err, tt.refused)
			}
		})
	}
}

// Whoever chooses between servers is told what to compare.
func TestPrintPlan(t *testing.T) {
	plan := &node.RecoverPlan{
		Server: "a", Log: etcd.LogEnd{Term: 7, Index: 4211}, Revision: 4000, Begun: true,
		Dropped: []node.RecoverMember{{Name: "b", Peer: "https://10.0.0.2:2380"}},
	}
	var out bytes.Buffer
	printPlan(&out, plan)
	for _, want := range []string{"server a ends at term 7, index 4211 (revision 4000 or later)", "It can only be finished", "at a higher term or at the same term and a higher index"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, out.String())
		}
	}
}
