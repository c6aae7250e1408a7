package report

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"barque.dev/internal/drill/check"
)

const ms = time.Millisecond

func example() *Report {
	strike := func(kind string, at int, writes, reads time.Duration) Strike {
		return Strike{
			Kind: kind, Title: kind + " <of it>", Hit: []string{"server-1"}, Round: 1,
			At: time.Duration(at) * time.Second, Heal: time.Duration(at+2) * time.Second, Well: time.Duration(at+3) * time.Second,
			Writes: Gap{Calm: 5 * ms, Struck: writes, Healing: writes / 2}, Reads: Gap{Calm: 3 * ms, Struck: reads, Healing: 1 * ms},
		}
	}
	r := &Report{Command: "barque drill --seed 7", Seed: 7, Servers: 3, Took: 30 * time.Second, Rounds: 1, Series: NewSeries()}
	for i := range 10 {
		r.Strikes = append(r.Strikes, strike("kill", 2*i, time.Duration(i+1)*10*ms, time.Duration(i+1)*ms))
	}
	r.Strikes = append(r.Strikes, strike("cut", 25, 400*ms, 300*ms))
	for range 3 {
		r.Series.Add("server-1", false)
	}
	r.Series.Add("server-2", false)
	r.Series.Add("vip", true)
	return r
}

func TestTable(t *testing.T) {
	got := example().Table()
	for _, row := range []string{
		"| kill <of it> | 10 | 50 | 90 | 100 | 5 | 9 | 10 | 50 | 1 |\n",
		"| cut <of it> | 1 | 400 | 400 | 400 | 300 | 300 | 300 | 200 | 1 |\n",
		"| none, in the second before each | 11 | 5 | 5 | 5 | 3 | 3 | 3 | | |\n",
	} {
		if !strings.Contains(got, row) {
			t.Errorf("no row %q in %s", row, got)
		}
	}
	if empty := (&Report{}).Table(); strings.Contains(empty, "none,") {
		t.Errorf("a table of nothing: %s", empty)
	}
}

func TestMarkdown(t *testing.T) {
	r := example()
	if got := r.Markdown(); !strings.Contains(got, "**0 violations**") || strings.Contains(got, "Ended early") || strings.Contains(got, "could not be judged") {
		t.Error(got)
	}
	r.Failure = "it was interrupted"
	r.Verdict.Undecided = []string{"x"}
	for range maxShown + 5 {
		r.Verdict.Violations = append(r.Verdict.Violations, check.Violation{Rule: check.Lost, Key: "x", What: "it is lost"})
	}
	got := r.Markdown()
	for _, want := range []string{"**25 violations**; the operations on 1 objects could not be judged in time", "**Ended early:** it was interrupted", "- lost: x: it is lost\n", "and 5 more"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
}

// The picture is XML with a line for each server and one for failures, all of it inside its borders.
func TestPicture(t *testing.T) {
	for name, r := range map[string]*Report{"example": example(), "nothing": {}, "long": {Took: 9 * time.Hour, Series: NewSeries()}} {
		picture := r.Picture()
		lines := 0
		for d := xml.NewDecoder(strings.NewReader(picture)); ; {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v in %s", name, err, picture)
			}
			if e, ok := token.(xml.StartElement); ok && e.Name.Local == "polyline" {
				lines++
			}
		}
		names, _, _ := r.Series.take()
		if lines != len(names)+1 {
			t.Errorf("%s: %d lines for %d servers and the failures", name, lines, len(names))
		}
		if len(picture) > 200_000 {
			t.Errorf("%s: %d bytes", name, len(picture))
		}
	}
}

func TestWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "report")
	if err := Prepare(dir); err != nil {
		t.Fatal(err)
	}
	if err := example().Write(dir); err != nil {
		t.Fatal(err)
	}
	if err := Prepare(dir); err == nil || !strings.Contains(err.Error(), "an earlier drill") {
		t.Errorf("a report is written over: %v", err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "drill.json"))
	if err != nil {
		t.Fatal(err)
	}
	var again struct {
		Seed    uint64
		Strikes []Strike
		Series  struct {
			Answered map[string][]int
			Failed   []int
		}
	}
	if err := json.Unmarshal(data, &again); err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, n := range again.Series.Answered["server-1"] {
		total += n
	}
	if again.Seed != 7 || len(again.Strikes) != 11 || again.Strikes[0].Writes.Struck != 10*ms || total != 3 {
		t.Errorf("read again: %+v", again)
	}
	for _, name := range []string{"drill.md", "requests.svg"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
