package scheduler

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/record"
)

// attempts is what the metrics say: attempts by result, and how many durations there are.
func attempts(t *testing.T, registry *prometheus.Registry) (byResult map[string]float64, decisions, durations uint64) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	byResult = map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			switch f.GetName() {
			case "scheduler_schedule_attempts_total":
				byResult[label(m, "result")+"/"+label(m, "profile")] = m.GetCounter().GetValue()
			case "scheduler_scheduling_algorithm_duration_seconds":
				decisions += m.GetHistogram().GetSampleCount()
			case "scheduler_scheduling_attempt_duration_seconds":
				durations += m.GetHistogram().GetSampleCount()
			}
		}
	}
	return byResult, decisions, durations
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

func TestMetricsCountAttempts(t *testing.T) {
	registry := prometheus.NewRegistry()
	metrics, err := NewMetrics(registry)
	if err != nil {
		t.Fatal(err)
	}
	s := newStage()
	s.refuse = func(pod, _ string) error {
		if pod == "refused" {
			return apierrors.NewConflict(schema.GroupResource{Resource: "pods"}, pod, errors.New("changed"))
		}
		return nil
	}
	sched := New(Config{Client: s, Recorder: record.NewFakeRecorder(100), Metrics: metrics, Log: slog.New(slog.DiscardHandler)})
	sched.cluster.SetNode(aNode("a"))
	inline := func(work func()) { work() }
	for _, p := range []*Pod{aPod("fits"), aPod("refused"), aPod("large", requests("50", "1Gi"))} {
		sched.queue.Set(p)
		sched.schedule(t.Context(), p, inline)
	}
	got, decisions, durations := attempts(t, registry)
	for _, result := range []string{resultScheduled, resultUnschedulable, resultError} {
		if got[result+"/"+corev1.DefaultSchedulerName] != 1 {
			t.Errorf("attempts %v, want one that is %s", got, result)
		}
	}
	if decisions != 3 || durations != 3 {
		t.Errorf("%d decisions and %d attempts took time, want 3 of each", decisions, durations)
	}
}

func TestMetricsShowTheQueueOfTheOneThatRuns(t *testing.T) {
	metrics, err := NewMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	s := newStage()
	sched := New(Config{Client: s, Metrics: metrics})
	sched.queue.Set(aPod("waits"))
	stop := metrics.follow(sched.queue)
	if n := metrics.pending("active"); n != 1 {
		t.Errorf("%d pods wait, want 1", n)
	}
	stop()
	if n := metrics.pending("active"); n != 0 {
		t.Errorf("%d pods wait where no scheduler runs", n)
	}
}
