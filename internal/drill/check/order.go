package check

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"barque.dev/internal/drill/history"
)

// state is one object as an order of operations has made it so far.
type state struct {
	there    bool
	value    string
	revision int64 // 0 when a write of which nobody told the revision made it
	newest   int64 // the highest revision that the object had so far
}

// operation is an operation as the model takes it.
type operation struct {
	*history.Op
	// ifValue is the value at the revision that it is conditional on.
	ifValue string
	// revision is what it made or read; 0 when nobody knows.
	revision int64
}

// step tells whether an operation can end as it did, and what it makes of the object.
//
// One whose outcome is unknown does what it was asked for if it can; that it was never done is the same
// as its being done after everything else, where nobody looks any more.
func step(s state, op operation) (bool, state) {
	switch op.Outcome {
	case history.Unknown:
		return stepUnknown(s, op)
	case history.Exists:
		return s.there, s
	case history.Absent:
		return !s.there, s
	case history.Conflict:
		return s.there && (s.revision == 0 || s.revision != op.If), s
	}
	switch op.Kind {
	case history.Create:
		return !s.there && op.revision > s.newest, written(s, op)
	case history.Update:
		return s.meets(op) && op.revision > s.newest, written(s, op)
	case history.Delete:
		return s.meets(op), s.gone()
	}
	if s.revision == 0 { // and so it is known from now on
		return s.there && s.value == op.Value && op.revision > s.newest, written(s, op)
	}
	return s.there && s.value == op.Value && s.revision == op.revision, s
}

func stepUnknown(s state, op operation) (bool, state) {
	can := s.meets(op)
	if op.Kind == history.Create {
		can = !s.there
	}
	switch {
	case op.revision != 0: // somebody saw that it was done
		return can && op.revision > s.newest, written(s, op)
	case !can:
		return true, s
	case op.Kind == history.Delete:
		return true, s.gone()
	}
	return true, written(s, op)
}

// meets tells whether the condition of an update or delete holds.
func (s state) meets(op operation) bool {
	switch {
	case !s.there || op.If == 0:
		return s.there
	case s.revision == 0:
		return s.value == op.ifValue
	}
	return s.revision == op.If
}

func (s state) gone() state { return state{newest: s.newest} }

func written(s state, op operation) state {
	return state{there: true, value: op.Value, revision: op.revision, newest: max(s.newest, op.revision)}
}

// model is the sequential specification of one object.
func model() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return state{} },
		Step: func(s, in, _ any) (bool, any) {
			ok, next := step(s.(state), in.(operation))
			return ok, next
		},
		DescribeOperation: func(in, _ any) string {
			op := in.(operation)
			text := fmt.Sprintf("%s via %s", op.Kind, op.Via)
			if op.If != 0 {
				text += fmt.Sprintf(" if %d", op.If)
			}
			return fmt.Sprintf("%s %q: %s %d", text, op.Value, op.Outcome, op.revision)
		},
		DescribeState: func(s any) string { return fmt.Sprintf("%+v", s.(state)) },
	}
}

// Order looks for an order of each object's operations that explains all of them, for so long an object
// at most. The last list counts as a read of every object.
func Order(h *history.History, log *Log, perObject time.Duration) (found []Violation, undecided []string, objects int) {
	byKey := operations(h, log)
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		switch porcupine.CheckOperationsTimeout(model(), byKey[key], perObject) {
		case porcupine.Illegal:
			found = append(found, Violation{Linearizable, key, fmt.Sprintf("no order of its %d operations explains their answers", len(byKey[key]))})
		case porcupine.Unknown:
			undecided = append(undecided, key)
		}
	}
	return found, undecided, len(byKey)
}

// Draw writes a page that shows one object's operations and the longest orders found.
func Draw(h *history.History, key, path string, perObject time.Duration) error {
	log, _ := NewLog(h)
	_, info := porcupine.CheckOperationsVerbose(model(), operations(h, log)[key], perObject)
	if err := porcupine.VisualizePath(model(), info, path); err != nil {
		return fmt.Errorf("draw the operations on %s: %w", key, err)
	}
	return nil
}

// operations are each object's, for porcupine.
func operations(h *history.History, log *Log) map[string][]porcupine.Operation {
	byKey := map[string][]porcupine.Operation{}
	clients := map[string]int{}
	add := func(op operation) {
		id, ok := clients[op.Client]
		if !ok {
			id = len(clients)
			clients[op.Client] = id
		}
		end := op.Return
		if op.Outcome == history.Unknown {
			end = forever
		}
		byKey[op.Key] = append(byKey[op.Key], porcupine.Operation{ClientId: id, Input: op, Call: int64(op.Call), Return: int64(end)})
	}
	complete := h.End != nil && log.complete(h.Start, h.End.Revision)
	for i := range h.Ops {
		if op, tells := prepare(&h.Ops[i], log, complete); tells {
			add(op)
		}
	}
	if h.End == nil {
		return byKey
	}
	end := objects(h.End)
	for key := range byKey {
		op := &history.Op{Client: h.End.Client, Via: h.End.Via, Kind: history.Get, Key: key, Outcome: history.Absent, Call: h.End.Call, Return: h.End.Return}
		if o, ok := end[key]; ok {
			op.Outcome, op.Value, op.Revision = history.OK, o.Value, o.Revision
		}
		add(operation{Op: op, revision: op.Revision})
	}
	return byKey
}

// prepare adds what others were told to what the client knew of its operation, and leaves out what tells
// nothing: refusals for other reasons, reads without an answer, and writes of which nobody ever saw anything,
// if complete says that all changes were seen: those were not done before the end.
func prepare(op *history.Op, log *Log, complete bool) (operation, bool) {
	o := operation{Op: op, revision: op.Revision}
	if op.If != 0 {
		before, _ := log.at(op.Key, op.If)
		o.ifValue = before.Value
	}
	if op.Outcome == history.Unknown && (op.Kind == history.Create || op.Kind == history.Update) {
		o.revision = log.byValue[op.Value]
		return o, o.revision != 0 || !complete
	}
	return o, op.Outcome != history.Refused && (op.Outcome != history.Unknown || op.Kind == history.Delete)
}
