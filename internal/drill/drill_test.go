package drill

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"barque.dev/internal/drill/fault"
	"barque.dev/internal/drill/report"
)

// TestGauge: a gap is of the phase that it begins in, and of the fault if it spans its beginning.
func TestGauge(t *testing.T) {
	const ms = time.Millisecond
	for name, c := range map[string]struct {
		calm, struck, healing []int // milliseconds of acknowledgements
		want                  report.Gap
	}{
		"none":                           {want: report.Gap{}},
		"quiet":                          {[]int{10, 20}, []int{35, 40}, []int{42, 45}, report.Gap{Calm: 10 * ms, Struck: 15 * ms, Healing: 3 * ms}},
		"a fault that lasts till healed": {[]int{10}, nil, []int{500, 510}, report.Gap{Calm: 10 * ms, Struck: 490 * ms, Healing: 10 * ms}},
		"two gaps of a fault":            {[]int{10}, []int{100, 400}, []int{405, 410}, report.Gap{Calm: 10 * ms, Struck: 300 * ms, Healing: 5 * ms}},
		"healing stops writes":           {[]int{10}, []int{20, 30}, []int{40, 240}, report.Gap{Calm: 10 * ms, Struck: 10 * ms, Healing: 200 * ms}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGauge()
			g.begin(calm)
			zero := g.last
			for p, acks := range [][]int{c.calm, c.struck, c.healing} {
				if phase(p) != calm {
					g.begin(phase(p))
				}
				for _, at := range acks {
					g.ack(zero.Add(time.Duration(at) * ms))
				}
			}
			if got := g.gap(); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			g.begin(calm)
			if got := g.gap(); got != (report.Gap{}) {
				t.Errorf("a new step begins with %+v", got)
			}
		})
	}
}

func TestGaugeAwaits(t *testing.T) {
	g := newGauge()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if g.await(ctx) == nil {
		t.Error("an acknowledgement that did not come was awaited")
	}
	acked, stop := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(acked)
		for {
			select {
			case <-stop:
				return
			default:
				g.ack(time.Now())
			}
		}
	}()
	if err := g.await(t.Context()); err != nil {
		t.Error(err)
	}
	close(stop)
	<-acked
}

// TestReserve: the drill touches no cluster that it did not make.
func TestReserve(t *testing.T) {
	dir := t.TempDir()
	release, err := reserve(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reserve(dir); err == nil || !strings.Contains(err.Error(), "another drill runs") {
		t.Errorf("two drills in one directory: %v", err)
	}
	release()
	for name, state := range map[string]string{"one that is well": "id: abcdef\nsubnet: 10.89.1.0/24\nvip: 10.89.1.10\nmachines:\n- name: server-1\n  role: server\n  ip: 10.89.1.11\n  index: 1\n", "a damaged one": "machines: 7"} {
		if err := os.WriteFile(filepath.Join(dir, "cluster.yaml"), []byte(state), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := reserve(dir); err == nil || !strings.Contains(err.Error(), "which the drill will not touch") {
			t.Errorf("%s was taken for the drill's: %v", name, err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "cluster.yaml")); err != nil {
		t.Fatal(err)
	}
	release, err = reserve(dir)
	if err != nil {
		t.Fatalf("the directory stays reserved: %v", err)
	}
	release()
}

func TestRunRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		o    Options
		says string
	}{
		{Options{Faults: []string{"none"}, Servers: 3}, "there is no fault"},
		{Options{Servers: 2}, "choose 3 to 9"},
		{Options{Servers: 3, Dir: t.TempDir(), Report: filepath.Join(file, "report")}, "choose another directory"},
		// What can't be looked into may hold a cluster.
		{Options{Servers: 3, Report: t.TempDir(), Dir: filepath.Join(file, "dir")}, "which the drill will not touch"},
	} {
		c.o.Progress = t.Logf
		if err := Run(t.Context(), c.o); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v, want one that says %q", c.o, err, c.says)
		}
	}
}

// TestChoose: what this machine cannot do is left out where nobody asked for it, and the command says what is left.
func TestChoose(t *testing.T) {
	o := Options{Seed: 7, Servers: 3, Progress: t.Logf}
	can, err := o.choose()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range can {
		if err := k.Can(); err != nil {
			t.Error(err)
		}
	}
	if len(can) < len(fault.Kinds()) != (len(o.Faults) > 0) || len(o.Faults) > 0 && len(o.Faults) != len(can) {
		t.Errorf("%d kinds can be, the command names %v", len(can), o.Faults)
	}
	for _, k := range fault.Kinds() {
		o := Options{Faults: []string{k.Name}, Progress: t.Logf}
		if _, err := o.choose(); (err != nil) != (k.Can() != nil) {
			t.Errorf("%s alone: %v", k.Name, err)
		}
	}
}

func TestCommand(t *testing.T) {
	o := Options{Seed: 7, Duration: time.Minute, Servers: 3}
	if got := o.command(); got != "barque drill --seed 7 --duration 1m0s" {
		t.Error(got)
	}
	o.Faults, o.Servers, o.Workloads = []string{"kill-all", "cut-leader"}, 5, true
	if got := o.command(); got != "barque drill --seed 7 --duration 1m0s --faults kill-all,cut-leader --servers 5 --workloads" {
		t.Error(got)
	}
}
