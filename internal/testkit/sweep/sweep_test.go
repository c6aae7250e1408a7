package sweep

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// leaveEnv makes this binary a test that leaves a place, and tells its parent which one.
const leaveEnv = "BARQUE_TEST_LEAVE"

func TestMain(m *testing.M) {
	os.Exit(Main(m, func(_ context.Context, place string) error {
		return os.WriteFile(os.Getenv(leaveEnv), []byte(place), 0o600)
	}))
}

func TestLeave(t *testing.T) {
	if os.Getenv(leaveEnv) == "" {
		return // it is a part of TestSweep
	}
	Place(t)
	if os.Getenv(leaveEnv+"_KILLED") != "" {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
}

// TestSweep leaves a place behind, by a test that ends and by one that is killed.
func TestSweep(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, killed := range []string{"", "yes"} {
		report := filepath.Join(t.TempDir(), "report")
		cmd := exec.CommandContext(t.Context(), program, "-test.run", "^TestLeave$")
		cmd.Env = append(os.Environ(), leaveEnv+"="+report, leaveEnv+"_KILLED="+killed)
		// Output ends with the sweeper, which has the same pipe.
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Errorf("a place was left, and nothing failed (killed %q):\n%s", killed, out)
		}
		place, err := os.ReadFile(report)
		if err != nil {
			t.Fatalf("nothing was swept (killed %q): %v\n%s", killed, err, out)
		}
		if _, err := os.Stat(string(place)); !os.IsNotExist(err) {
			t.Errorf("%s is still there (killed %q): %v", place, killed, err)
		}
	}
}
