package s3

import (
	"cmp"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"barque.dev/internal/store/etcd/etcdtest"
	"barque.dev/test/plane"
)

// barque is the program that is tested.
func program(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(cmp.Or(os.Getenv("BARQUE_PROGRAM"), "../../bin/barque"))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// run runs a command, and fails unless it succeeds.
func run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program(t), args...)
	var failed strings.Builder
	cmd.Stderr = &failed
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("barque %s: %v\n%s%s", strings.Join(args, " "), err, out, failed.String())
	}
	return string(out)
}

// serverPatience is more than a server needs to start on a busy machine, and to take the first snapshot after a minute.
const serverPatience = 5 * time.Minute

// TestCommands has a server copy its snapshots to a bucket and keep none itself, saves another one there by hand, and makes a cluster again
// of what is in the bucket alone.
func TestCommands(t *testing.T) {
	tls := etcdtest.Certificates(t, []byte{127, 0, 0, 1})
	g := newGateway(t, "backups", tls.Cert, tls.Key)
	keys := credentials(t, accessKey, secretKey)
	dir := t.TempDir()
	// A scheduled snapshot is taken only where 15 % of the disk are free: the machine of a test may have less.
	snapshots, err := os.MkdirTemp("/dev/shm", "barque-snapshots-*")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(snapshots) }()
	server, err := plane.NewServer(program(t), dir, "one", "--snapshot-dir="+snapshots, "--snapshot-every=1m", "--snapshot-keep=0", "--snapshot-s3-keep=2",
		"--snapshot-s3-bucket=backups", "--snapshot-s3-prefix=prod", "--snapshot-s3-endpoint="+g.url(), "--snapshot-s3-endpoint-ca="+tls.CA, "--snapshot-s3-credentials="+keys)
	if err != nil {
		t.Fatal(err)
	}
	var programs plane.Programs
	defer func() { _ = programs.Stop() }()
	if err := programs.Launch(server.Program); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), serverPatience)
	defer cancel()
	kubeconfig := "--kubeconfig=" + server.Kubeconfig()
	err = programs.Poll(ctx, "the server is ready", func(ctx context.Context) error {
		return exec.CommandContext(ctx, program(t), "kubectl", kubeconfig, "create", "configmap", "kept").Run()
	})
	if err != nil {
		t.Fatal(err)
	}
	in := []string{"--s3-endpoint=" + g.url(), "--s3-endpoint-ca=" + tls.CA, "--s3-credentials=" + keys}
	saved := strings.TrimSpace(run(t, append([]string{"snapshot", "save", kubeconfig, "--to=s3://backups/by-hand/"}, in...)...))
	if out := run(t, append([]string{"snapshot", "verify", saved}, in...)...); !strings.Contains(out, "keys") {
		t.Errorf("verify prints:\n%s", out)
	}
	if out := run(t, append([]string{"snapshot", "history", saved, "--of=configmaps/default/kept"}, in...)...); !strings.Contains(out, "created") {
		t.Errorf("history prints:\n%s", out)
	}
	// What the last but one look saw says why, if that ends without.
	var said string
	err = programs.Poll(ctx, "a scheduled snapshot is in the bucket, and none on the server", func(ctx context.Context) error {
		out, err := exec.CommandContext(ctx, program(t), "snapshot", "list", kubeconfig).CombinedOutput()
		if ctx.Err() == nil {
			said = string(out)
		}
		if err != nil || !strings.Contains(string(out), "s3://backups/prod/barque-") {
			return &notYet{string(out), err}
		}
		left, err := filepath.Glob(filepath.Join(snapshots, "barque-*"))
		if err != nil || len(left) > 0 {
			return &notYet{strings.Join(left, " "), err}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	if err := programs.Stop(); err != nil {
		t.Error(err)
	}
	list := run(t, append([]string{"snapshot", "list", "s3://backups/prod/"}, in...)...)
	fields := strings.Fields(strings.Split(list, "\n")[1])
	scheduled := fields[len(fields)-1]
	data := filepath.Join(dir, "again")
	run(t, append([]string{"snapshot", "restore", scheduled, "--data-dir=" + data}, in...)...)

	again, err := plane.NewServer(program(t), dir, "again")
	if err != nil {
		t.Fatal(err)
	}
	var after plane.Programs
	defer func() { _ = after.Stop() }()
	if err := after.Launch(again.Program); err != nil {
		t.Fatal(err)
	}
	err = after.Poll(ctx, "what was in the bucket is a cluster", func(ctx context.Context) error {
		return exec.CommandContext(ctx, program(t), "kubectl", "--kubeconfig="+again.Kubeconfig(), "get", "configmap", "kept").Run()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// notYet is what a command said.
type notYet struct {
	said string
	err  error
}

func (n *notYet) Error() string {
	if n.err != nil {
		return n.said + ": " + n.err.Error()
	}
	return n.said
}
