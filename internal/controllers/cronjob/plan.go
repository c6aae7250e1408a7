package cronjob

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// A note is an event to record.
type note struct{ kind, reason, message string }

func normal(reason, format string, args ...any) note {
	return note{corev1.EventTypeNormal, reason, fmt.Sprintf(format, args...)}
}

func warning(reason, format string, args ...any) note {
	return note{corev1.EventTypeWarning, reason, fmt.Sprintf(format, args...)}
}

// end returns the condition type that a job ended with, "" if it has not.
func end(job *batchv1.Job) batchv1.JobConditionType {
	for _, c := range job.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return c.Type
		}
	}
	return ""
}

// observe brings the status' list of active jobs and its time of the last success up to date.
func observe(cj *batchv1.CronJob, jobs []*batchv1.Job) []note {
	var notes []note
	exists := map[types.UID]bool{}
	for _, job := range jobs {
		exists[job.UID] = true
		active := isActive(cj, job.UID)
		how := end(job)
		switch {
		case how == "" && !active:
			notes = append(notes, warning("UnexpectedJob", "Saw a job that the controller did not create or forgot: %s", job.Name))
		case how != "" && active:
			drop(cj, job.UID)
			notes = append(notes, normal("SawCompletedJob", "Saw completed job: %s, condition: %v", job.Name, how))
		}
		if t := job.Status.CompletionTime; how == batchv1.JobComplete && t != nil {
			if last := cj.Status.LastSuccessfulTime; last == nil || t.After(last.Time) {
				cj.Status.LastSuccessfulTime = t.DeepCopy()
			}
		}
	}
	for _, ref := range slices.Clone(cj.Status.Active) {
		if !exists[ref.UID] {
			drop(cj, ref.UID)
			notes = append(notes, normal("MissingJob", "Active job went missing: %v", ref.Name))
		}
	}
	return notes
}

func isActive(cj *batchv1.CronJob, uid types.UID) bool {
	return slices.ContainsFunc(cj.Status.Active, func(r corev1.ObjectReference) bool { return r.UID == uid })
}

func drop(cj *batchv1.CronJob, uid types.UID) {
	cj.Status.Active = slices.DeleteFunc(cj.Status.Active, func(r corev1.ObjectReference) bool { return r.UID == uid })
}

// surplus lists the ended jobs beyond the history limits, of either end the oldest.
func surplus(cj *batchv1.CronJob, jobs []*batchv1.Job) []*batchv1.Job {
	var all []*batchv1.Job
	for how, limit := range map[batchv1.JobConditionType]*int32{
		batchv1.JobComplete: cj.Spec.SuccessfulJobsHistoryLimit,
		batchv1.JobFailed:   cj.Spec.FailedJobsHistoryLimit,
	} {
		if limit == nil {
			continue
		}
		var ended []*batchv1.Job
		for _, job := range jobs {
			if end(job) == how && job.DeletionTimestamp == nil {
				ended = append(ended, job)
			}
		}
		slices.SortFunc(ended, byStart)
		all = append(all, ended[:max(0, len(ended)-int(*limit))]...)
	}
	return all
}

// byStart puts jobs that never started last.
func byStart(a, b *batchv1.Job) int {
	sa, sb := a.Status.StartTime, b.Status.StartTime
	switch {
	case sa == nil && sb != nil:
		return 1
	case sa != nil && sb == nil:
		return -1
	case sa != nil && !sa.Equal(sb):
		return sa.Compare(sb.Time)
	}
	return cmp.Compare(a.Name, b.Name)
}

// A plan is what to do at some moment.
type plan struct {
	// start is the scheduled time to start a job for; zero for none.
	start time.Time
	// replace tells that active jobs are deleted first.
	replace bool
	// again is when to look again; 0 if only a change of the spec can bring something new.
	again time.Duration
	notes []note
}

// decide says what a CronJob asks for at now. scheduleSet is when its schedule was last changed,
// zero if that is not known: times before are not missed.
func decide(cj *batchv1.CronJob, scheduleSet, now time.Time) plan {
	if cj.DeletionTimestamp != nil {
		return plan{}
	}
	if zone := cj.Spec.TimeZone; zone != nil {
		if _, err := time.LoadLocation(*zone); err != nil {
			return plan{notes: []note{warning("UnknownTimeZone", "invalid timeZone: %q: %v", *zone, err)}}
		}
	}
	if ptr.Deref(cj.Spec.Suspend, false) {
		return plan{}
	}
	schedule, err := parse(&cj.Spec)
	if err != nil {
		return plan{notes: []note{warning("UnparseableSchedule", "unparseable schedule: %q : %v", cj.Spec.Schedule, err)}}
	}
	since := cj.CreationTimestamp.Time
	if last := cj.Status.LastScheduleTime; last != nil {
		since = last.Time
	}
	since = later(since, scheduleSet)
	d, err := at(schedule, since, now)
	if err != nil {
		return plan{notes: []note{warning("InvalidSchedule", "invalid schedule: %s : %v", cj.Spec.Schedule, err)}}
	}
	// A little later, lest a clock that is a little behind finds nothing due.
	p := plan{again: d.next.Sub(now) + 100*time.Millisecond}
	if deadline := cj.Spec.StartingDeadlineSeconds; deadline != nil {
		// What was due before is too late.
		if d, err = at(schedule, later(since, now.Add(-time.Duration(*deadline)*time.Second)), now); err != nil {
			return p
		}
	}
	if d.latest.IsZero() {
		return p
	}
	return judge(cj, d, p)
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// judge decides whether a job is started for the time that is due.
func judge(cj *batchv1.CronJob, d due, p plan) plan {
	if d.missed > tooMany {
		p.notes = append(p.notes, warning("TooManyMissedTimes", "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew"))
	}
	name := jobName(cj, d.latest)
	if slices.ContainsFunc(cj.Status.Active, func(r corev1.ObjectReference) bool { return r.Name == name }) ||
		cj.Status.LastScheduleTime.Equal(&metav1.Time{Time: d.latest}) {
		return p
	}
	if len(cj.Status.Active) > 0 {
		switch cj.Spec.ConcurrencyPolicy {
		case batchv1.ForbidConcurrent:
			p.notes = append(p.notes, normal("JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy is Forbid"))
			return p
		case batchv1.ReplaceConcurrent:
			p.replace = true
		}
	}
	p.start = d.latest
	return p
}

// jobName is of the scheduled minute, so that no time has two jobs.
func jobName(cj *batchv1.CronJob, scheduled time.Time) string {
	return fmt.Sprintf("%s-%d", cj.Name, scheduled.Unix()/60)
}

// newJob makes the job for a scheduled time.
func newJob(cj *batchv1.CronJob, scheduled time.Time) *batchv1.Job {
	zone, err := time.LoadLocation(ptr.Deref(cj.Spec.TimeZone, ""))
	if err != nil {
		zone = time.UTC // decide has refused such a zone before
	}
	annotations := maps.Clone(cj.Spec.JobTemplate.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[batchv1.CronJobScheduledTimestampAnnotation] = scheduled.In(zone).Format(time.RFC3339)
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{
			Name:            jobName(cj, scheduled),
			Namespace:       cj.Namespace,
			Labels:          maps.Clone(cj.Spec.JobTemplate.Labels),
			Annotations:     annotations,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(cj, kind)},
		},
		Spec: *cj.Spec.JobTemplate.Spec.DeepCopy(),
	}
}
