package integration

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// TestSnapshotRestore makes a cluster again of a snapshot: first on a server that is left, at a revision before a
// mistake; then of nothing but the snapshot, after every disk was lost.
func TestSnapshotRestore(t *testing.T) {
	c := ownCluster(t)
	const ns, objects = "default", 30
	backup := t.TempDir()
	client := c.client(t)
	for i := range objects {
		_, err := client.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: "s-" + strconv.Itoa(i)}, StringData: map[string]string{"text": hiddenText + strconv.Itoa(i)}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	c.encryptedBy(t, client, "")
	w := c.write(t, ns, "written")
	w.goesOn(t)
	c.kubectl(t, "create", "configmap", "kept", "--from-literal=n=1")

	saved := c.barque(t, "snapshot", "save", "--kubeconfig", c.Kubeconfig())
	c.kubectl(t, "delete", "configmap", "kept")
	c.kubectl(t, "create", "configmap", "later")
	file := strings.TrimSpace(c.barque(t, "snapshot", "save", "--kubeconfig", c.Kubeconfig(), "--to", backup))
	w.goesOn(t)
	if r := w.stop(); r.lost != "" {
		t.Error(r.lost)
	}
	list := c.barque(t, "snapshot", "list", "--kubeconfig", c.Kubeconfig())
	if name := filepath.Base(strings.Fields(saved)[0]); !strings.Contains(list, name) || strings.Contains(list, filepath.Base(file)) {
		t.Errorf("saved %slisted:\n%s", saved, list)
	}
	if found := grep(t, backup, hiddenText); found[hiddenText] {
		t.Error("a Secret stands in the snapshot as plain text")
	}
	if out := c.barque(t, "snapshot", "verify", file); !strings.Contains(out, "revision") {
		t.Errorf("verify prints:\n%s", out)
	}
	c.damaged(t, file)

	old, err := client.CoreV1().ConfigMaps(ns).Get(t.Context(), "later", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.lose(t, 1)
	before := c.deletion(t, file, "/registry/configmaps/default/kept") - 1
	first := c.Machines[0]
	c.refuses(t, 1, "holds a server's data", "snapshot", "restore", file, "--data-dir", first.DataDir())
	c.refuses(t, 1, "it begins at", "snapshot", "restore", file, "--data-dir", first.DataDir(), "--replace", "--at", "2001-01-01 00:00:00")
	c.refuses(t, 1, "choose one from", "snapshot", "restore", file, "--data-dir", first.DataDir(), "--replace", "--at", "99999999")
	out := c.barque(t, "snapshot", "restore", file, "--data-dir", first.DataDir(), "--replace", "--at", strconv.FormatInt(before, 10))
	if !strings.Contains(out, "before-restore-") {
		t.Errorf("restore prints:\n%s", out)
	}
	c.startsAnew(t, objects, map[string]bool{"kept": true, "later": false, "written": true})
	c.watchExpires(t, old.ResourceVersion)

	c.lose(t, 0)
	c.barque(t, "snapshot", "restore", file, "--data-dir", first.DataDir())
	c.startsAnew(t, objects, map[string]bool{"kept": false, "later": true, "written": true})
}

// lose turns all machines off at once, and removes the data of all servers from one on.
func (c *cluster) lose(t *testing.T, from int) {
	t.Helper()
	for _, m := range c.Machines {
		if err := m.PowerOff(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range c.Machines[from:] {
		if err := os.RemoveAll(m.DataDir()); err != nil {
			t.Fatal(err)
		}
	}
}

// startsAnew starts the first server from what was restored, lets the others join it with empty directories, and
// looks for objects through each of them.
func (c *cluster) startsAnew(t *testing.T, secrets int, configMaps map[string]bool) {
	t.Helper()
	// On a busy machine a server that has just started may be too slow to make a token; `barque up` goes on from there.
	eventually(t, 3*bound, "the cluster is whole", func() error { return c.heal() })
	for _, m := range c.Machines {
		client := c.clientOf(t, m)
		c.readsAll(t, client, m.Name, "default", secrets)
		for name, want := range configMaps {
			_, err := client.CoreV1().ConfigMaps("default").Get(t.Context(), name, metav1.GetOptions{})
			if (err == nil) != want || err != nil && !apierrors.IsNotFound(err) {
				t.Errorf("%s: is ConfigMap %s there? want %v: %v", m.Name, name, want, err)
			}
		}
		c.writes(t, client, "by-"+m.Name)
	}
	servers := c.kubectl(t, "get", "nodes", "-o", "name")
	if n := len(strings.Fields(servers)); n != len(c.Machines) {
		t.Errorf("the nodes are %s", servers)
	}
}

// watchExpires checks that who watched the cluster that was lost has to list anew.
func (c *cluster) watchExpires(t *testing.T, revision string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	w, err := c.client(t).CoreV1().ConfigMaps("default").Watch(ctx, metav1.ListOptions{ResourceVersion: revision})
	if err == nil {
		defer w.Stop()
		event, ok := <-w.ResultChan()
		if err = apierrors.FromObject(event.Object); !ok {
			err = ctx.Err()
		}
	}
	if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
		t.Errorf("who watches from revision %s of the lost cluster is told: %v", revision, err)
	}
}

// writes shows that a server takes writes.
func (c *cluster) writes(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	_, err := client.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{GenerateName: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Error(err)
	}
}

// deletion finds in a snapshot's history at which revision a key was deleted.
func (c *cluster) deletion(t *testing.T, file, key string) int64 {
	t.Helper()
	for line := range strings.Lines(c.barque(t, "snapshot", "history", file, "--of", key)) {
		if f := strings.Fields(line); len(f) == 4 && f[2] == "deleted" && f[3] == key {
			if _, err := time.Parse(time.TimeOnly, f[1]); err != nil {
				t.Errorf("the history does not tell when it was: %v", err)
			}
			revision, err := strconv.ParseInt(f[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return revision
		}
	}
	t.Fatalf("the history of %s does not tell of the deletion of %s", file, key)
	return 0
}

// damaged checks that a changed byte is noticed.
func (c *cluster) damaged(t *testing.T, file string) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)/2] ^= 1
	other := filepath.Join(t.TempDir(), "damaged.tar")
	if err := os.WriteFile(other, content, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "data")
	c.refuses(t, 1, "the snapshot is damaged", "snapshot", "verify", other)
	c.refuses(t, 1, "the snapshot is damaged", "snapshot", "restore", other, "--data-dir", dir)
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s was made of a damaged snapshot", dir)
	}
}
