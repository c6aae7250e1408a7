package check

import (
	"fmt"
	"time"

	"barque.dev/internal/drill/history"
)

// Writes checks that nothing was written between an acknowledged conditional update and the revision
// that it was made on, and that what was acknowledged is there in the end, or was replaced since.
func Writes(h *history.History, log *Log) (found []Violation) {
	for i := range h.Ops {
		op := &h.Ops[i]
		if op.Kind != history.Update || op.Outcome != history.OK {
			continue
		}
		before, _ := log.at(op.Key, op.Revision-1)
		if before.Revision > op.If {
			found = append(found, Violation{Lost, op.Key, fmt.Sprintf("%s wrote revision %d on top of %d, but %s stands between, as %s told: that write is lost",
				op.Client, op.Revision, op.If, describe(before), before.source)})
		}
		if op.Revision <= op.If {
			found = append(found, Violation{Lost, op.Key, fmt.Sprintf("%s wrote on top of revision %d and got revision %d, which is no later",
				op.Client, op.If, op.Revision)})
		}
	}
	return append(found, kept(h, log)...)
}

func describe(c Change) string {
	if c.Type == history.Deleted {
		return fmt.Sprintf("the deletion at revision %d", c.Revision)
	}
	return fmt.Sprintf("revision %d (%q)", c.Revision, c.Value)
}

// kept checks the end: each object's last acknowledged write is there, unless something came after it.
func kept(h *history.History, log *Log) (found []Violation) {
	if h.End == nil {
		return nil
	}
	end := map[string]history.Object{}
	for _, o := range h.End.Objects {
		end[o.Key] = o
	}
	deletes := map[string]time.Duration{} // when the last was given up or answered
	last := map[string]*history.Op{}
	for i := range h.Ops {
		op := &h.Ops[i]
		switch {
		case op.Kind == history.Delete && op.Outcome == history.OK:
			deletes[op.Key] = max(deletes[op.Key], op.Return)
		case op.Kind == history.Delete && op.Outcome == history.Unknown:
			deletes[op.Key] = forever
		case (op.Kind == history.Create || op.Kind == history.Update) && op.Outcome == history.OK:
			if l := last[op.Key]; l == nil || op.Revision > l.Revision {
				last[op.Key] = op
			}
		}
	}
	for key, op := range last {
		o, there := end[key]
		after, _ := log.at(key, h.End.Revision)
		switch {
		case there && o.Revision < op.Revision:
			found = append(found, Violation{Lost, key, fmt.Sprintf("%s's write of revision %d was acknowledged, and the end shows revision %d: it is undone",
				op.Client, op.Revision, o.Revision)})
		case !there && after.Type != history.Deleted && deletes[key] < op.Call:
			found = append(found, Violation{Lost, key, fmt.Sprintf("%s's write of revision %d was acknowledged, nobody deleted it since, and the end does not show it",
				op.Client, op.Revision)})
		}
	}
	return found
}

// forever is later than anything that happens in a history.
const forever = time.Duration(1<<63 - 1)
