package clients

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"barque.dev/internal/testkit"
	"barque.dev/test/plane"
)

// settle bounds how long something may take that happens by itself, on a machine that is busy.
const settle = time.Minute

// A cluster is a control plane whose servers are ready.
type cluster struct {
	programs plane.Programs
	servers  []plane.Server
	configs  []*rest.Config // of the administrator, one a server
}

// start starts a control plane of so many servers, which ends with the test.
func start(t *testing.T, servers int, flags ...string) *cluster {
	t.Helper()
	c := &cluster{}
	dir := t.TempDir()
	t.Cleanup(func() {
		// The last of several would wait for a quorum.
		if servers > 1 {
			c.programs.Kill(func(*plane.Process) bool { return true })
		}
		if err := c.programs.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			for _, s := range c.servers {
				logTail(t, filepath.Join(dir, s.Name+".log"))
			}
		}
	})
	for i := range servers {
		s, err := plane.NewServer(barqueProgram, dir, fmt.Sprintf("server-%d", i+1), flags...)
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			token, err := plane.JoinToken(t.Context(), barqueProgram, c.servers[0].Kubeconfig())
			if err != nil {
				t.Fatal(err)
			}
			s = s.Joining(c.servers[0].URL, token)
		}
		c.add(t, s)
	}
	return c
}

// add starts a server and waits until it is ready.
func (c *cluster) add(t *testing.T, s plane.Server) {
	t.Helper()
	if err := c.programs.Launch(s.Program); err != nil {
		t.Fatal(err)
	}
	config, err := c.programs.Adopt(t.Context(), s.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	tls, err := plane.ClientTLS(config.CAData, config.CertData, config.KeyData)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.programs.AwaitReady(t.Context(), s.URL, tls); err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst = -1, -1
	config.WarningHandler = rest.NoWarnings{}
	c.servers, c.configs = append(c.servers, s), append(c.configs, config)
}

// logTail shows the end of what a program printed.
func logTail(t *testing.T, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Log(err)
		return
	}
	t.Logf("%s ends with:\n%s", filepath.Base(file), data[max(0, len(data)-4000):])
}

// eventually waits until a check returns nil.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	if err := testkit.Poll(settle, check); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

const strategic = types.StrategicMergePatchType

// encoded is a value of the API as JSON.
func encoded(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // such values always can
	}
	return data
}
