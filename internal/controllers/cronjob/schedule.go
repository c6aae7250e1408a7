package cronjob

import (
	"errors"
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // time zones must not depend on what is installed

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
)

// tooMany is how many missed times are worth a warning.
const tooMany = 100

var errNever = errors.New("the schedule names no time that exists")

// parse reads a CronJob's schedule, in its time zone.
func parse(spec *batchv1.CronJobSpec) (schedule cron.Schedule, err error) {
	defer func() {
		// The parser indexes into what it has not checked, for some malformed zones.
		if p := recover(); p != nil {
			err = fmt.Errorf("malformed schedule: %v", p)
		}
	}()
	text := spec.Schedule
	if spec.TimeZone != nil && !strings.Contains(text, "TZ") {
		text = "TZ=" + *spec.TimeZone + " " + text
	}
	return cron.ParseStandard(text)
}

// A due is what a schedule asks for at some moment.
type due struct {
	// latest is the last time that has come since the start, zero if none has.
	latest time.Time
	// missed counts the times since the start, up to one more than tooMany.
	missed int
	// next is the first time to come.
	next time.Time
}

// at says what is due at now of a schedule in force since start.
func at(schedule cron.Schedule, start, now time.Time) (due, error) {
	first := schedule.Next(start)
	if first.IsZero() {
		return due{}, errNever
	}
	if first.After(now) {
		return due{next: first}, nil
	}
	d := due{latest: latest(schedule, first, now)}
	for t := first; !t.IsZero() && !t.After(now) && d.missed <= tooMany; t = schedule.Next(t) {
		d.missed++
	}
	d.next = schedule.Next(d.latest)
	if d.next.IsZero() {
		return due{}, errNever
	}
	return d, nil
}

// latest is the last time of the schedule up to now, first being one of them. It looks back
// from now in growing steps, for there may be millions in between.
func latest(schedule cron.Schedule, first, now time.Time) time.Time {
	if every, ok := schedule.(cron.ConstantDelaySchedule); ok {
		return first.Add(now.Sub(first) / every.Delay * every.Delay)
	}
	for back := time.Minute; now.Add(-back).After(first); back *= 8 {
		if t := schedule.Next(now.Add(-back)); !t.IsZero() && !t.After(now) {
			return upTo(schedule, t, now)
		}
	}
	return upTo(schedule, first, now)
}

func upTo(schedule cron.Schedule, t, now time.Time) time.Time {
	for {
		next := schedule.Next(t)
		if next.IsZero() || next.After(now) {
			return t
		}
		t = next
	}
}
