// Package check judges the history of a drill. All of it is pure: a history goes in, violations come
// out, each a sentence with the revisions and times that show it.
//
// What must hold:
//
//   - linearizable: all operations on an object can be put in one order that respects real time and
//     explains every answer (by porcupine). An operation whose outcome is unknown may take effect at
//     any later time, or never.
//   - lost: an acknowledged conditional write has nothing between itself and the revision that it was
//     made on; the object has not gone back since.
//   - list: a consistent list shows each object as it was at the list's revision, which is no older than
//     anything acknowledged before the list was asked for.
//   - watch: a watch shows, from its list to its last event, each change once, in rising order, with
//     nothing left out.
//   - fold: what a watcher has by its list and all its events is what the last list shows.
//   - converged: all servers end with the same objects, byte for byte.
//
// The revisions at which something happened are known from acknowledgements, reads and the events of all
// watchers together ([Log]); a change that nobody was told of is no violation where no watcher looked.
package check

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"barque.dev/internal/drill/history"
)

// A Rule names what must hold.
type Rule string

// The rules, as the package comment has them.
const (
	Linearizable Rule = "linearizable"
	Lost         Rule = "lost"
	Listed       Rule = "list"
	Watched      Rule = "watch"
	Folded       Rule = "fold"
	Converged    Rule = "converged"
)

// A Violation is a rule that did not hold.
type Violation struct {
	Rule Rule   `json:"rule"`
	Key  string `json:"key,omitempty"` // of the object, where it is one
	What string `json:"what"`
}

func (v Violation) String() string {
	if v.Key == "" {
		return fmt.Sprintf("%s: %s", v.Rule, v.What)
	}
	return fmt.Sprintf("%s: %s: %s", v.Rule, v.Key, v.What)
}

// A Verdict is what a history was found to be.
type Verdict struct {
	Violations []Violation `json:"violations"`
	// Undecided are objects whose operations could not be put in order, nor shown to have none,
	// within the time given.
	Undecided []string `json:"undecided,omitempty"`
	// Operations, Objects, Lists and Events count what was judged; Unknown those of the operations
	// whose outcome is not known.
	Operations int `json:"operations"`
	Unknown    int `json:"unknown"`
	Objects    int `json:"objects"`
	Lists      int `json:"lists"`
	Events     int `json:"events"`
}

// Add adds what was found of another history.
func (v *Verdict) Add(o Verdict) {
	v.Violations = append(v.Violations, o.Violations...)
	v.Undecided = append(v.Undecided, o.Undecided...)
	v.Operations += o.Operations
	v.Unknown += o.Unknown
	v.Objects += o.Objects
	v.Lists += o.Lists
	v.Events += o.Events
}

// All checks everything. The time bounds the search for an order of one object's operations.
func All(h *history.History, perObject time.Duration) Verdict {
	log, violations := NewLog(h)
	v := Verdict{Operations: len(h.Ops), Lists: len(h.Lists)}
	for i := range h.Ops {
		if h.Ops[i].Outcome == history.Unknown {
			v.Unknown++
		}
	}
	for _, w := range h.Watches {
		for _, s := range w.Sessions {
			v.Events += len(s.Events)
		}
	}
	v.Violations = slices.Concat(violations, log.Changes(), Writes(h, log), Lists(h, log), Watches(h, log), Folds(h), Copies(h))
	orders, undecided, objects := Order(h, log, perObject)
	v.Violations = append(v.Violations, orders...)
	v.Undecided, v.Objects = undecided, objects
	slices.SortFunc(v.Violations, func(a, b Violation) int {
		return cmp.Or(cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Key, b.Key), cmp.Compare(a.What, b.What))
	})
	return v
}
