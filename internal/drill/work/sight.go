// Package work is what controllers have to do during a drill, and what must hold of what they did.
//
// A [Load] keeps a Deployment, a StatefulSet, Jobs and Services busy in a round's namespace: the Deployment is rolled out
// again and again, the StatefulSet's pods are deleted, Jobs come and go, and Services are made through all servers at once.
// An [Observer] writes down what watches show of them, in the order of revisions, and which pods' processes run on which
// machine, as the kernel knows it. [Judge] is pure: what was seen goes in, violations come out.
//
// What must hold, at every revision:
//
//   - surge: the Deployment has no more pods than its replicas and what may be added to them in an update, of
//     those that are not about to end.
//   - ordinal: never do processes of two pods of the same name run at the same time, on whichever machines.
//   - counted: a Job has counted no more completions than pods of it had succeeded by then.
//   - unique: no two Services have the same cluster IP, nor the same node port.
package work

import (
	"time"

	"barque.dev/internal/drill/check"
)

// The rules, as the package comment has them.
const (
	Surge   check.Rule = "surge"
	Ordinal check.Rule = "ordinal"
	Counted check.Rule = "counted"
	Unique  check.Rule = "unique"
)

// A Kind of object that is looked at.
type Kind string

// The kinds.
const (
	Pod     Kind = "Pod"
	Job     Kind = "Job"
	Service Kind = "Service"
)

// A Sight is one object as a watch, or a list, showed it at a revision.
type Sight struct {
	Kind     Kind   `json:"kind"`
	Revision int64  `json:"revision"`
	Name     string `json:"name,omitempty"`
	UID      string `json:"uid,omitempty"`
	// Reset says that the watch was lost and begins anew: nothing is known of the kind, and what follows at the same
	// revision is all that there is. The other fields are empty.
	Reset bool `json:"reset,omitempty"`
	// Gone says that it was deleted.
	Gone bool `json:"gone,omitempty"`

	// Of is what a pod belongs to: the Deployment, the StatefulSet, or a Job by its UID.
	Of string `json:"of,omitempty"`
	// Active says of a pod that it is neither ended nor about to end; Succeeded that it has ended well.
	Active    bool `json:"active,omitempty"`
	Succeeded bool `json:"succeeded,omitempty"`
	// Completions is how many a Job has counted.
	Completions int `json:"completions,omitempty"`
	// Takes are the cluster IPs and node ports of a Service.
	Takes []string `json:"takes,omitempty"`
}

// A Sample is which pods had processes, by UID, on all machines. They were not looked at in one moment: who is in two samples
// in turn has run in between.
type Sample struct {
	At      time.Duration `json:"at"`
	Running []string      `json:"running"`
}

// A Record is what was seen in a round. Sights are in the order in which they came, each kind's by revision.
type Record struct {
	Sights  []Sight  `json:"sights"`
	Samples []Sample `json:"samples"`
}
