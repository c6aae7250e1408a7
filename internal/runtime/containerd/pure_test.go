package containerd

import (
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"barque.dev/internal/runtime/bundle"
	"barque.dev/internal/runtime/images"
)

func quiet(t *testing.T, cfg Config) *Runtime {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRender(t *testing.T) {
	r := quiet(t, Config{DataDir: `/var/lib/"b"`, Programs: bundle.Programs{Dir: "/p", Version: "1"}})
	for _, privileged := range []bool{true, false} {
		out, err := r.render(machine{canRaisePriority: privileged, snapshotter: "overlayfs"})
		if err != nil {
			t.Fatal(err)
		}
		again, err := r.render(machine{canRaisePriority: privileged, snapshotter: "overlayfs"})
		if err != nil || string(out) != string(again) {
			t.Error("the same configuration is written in two ways")
		}
		var config struct {
			Version int
			Root    string
			Score   int `toml:"oom_score"`
			Plugins map[string]map[string]any
		}
		if err := toml.Unmarshal(out, &config); err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
		score := 0
		if privileged {
			score = -999
		}
		runtime := config.Plugins["io.containerd.cri.v1.runtime"]
		pinned := config.Plugins["io.containerd.cri.v1.images"]["pinned_images"].(map[string]any)
		if config.Version != 4 || config.Root != `/var/lib/"b"/containerd` || config.Score != score ||
			runtime["restrict_oom_score_adj"] != !privileged || pinned["sandbox"] != images.PauseName {
			t.Errorf("configuration\n%s", out)
		}
	}
}

func TestNew(t *testing.T) {
	if _, err := New(Config{DataDir: "/x"}); err == nil {
		t.Error("no log is accepted")
	}
	log := slog.New(slog.DiscardHandler)
	for _, cfg := range []Config{
		{DataDir: "relative"},
		{DataDir: "/x", RunDir: "relative"},
		{DataDir: "/x", RunDir: "/" + strings.Repeat("long", 12)},
	} {
		cfg.Log = log
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v is accepted", cfg)
		}
	}
	if got := quiet(t, Config{DataDir: "/var/lib/barque/server-1/"}).Endpoint(); got != "unix:///var/lib/barque/server-1/run/containerd.sock" {
		t.Errorf("endpoint %s", got)
	}
	a := quiet(t, Config{DataDir: "/srv/a/very/long/directory/for/the/data/of/a"})
	b := quiet(t, Config{DataDir: "/srv/a/very/long/directory/for/the/data/of/b"})
	if !strings.HasPrefix(a.RunDir(), "/run/barque/") || a.RunDir() == b.RunDir() || len(a.RunDir()) > maxSocketDir-2 {
		t.Errorf("run directories %s and %s", a.RunDir(), b.RunDir())
	}
	if a.daemonGroup() != "/barque-runtime" || quiet(t, Config{DataDir: "/x", CgroupRoot: "/a/b"}).daemonGroup() != "/a/b/runtime" {
		t.Error("control groups of daemons")
	}
}

func TestMountinfo(t *testing.T) {
	all := parseMounts(`22 1 8:1 / / rw,relatime - ext4 /dev/sda rw
30 22 0:5 / /run rw shared:7 - tmpfs tmpfs rw
31 30 0:6 / /run/with\040space rw master:1 - tmpfs tmpfs rw
32 22 8:1 /a /data rw - ext4 /dev/sda rw
33 32 8:1 /a /data rw shared:9 master:3 - ext4 /dev/sda rw
nonsense
`)
	if len(all) != 5 || all[2].path != "/run/with space" || all[2].shared || !all[1].shared || !all[4].shared {
		t.Fatalf("mounts %+v", all)
	}
	for path, want := range map[string]mountPoint{
		"/etc": all[0], "/run/x": all[1], "/running": all[0], "/run": all[1], "/run/with space/y": all[2],
		"/data/b": all[4], "/data": all[4],
	} {
		if got, ok := holding(all, path); !ok || got != want {
			t.Errorf("%s is in %+v, want %+v", path, got, want)
		}
	}
	if _, ok := holding(nil, "/"); ok {
		t.Error("a path is in a mount that is not there")
	}
}

func TestParseStat(t *testing.T) {
	line := "12 (a) b (c) S 1 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 10"
	if state, start, err := parseStat(line); state != "S" || start != 98765 || err != nil {
		t.Errorf("%s, %d, %v", state, start, err)
	}
	for _, bad := range []string{"", "12", "12 (a) S 1 2"} {
		if _, _, err := parseStat(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	if _, err := startTime(os.Getpid()); err != nil {
		t.Error(err)
	}
}

func TestRecognize(t *testing.T) {
	shim := "/x/" + bundle.Shim + "\x00-namespace\x00k8s.io\x00-id\x00abc\x00-address\x00/run/a.sock\x00"
	for _, c := range []struct {
		cmdline, socket string
		want            bool
	}{
		{shim, "/run/a.sock", true},
		{shim, "/run/b.sock", false},
		{strings.Replace(shim, bundle.Shim, "other", 1), "/run/a.sock", false},
		{bundle.Shim + "\x00-address\x00", "/run/a.sock", false},
		{"", "", false},
	} {
		if got := isShim(c.cmdline, c.socket); got != c.want {
			t.Errorf("isShim(%q, %s) = %v", c.cmdline, c.socket, got)
		}
	}
	ids := map[string]bool{"abc": true}
	for groups, want := range map[string]bool{
		"4:memory:/kubepods/podx/abc\n0::/\n": true,
		"0::/kubepods/podx/abc/inner\n":       true,
		"0::/kubepods/abcd\n":                 false,
		"":                                    false,
	} {
		if got := inBundle(groups, ids); got != want {
			t.Errorf("inBundle(%q) = %v", groups, got)
		}
	}
}

func TestLastComplaint(t *testing.T) {
	log := "time=1 level=error msg=first\ntime=2 level=info msg=fine\ntime=3 level=fatal msg=\"no disk\"\ntime=4 level=warning msg=hm\n\n"
	if got := lastComplaint([]byte(log)); got != `time=3 level=fatal msg="no disk"` {
		t.Error(got)
	}
	if got := lastComplaint(nil); got != "" {
		t.Error(got)
	}
}

func TestEnvironment(t *testing.T) {
	got := environment([]string{"HOME=/root", "NOTIFY_SOCKET=x", "PATH=/bin", "HTTPS_PROXY=p"}, "/programs")
	if want := []string{"HOME=/root", "HTTPS_PROXY=p", "PATH=/programs:/bin"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestPause(t *testing.T) {
	last := time.Duration(-1)
	for deaths := range 40 {
		p := pause(deaths)
		if p < last || p > longestPause || (deaths == 0) != (p == 0) {
			t.Errorf("pause after %d deaths is %s, before it was %s", deaths, p, last)
		}
		last = p
	}
}
