package plane

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"barque.dev/test/proc"
)

// Server is one of Barque's servers on the loopback address, a control plane without an agent.
type Server struct {
	Program
	// Data is its data directory.
	Data string
	// URL is where its API is.
	URL string
}

// NewServer describes a server of that name, which is program, on free ports with its data and its log below dir. Of
// flags that are given twice the last one counts, so that more override those that are made here.
func NewServer(program, dir, name string, more ...string) (Server, error) {
	free, err := proc.Ports(3) // the one after the peers' is the failure detector's
	if err != nil {
		return Server{}, err
	}
	data := filepath.Join(dir, name)
	flags := append([]string{
		"server", "--node-name=" + name, "--data-dir=" + data, "--log-level=warn", "--disable=agent",
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--https-port=" + free[0], "--etcd-peer-port=" + free[1],
	}, more...)
	return Server{Program{Name: name, Path: program, Args: flags, Dir: dir, KeepsState: true}, data, "https://127.0.0.1:" + free[0]}, nil
}

// Kubeconfig is the administrator's, which the server writes when it starts.
func (s Server) Kubeconfig() string { return filepath.Join(s.Data, "kubeconfig") }

// Joining is the server as one more of a cluster: by any server's URL, and a token.
func (s Server) Joining(url, token string) Server {
	s.Args = append(s.Args[:len(s.Args):len(s.Args)], "--join="+url, "--token="+token)
	return s
}

// JoinToken asks a cluster for a token that servers join with.
func JoinToken(ctx context.Context, program, kubeconfig string) (string, error) {
	out, err := exec.CommandContext(ctx, program, "token", "create", "--kubeconfig="+kubeconfig, "--ttl=10m").Output()
	if err != nil {
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			err = fmt.Errorf("%w: %s", err, failed.Stderr)
		}
		return "", fmt.Errorf("create a token: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}
