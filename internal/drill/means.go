package drill

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"barque.dev/internal/cluster/membership"
	"barque.dev/internal/drill/fault"
	"barque.dev/internal/local"
)

// means is what faults do by the cluster's own commands and API.
func (d *drill) means() fault.Cluster {
	return fault.Cluster{
		VIP: d.cluster.VIP,
		Start: func(ctx context.Context) error {
			_, err := d.up(ctx, func(string, ...any) {})
			return err
		},
		Voting: d.voting,
		Write:  d.ballast,
		Leave: func(ctx context.Context, m fault.Machine) error {
			return d.barque(ctx, "leave", "--force", "--timeout", leaveTimeout.String(), "--data-dir", d.machine(m.String()).DataDir())
		},
		Remove: func(ctx context.Context, m fault.Machine) error {
			// It is refused while the others have not noticed that the server is gone.
			return eventually(ctx, func() error {
				return d.barque(ctx, "server", "remove", m.String(), "--kubeconfig", d.cluster.Kubeconfig())
			})
		},
		Upgrade: d.upgrade,
	}
}

// leaveTimeout bounds how long a machine's pods take to go elsewhere.
const leaveTimeout = time.Minute

// servers are the machines that are servers.
func (d *drill) servers() (servers []*local.Machine) {
	for _, m := range d.cluster.Machines {
		if m.Role == local.RoleServer {
			servers = append(servers, m)
		}
	}
	return servers
}

func (d *drill) machine(name string) *local.Machine {
	for _, m := range d.cluster.Machines {
		if m.Name == name {
			return m
		}
	}
	return nil
}

// barque runs a command as the user would.
func (d *drill) barque(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, d.Program, args...).CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("barque %s: %s: %w", strings.Join(args, " "), lines[len(lines)-1], err)
	}
	return nil
}

func (d *drill) client(timeout time.Duration) (kubernetes.Interface, error) {
	config, err := d.cluster.Config()
	if err != nil {
		return nil, err
	}
	config.Timeout = timeout
	return kubernetes.NewForConfig(config)
}

// voting waits until every server has a vote, and none is left of those that were.
func (d *drill) voting(ctx context.Context) error {
	client, err := d.client(answerTimeout)
	if err != nil {
		return err
	}
	return eventually(ctx, func() error {
		data, err := client.Discovery().RESTClient().Get().AbsPath(membership.PathServers).DoRaw(ctx)
		if err != nil {
			return err
		}
		var list membership.List
		if err := json.Unmarshal(data, &list); err != nil {
			return fmt.Errorf("read the list of servers: %w", err)
		}
		voters := 0
		for _, s := range list.Servers {
			if !s.Learner {
				voters++
			}
		}
		if voters != d.Servers || len(list.Servers) != d.Servers {
			return fmt.Errorf("%d of %d servers vote, want %d", voters, len(list.Servers), d.Servers)
		}
		return nil
	})
}

const (
	ballastName = "barque-drill-ballast"
	// A write of ballastSize has a server's database grow; ballastWrites of them need more room than there is at the end of
	// its file.
	ballastSize, ballastWrites = 900 << 10, 24
)

// ballast writes more than a database that cannot grow can hold, and takes it away again.
func (d *drill) ballast(ctx context.Context) error {
	client, err := d.client(answerTimeout)
	if err != nil {
		return err
	}
	maps := client.CoreV1().ConfigMaps(metav1.NamespaceDefault)
	var errs []error
	for i := range ballastWrites {
		object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: ballastName}, BinaryData: map[string][]byte{"n": make([]byte, ballastSize)}}
		_, _ = rand.Read(object.BinaryData["n"]) // never fails
		if i == 0 {
			_, err = maps.Create(ctx, object, metav1.CreateOptions{})
		}
		if i > 0 || apierrors.IsAlreadyExists(err) {
			_, err = maps.Update(ctx, object, metav1.UpdateOptions{})
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == ballastWrites {
		return errors.Join(errs[0], errors.New("nothing was written"))
	}
	return nil
}
