// Package history holds what the clients of a drill did and saw, so that it can be judged afterwards:
// each operation on an object with the times between which it must have taken effect, each list, and
// each watch from the list that it began with to its last event.
//
// Values are unique: no two writes of a history write the same one, so that whoever reads a value
// knows whose write it read. All revisions are etcd's, of the object unless a field says otherwise.
package history

import "time"

// A Kind is what an operation asks for.
type Kind string

// The kinds of operations on one object.
const (
	Create Kind = "create"
	Update Kind = "update" // conditional: on top of one revision
	Delete Kind = "delete" // of whatever is there, or of one revision
	Get    Kind = "get"    // consistent
)

// An Outcome is what the client was told.
type Outcome string

// The outcomes. Absent is a get's answer, and the refusal of an update or a delete.
const (
	OK       Outcome = "ok"       // it was done
	Exists   Outcome = "exists"   // refused: the object is there already
	Absent   Outcome = "absent"   // there is no such object
	Conflict Outcome = "conflict" // refused: the object has another revision
	Refused  Outcome = "refused"  // it was certainly not done, which says nothing of the object
	Unknown  Outcome = "unknown"  // it may have been done, or be done at any later time
)

// An Op is one operation on one object.
type Op struct {
	Client string `json:"client"`
	// Via is the address that was asked: a server's name, or "vip".
	Via  string `json:"via"`
	Kind Kind   `json:"kind"`
	Key  string `json:"key"`
	// If is the revision that an update or delete is conditional on; 0 for none.
	If int64 `json:"if,omitempty"`
	// Value is what a create or update writes, or a get has read.
	Value string `json:"value,omitempty"`
	// Revision is the object's as a create, an update or a get answered it; 0 where nobody said.
	Revision int64   `json:"revision,omitempty"`
	Outcome  Outcome `json:"outcome"`
	// Detail is the error behind a refused or unknown outcome.
	Detail string `json:"detail,omitempty"`
	// Call and Return are since the history began; an unknown outcome's Return tells when the
	// client gave up.
	Call   time.Duration `json:"call"`
	Return time.Duration `json:"return"`
}

// An Object is one object as a list shows it.
type Object struct {
	Key      string `json:"key"`
	Value    string `json:"value"`
	Revision int64  `json:"revision"`
}

// A List is a consistent list of all objects, as of Revision.
type List struct {
	Client   string        `json:"client"`
	Via      string        `json:"via"`
	Revision int64         `json:"revision"`
	Objects  []Object      `json:"objects"`
	Call     time.Duration `json:"call"`
	Return   time.Duration `json:"return"`
}

// An EventType is what an event says of its object.
type EventType string

// The types of events. A bookmark is of no object: everything up to its revision has been sent.
const (
	Added    EventType = "added"
	Modified EventType = "modified"
	Deleted  EventType = "deleted" // Revision is the deletion's, Value the last one
	Bookmark EventType = "bookmark"
)

// An Event is one event of a watch.
type Event struct {
	Type     EventType `json:"type"`
	Key      string    `json:"key,omitempty"`
	Value    string    `json:"value,omitempty"`
	Revision int64     `json:"revision"`
}

// A Session is one uninterrupted watch, of everything after From.
type Session struct {
	From int64 `json:"from"`
	// List is what the watcher listed before, if it could not or did not go on from where its
	// last session ended.
	List   *List   `json:"list,omitempty"`
	Events []Event `json:"events"`
}

// To is the revision up to which the session has shown everything.
func (s *Session) To() int64 {
	if len(s.Events) == 0 {
		return s.From
	}
	return s.Events[len(s.Events)-1].Revision
}

// A Watch is all that one watcher saw, session after session. The first begins with a list.
type Watch struct {
	Name     string     `json:"name"`
	Via      string     `json:"via"`
	Sessions []*Session `json:"sessions"`
}

// A History is what all clients did and saw between a moment when there was no object and one when
// nobody wrote any more.
type History struct {
	// Start is a revision at which there was no object yet.
	Start   int64    `json:"start"`
	Ops     []Op     `json:"ops"`
	Lists   []*List  `json:"lists"`
	Watches []*Watch `json:"watches"`
	// End is a consistent list made after all clients had stopped. Nil if the drill did not get so far.
	End *List `json:"end,omitempty"`
	// Copies is what each server shows of the end without asking the others, object by object as it
	// stands in the answer.
	Copies map[string][]string `json:"copies,omitempty"`
}
