package cronjob

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/controllertest"
)

func newCronJob(schedule string) *batchv1.CronJob {
	return &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "tick"},
		Spec: batchv1.CronJobSpec{
			Schedule:                   schedule,
			ConcurrencyPolicy:          batchv1.AllowConcurrent,
			SuccessfulJobsHistoryLimit: ptr.To[int32](3),
			FailedJobsHistoryLimit:     ptr.To[int32](1),
			JobTemplate: batchv1.JobTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "tick"}},
				Spec:       batchv1.JobSpec{Completions: ptr.To[int32](1)},
			},
		},
	}
}

func moment(t testing.TB, text string) time.Time {
	t.Helper()
	v, err := time.Parse("2006-01-02 15:04:05", text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// What is found by jumping is what is found by walking.
func TestDueIsWhatWalkingFinds(t *testing.T) {
	schedules := []string{"* * * * *", "*/5 * * * *", "30 6-16/4 * * 1-5", "0 0 1 * *", "0 0 * * 0", "@hourly", "@every 7m", "@every 90s", "0 12 29 2 *", "TZ=Europe/Berlin 30 2 * * *"}
	rapid.Check(t, func(t *rapid.T) {
		spec := &batchv1.CronJobSpec{Schedule: rapid.SampledFrom(schedules).Draw(t, "schedule")}
		schedule, err := parse(spec)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(rapid.IntRange(0, 400*24*3600).Draw(t, "start")) * time.Second)
		now := start.Add(time.Duration(rapid.IntRange(0, 20*24*3600).Draw(t, "seconds")) * time.Second)
		d, err := at(schedule, start, now)
		if err != nil {
			t.Fatal(err)
		}
		var last time.Time
		missed := 0
		next := schedule.Next(start)
		for ; !next.After(now); next = schedule.Next(next) {
			last = next
			missed++
		}
		if !d.latest.Equal(last) || !d.next.Equal(next) || d.missed != min(missed, tooMany+1) {
			t.Fatalf("from %s to %s: %+v, want last %s, next %s, missed %d", start, now, d, last, next, missed)
		}
	})
}

func TestDecide(t *testing.T) {
	now := moment(t, "2030-01-01 12:00:30")
	created := metav1.Time{Time: moment(t, "2030-01-01 00:00:00")}
	ref := func(name string) corev1.ObjectReference { return corev1.ObjectReference{Name: name, UID: "1"} }
	last := func(text string) *metav1.Time { return &metav1.Time{Time: moment(t, text)} }
	for name, c := range map[string]struct {
		change      func(*batchv1.CronJob)
		scheduleSet string
		start       string
		replace     bool
		again       time.Duration
		reasons     string
	}{
		"due":             {nil, "", "2030-01-01 12:00:00", false, 59*time.Minute + 30*time.Second + 100*time.Millisecond, ""},
		"done already":    {func(cj *batchv1.CronJob) { cj.Status.LastScheduleTime = last("2030-01-01 12:00:00") }, "", "", false, 59*time.Minute + 30*time.Second + 100*time.Millisecond, ""},
		"only the latest": {func(cj *batchv1.CronJob) { cj.Status.LastScheduleTime = last("2030-01-01 03:00:00") }, "", "2030-01-01 12:00:00", false, 59*time.Minute + 30*time.Second + 100*time.Millisecond, ""},
		"suspended":       {func(cj *batchv1.CronJob) { cj.Spec.Suspend = ptr.To(true) }, "", "", false, 0, ""},
		"too late":        {func(cj *batchv1.CronJob) { cj.Spec.StartingDeadlineSeconds = ptr.To[int64](20) }, "", "", false, 59*time.Minute + 30*time.Second + 100*time.Millisecond, ""},
		"just in time":    {func(cj *batchv1.CronJob) { cj.Spec.StartingDeadlineSeconds = ptr.To[int64](40) }, "", "2030-01-01 12:00:00", false, 59*time.Minute + 30*time.Second + 100*time.Millisecond, ""},
		"forbidden": {func(cj *batchv1.CronJob) {
			cj.Spec.ConcurrencyPolicy = batchv1.ForbidConcurrent
			cj.Status.Active = append(cj.Status.Active, ref("x"))
		}, "", "", false, 59*time.Minute + 30*time.Second + 100*time.Millisecond, "JobAlreadyActive"},
		"replaced": {func(cj *batchv1.CronJob) {
			cj.Spec.ConcurrencyPolicy = batchv1.ReplaceConcurrent
			cj.Status.Active = append(cj.Status.Active, ref("x"))
		}, "", "2030-01-01 12:00:00", true, 59*time.Minute + 30*time.Second + 100*time.Millisecond, ""},
		"active for it": {func(cj *batchv1.CronJob) {
			cj.Status.Active = append(cj.Status.Active, ref(jobName(cj, moment(t, "2030-01-01 12:00:00"))))
		}, "", "", false, 59*time.Minute + 30*time.Second + 100*time.Millisecond, ""},
		"zone":                {func(cj *batchv1.CronJob) { cj.Spec.Schedule, cj.Spec.TimeZone = "0 21 * * *", ptr.To("Asia/Tokyo") }, "", "2030-01-01 12:00:00", false, 24*time.Hour - 30*time.Second + 100*time.Millisecond, ""},
		"unknown zone":        {func(cj *batchv1.CronJob) { cj.Spec.TimeZone = ptr.To("Nowhere/Land") }, "", "", false, 0, "UnknownTimeZone"},
		"unparseable":         {func(cj *batchv1.CronJob) { cj.Spec.Schedule = "whenever" }, "", "", false, 0, "UnparseableSchedule"},
		"never":               {func(cj *batchv1.CronJob) { cj.Spec.Schedule = "59 23 31 2 *" }, "", "", false, 0, "InvalidSchedule"},
		"many missed":         {func(cj *batchv1.CronJob) { cj.Spec.Schedule = "* * * * *" }, "", "2030-01-01 12:00:00", false, 30*time.Second + 100*time.Millisecond, "TooManyMissedTimes"},
		"schedule just set":   {nil, "2030-01-01 12:00:10", "", false, 59*time.Minute + 30*time.Second + 100*time.Millisecond, ""},
		"every, off the hour": {func(cj *batchv1.CronJob) { cj.Spec.Schedule = "@every 25m" }, "", "2030-01-01 11:40:00", false, 4*time.Minute + 30*time.Second + 100*time.Millisecond, ""},
	} {
		cj := newCronJob("0 * * * *")
		cj.CreationTimestamp = created
		if c.change != nil {
			c.change(cj)
		}
		var set time.Time
		if c.scheduleSet != "" {
			set = moment(t, c.scheduleSet)
		}
		p := decide(cj, set, now)
		var start time.Time
		if c.start != "" {
			start = moment(t, c.start)
		}
		var reasons []string
		for _, n := range p.notes {
			reasons = append(reasons, n.reason)
		}
		if !p.start.Equal(start) || p.replace != c.replace || p.again != c.again || strings.Join(reasons, " ") != c.reasons {
			t.Errorf("%s: %+v, want start %s, replace %v, again %v, notes %q", name, p, start, c.replace, c.again, c.reasons)
		}
	}
}

func jobs(t *testing.T, w *controllertest.World) []batchv1.Job {
	t.Helper()
	var list batchv1.JobList
	if err := w.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func finish(w *controllertest.World, job *batchv1.Job, how batchv1.JobConditionType) {
	now := metav1.Time{Time: w.Clock.Now()}
	controllertest.Change(w, job, func(j *batchv1.Job) {
		j.Status.StartTime, j.Status.CompletionTime = &now, &now
		j.Status.Conditions = []batchv1.JobCondition{{Type: how, Status: corev1.ConditionTrue, LastTransitionTime: now}}
	})
}

func TestStartsJobsAndKeepsHistory(t *testing.T) {
	cj := newCronJob("*/10 * * * *")
	w := controllertest.New(t, cj)
	c := New(w.Deps())
	w.Settle(c)
	if n := len(jobs(t, w)); n != 0 {
		t.Fatalf("%d jobs at once", n)
	}
	for i := range 8 {
		w.Clock.Step(10 * time.Minute)
		w.Settle(c)
		scheduled := time.Date(2030, 1, 1, 12, 10*(i+1), 0, 0, time.UTC)
		list := jobs(t, w)
		k := slices.IndexFunc(list, func(j batchv1.Job) bool { return j.Name == fmt.Sprintf("tick-%d", scheduled.Unix()/60) })
		if k < 0 {
			t.Fatalf("no job for %s", scheduled)
		}
		job := list[k]
		if !metav1.IsControlledBy(&job, cj) || job.Labels["app"] != "tick" || job.Annotations[batchv1.CronJobScheduledTimestampAnnotation] != scheduled.Format(time.RFC3339) {
			t.Errorf("job %+v", job.ObjectMeta)
		}
		s := controllertest.Reload(w, cj).Status
		if len(s.Active) != 1 || s.Active[0].UID != job.UID || !s.LastScheduleTime.Time.Equal(scheduled) {
			t.Errorf("status %+v", s)
		}
		how := batchv1.JobComplete
		if i%4 == 3 {
			how = batchv1.JobFailed
		}
		finish(w, &job, how)
		w.Settle(c)
		if s := controllertest.Reload(w, cj).Status; len(s.Active) != 0 || how == batchv1.JobComplete && !s.LastSuccessfulTime.Time.Equal(w.Clock.Now()) {
			t.Errorf("status %+v", s)
		}
	}
	ends := map[batchv1.JobConditionType]int{}
	for _, job := range jobs(t, w) {
		ends[end(&job)]++
	}
	if ends[batchv1.JobComplete] != 3 || ends[batchv1.JobFailed] != 1 {
		t.Errorf("history %v", ends)
	}
}

func TestReplaces(t *testing.T) {
	cj := newCronJob("*/10 * * * *")
	cj.Spec.ConcurrencyPolicy = batchv1.ReplaceConcurrent
	w := controllertest.New(t, cj)
	c := New(w.Deps())
	for range 3 {
		w.Clock.Step(10 * time.Minute)
		w.Settle(c)
	}
	s := controllertest.Reload(w, cj).Status
	if list := jobs(t, w); len(list) != 1 || len(s.Active) != 1 || s.Active[0].Name != list[0].Name {
		t.Errorf("jobs %v, active %v", list, s.Active)
	}
}

func TestTakesOverAJobThatWasNotWrittenDown(t *testing.T) {
	cj := newCronJob("*/10 * * * *")
	w := controllertest.New(t, cj)
	c := New(w.Deps())
	w.Clock.Step(10 * time.Minute)
	early := newJob(cj, w.Clock.Now())
	w.MustCreate(early)
	w.Settle(c)
	if s := controllertest.Reload(w, cj).Status; len(jobs(t, w)) != 1 || len(s.Active) != 1 || s.Active[0].UID != early.UID {
		t.Errorf("%d jobs, status %+v", len(jobs(t, w)), s)
	}
}

func TestForgetsMissingJobs(t *testing.T) {
	cj := newCronJob("*/10 * * * *")
	w := controllertest.New(t, cj)
	c := New(w.Deps())
	w.Clock.Step(10 * time.Minute)
	w.Settle(c)
	if err := w.Delete(t.Context(), &jobs(t, w)[0]); err != nil {
		t.Fatal(err)
	}
	w.Settle(c)
	if s := controllertest.Reload(w, cj).Status; len(s.Active) != 0 || len(jobs(t, w)) != 0 {
		t.Errorf("status %+v, %d jobs", s, len(jobs(t, w)))
	}
}

func TestAChangedScheduleMakesUpForNothing(t *testing.T) {
	cj := newCronJob("0 0 * * *")
	w := controllertest.New(t, cj)
	c := New(w.Deps())
	w.Settle(c)
	w.Clock.Step(150 * time.Minute)
	before := controllertest.Reload(w, cj).DeepCopy()
	controllertest.Change(w, cj, func(cj *batchv1.CronJob) { cj.Spec.Schedule = "0 13 * * *" })
	c.Watches[0].Requests(barqueclient.Event{Old: before, New: cj})
	w.Settle(c)
	if list := jobs(t, w); len(list) != 0 {
		t.Errorf("a job for %s, before the schedule was set", list[0].Annotations)
	}
	w.Clock.Step(24 * time.Hour)
	w.Settle(c)
	if len(jobs(t, w)) != 1 {
		t.Errorf("%d jobs a day later", len(jobs(t, w)))
	}
}
