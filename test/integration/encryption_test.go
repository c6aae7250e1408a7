package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"barque.dev/internal/encryption"
)

const (
	hiddenText = "nobody may see this 52e1"
	openText   = "everybody may see this 52e1"
)

// TestEncryptionRotates rotates the keys of a cluster while a writer goes on and the leader is killed.
func TestEncryptionRotates(t *testing.T) {
	t.Parallel()
	c := ownCluster(t)
	const ns, objects = "default", 100
	client := c.client(t)
	for i := range objects {
		_, err := client.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: "s-" + strconv.Itoa(i)}, StringData: map[string]string{"text": hiddenText + strconv.Itoa(i)}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "open"}, Data: map[string]string{"text": openText}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	first := c.encryptedBy(t, client, "")
	for _, m := range c.Machines {
		if found := grep(t, filepath.Join(m.DataDir(), "etcd"), hiddenText, openText); found[hiddenText] || !found[openText] {
			t.Errorf("in the files of %s's etcd, found: %v", m.Name, found)
		}
	}

	w := c.writeSecret(t, ns, "written")
	w.goesOn(t)
	old := c.leader(t)
	c.barque(t, "encryption", "rotate", "--kubeconfig", c.Kubeconfig())
	if err := old.Kill(); err != nil {
		t.Fatal(err)
	}
	w.goesOn(t)
	started := time.Now()
	second := c.encryptedBy(t, client, first)
	t.Logf("all stands under the new key %v after the leader's death", time.Since(started).Round(time.Millisecond))
	w.goesOn(t)
	if err := c.heal(); err != nil {
		t.Fatal(err)
	}
	if r := w.stop(); r.lost != "" {
		t.Error(r.lost)
	}
	for _, m := range c.Machines {
		c.readsAll(t, c.clientOf(t, m), m.Name, ns, objects)
		config := c.barque(t, "encryption", "config", "--data-dir", m.DataDir())
		if !strings.Contains(config, second) {
			t.Errorf("%s's configuration lacks the key %s:\n%s", m.Name, second, config)
		}
	}
	if out := c.barque(t, "encryption", "status", "--kubeconfig", c.Kubeconfig()); !strings.Contains(out, second) {
		t.Errorf("status:\n%s", out)
	}
}

// readsAll checks every Secret as one server sees it.
func (c *cluster) readsAll(t *testing.T, client kubernetes.Interface, server, ns string, objects int) {
	t.Helper()
	list, err := client.CoreV1().Secrets(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "type=Opaque"})
	if err != nil {
		t.Fatalf("list Secrets through %s: %v", server, err)
	}
	found := map[string]string{}
	for _, s := range list.Items {
		found[s.Name] = string(s.Data["text"])
	}
	for i := range objects {
		if got := found["s-"+strconv.Itoa(i)]; got != hiddenText+strconv.Itoa(i) {
			t.Errorf("%s: Secret %d says %q", server, i, got)
		}
	}
}

// encryptedBy waits until another key than was is in use and all Secrets stand under it, and returns it.
func (c *cluster) encryptedBy(t *testing.T, client kubernetes.Interface, was string) string {
	t.Helper()
	var status encryption.Status
	eventually(t, bound, "all Secrets stand under a new key", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		data, err := client.Discovery().RESTClient().Get().AbsPath(encryption.PathStatus).DoRaw(ctx)
		if err != nil {
			return err
		}
		status = encryption.Status{}
		if err := json.Unmarshal(data, &status); err != nil {
			return err
		}
		if status.Writes == "" || status.Writes == was {
			return fmt.Errorf("%s", data)
		}
		for _, r := range status.Resources {
			for under := range r.Values {
				if !strings.HasSuffix(under, ":"+status.Writes) {
					return fmt.Errorf("%s", data)
				}
			}
		}
		return nil
	})
	return status.Writes
}

// writeSecret is write for a Secret: the number that it holds never goes back.
func (c *cluster) writeSecret(t *testing.T, ns, name string) *writer {
	t.Helper()
	config, err := c.Config()
	if err != nil {
		t.Fatal(err)
	}
	config.Timeout = time.Second
	secrets := clientFor(t, config).CoreV1().Secrets(ns)
	if _, err := secrets.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var mu sync.Mutex
	var report writerReport
	var done sync.WaitGroup
	done.Go(func() {
		acked := 0
		for ctx.Err() == nil {
			current, err := secrets.Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				continue // nobody answers at this moment
			}
			n, _ := strconv.Atoi(string(current.Data["n"]))
			mu.Lock()
			if n < acked {
				report.lost = fmt.Sprintf("%d was acknowledged, and %d is there", acked, n)
			}
			mu.Unlock()
			current.Data = map[string][]byte{"n": []byte(strconv.Itoa(n + 1))}
			if _, err := secrets.Update(ctx, current, metav1.UpdateOptions{}); err != nil {
				continue
			}
			acked = n + 1
			mu.Lock()
			report.writes++
			mu.Unlock()
		}
	})
	stop := sync.OnceValue(func() writerReport { cancel(); done.Wait(); return report })
	t.Cleanup(func() { stop() })
	return &writer{stop: stop, acked: func() int { mu.Lock(); defer mu.Unlock(); return report.writes }}
}

// barque runs the program under test and returns what it prints; it must succeed.
func (c *cluster) barque(t *testing.T, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("barque %s: %v: %s", strings.Join(args, " "), err, errs.Bytes())
	}
	return out.String()
}

// grep tells which texts are in the files below a directory.
func grep(t *testing.T, dir string, texts ...string) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) { // etcd was faster
			return nil
		}
		for _, text := range texts {
			found[text] = found[text] || bytes.Contains(data, []byte(text))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
