package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/cluster/snapshot"
	"barque.dev/internal/node"
)

const longPaths = apiserver.LongPaths

// maxRefusal bounds what is read of a server's reason, in bytes.
const maxRefusal = 4 << 10

// callServer makes a request whose answer may be long. Its caller closes the body. within bounds all of it; 0 for no
// bound.
func callServer(ctx context.Context, config *rest.Config, method, path string, body io.Reader, within time.Duration) (*http.Response, error) {
	own := rest.CopyConfig(config)
	own.Timeout = within
	client, err := rest.HTTPClientFor(own)
	if err != nil {
		return nil, fmt.Errorf("use the kubeconfig: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(config.Host, "/")+path, body)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", config.Host, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("the cluster at %s does not answer: %w", config.Host, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	reason := strings.TrimSpace(string(text))
	var status metav1.Status
	if json.Unmarshal(text, &status) == nil && status.Message != "" {
		reason = status.Message
	}
	return nil, fmt.Errorf("the cluster at %s refuses: %s", config.Host, cmp.Or(reason, resp.Status))
}

// askSnapshots makes a request and reads its answer.
func askSnapshots(ctx context.Context, config *rest.Config, method, path string, within time.Duration, answer any) error {
	resp, err := callServer(ctx, config, method, path, nil, within)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		return fmt.Errorf("read what %s answers: %w", config.Host, err)
	}
	return nil
}

// snapshotStatuses asks all servers for their snapshots, and names those that do not answer.
func snapshotStatuses(ctx context.Context, a access) (statuses []snapshot.Status, silent []string, err error) {
	client, config, err := a.client()
	if err != nil {
		return nil, nil, err
	}
	leases, err := client.CoordinationV1().Leases(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("the cluster at %s does not answer (%w): when no server runs, list what is in a directory with --dir", config.Host, err)
	}
	servers, _ := serversOf(leases.Items)
	for _, name := range slices.Sorted(maps.Keys(servers)) {
		own := rest.CopyConfig(config)
		own.Host = "https://" + servers[name]
		var status snapshot.Status
		if err := askSnapshots(ctx, own, http.MethodGet, snapshot.PathStatus, perServer, &status); err != nil {
			silent = append(silent, name)
			continue
		}
		statuses = append(statuses, status)
	}
	return statuses, silent, nil
}

// savedState is what `barque status` says of snapshots.
type savedState struct {
	newest   snapshot.Info
	problems []string
}

// ask asks one server. Who may not know, or asks a server of an older version, is told nothing.
func (s *savedState) ask(ctx context.Context, config *rest.Config, address string) {
	own := rest.CopyConfig(config)
	own.Host = "https://" + address
	var status snapshot.Status
	if askSnapshots(ctx, own, http.MethodGet, snapshot.PathStatus, perServer, &status) != nil {
		return
	}
	for _, i := range slices.Concat(status.Snapshots, inRemote(status, map[string]bool{})) {
		if i.Time.After(s.newest.Time) {
			s.newest = i
		}
	}
	s.problems = append(s.problems, problemsOf(status)...)
}

// problemsOf says what keeps a server from taking snapshots, and from copying them.
func problemsOf(status snapshot.Status) []string {
	var problems []string
	if status.Problem != "" {
		problems = append(problems, fmt.Sprintf("%s takes no snapshots: %s", status.Server, status.Problem))
	}
	if r := status.Remote; r != nil && r.Problem != "" {
		problems = append(problems, fmt.Sprintf("%s copies no snapshots to %s: %s", status.Server, r.Where, r.Problem))
	}
	return problems
}

func (s *savedState) print(w io.Writer) {
	if !s.newest.Time.IsZero() {
		_, _ = fmt.Fprintf(w, "\nlast snapshot   %s by %s\n", s.newest.Time.Local().Format(time.DateTime), s.newest.Server)
	}
}

// problem is what is wrong; nil for nothing.
func (s *savedState) problem() error {
	if len(s.problems) == 0 {
		return nil
	}
	return errors.New(strings.Join(s.problems, "; "))
}

// sortNewest puts the newest first.
func sortNewest(list []snapshot.Info) { slices.SortFunc(list, snapshot.Newer) }

// fetchSnapshot has a server take a snapshot and brings it to a file, or into a directory, on this machine. It is
// checked here, too, before it gets its name.
func fetchSnapshot(ctx context.Context, config *rest.Config, to string) (path string, m snapshot.Manifest, err error) {
	if stat, err := os.Stat(to); err == nil && !stat.IsDir() {
		return "", m, fmt.Errorf("--to %s is there already: name another file, or a directory", to)
	} else if err != nil {
		path = to
	}
	resp, err := callServer(ctx, config, http.MethodPost, snapshot.PathSend(longPaths), nil, 0)
	if err != nil {
		return "", m, err
	}
	defer func() { _ = resp.Body.Close() }()
	if path == "" {
		_, params, _ := mime.ParseMediaType(resp.Header.Get("Content-Disposition"))
		if _, ok := snapshot.ParseName(params["filename"]); !ok {
			return "", m, fmt.Errorf("the server at %s names no file: give one with --to", config.Host)
		}
		path = filepath.Join(to, params["filename"])
	}
	part, err := os.CreateTemp(filepath.Dir(path), ".snapshot-*.tar")
	if err != nil {
		return "", m, fmt.Errorf("--to %s: %w", to, err)
	}
	defer func() { _ = os.Remove(part.Name()) }()
	_, err = io.Copy(part, resp.Body)
	if err := errors.Join(err, part.Sync(), part.Close()); err != nil {
		return "", m, fmt.Errorf("bring the snapshot to %s: %w", path, err)
	}
	err = withScratch("", part.Name(), func(scratch string) error {
		c, err := node.CheckSnapshot(ctx, part.Name(), scratch)
		if err == nil && c.Manifest == nil {
			err = snapshot.ErrForeign
		}
		if err == nil {
			m = *c.Manifest
		}
		return err
	})
	if err != nil {
		return "", m, err
	}
	if err := os.Rename(part.Name(), path); err != nil {
		return "", m, fmt.Errorf("--to %s: %w", to, err)
	}
	return path, m, nil
}
