package integration

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"barque.dev/internal/cluster/membership"
	"barque.dev/internal/local"
)

// Of six servers five vote, and the sixth serves like the others. It steps in when a voter leaves, when one dies and when one stands
// still; whoever comes back after that is the one that stands by.
func TestServersBeyondFiveStandBy(t *testing.T) {
	flags := []string{"--disable=agent", "--hasty-removal", "--replace-dead-after=8s"}
	c := emptyCluster(t, 6, 0)
	c.starts(t, flags...)
	standby := c.standsBy(t, 6)
	c.servesLikeAll(t, standby)
	w := c.write(t, "default", "by-writer")
	w.goesOn(t)

	// A voter leaves: there are five servers, which all vote. It joins again: it is the sixth.
	left := c.voterBeside(t, c.leader(t), standby)
	c.leaves(t, left)
	c.members(t, c.others(left)...)
	w.goesOn(t)
	if code, out := c.tryBarque(t, "leave", "--purge", "--data-dir", left.DataDir()); code != 0 {
		t.Fatal(out)
	}
	c.starts(t, flags...)
	if standby = c.standsBy(t, 6); standby.Name != left.Name {
		t.Errorf("%s stands by, and %s was the last to join", standby.Name, left.Name)
	}

	// The leader dies. It comes back with what it had, and is the one that stands by.
	dead := c.leader(t)
	if err := dead.Kill(); err != nil {
		t.Fatal(err)
	}
	c.members(t, c.others(dead)...)
	w.goesOn(t)
	c.starts(t, flags...)
	c.steppedIn(t, dead, standby)
	standby = dead

	// A voter stands still. Its machine takes connections all the time, and it is replaced all the same.
	frozen := c.voterBeside(t, c.leader(t), standby)
	signal(t, frozen, syscall.SIGSTOP)
	c.members(t, c.others(frozen)...)
	w.goesOn(t)
	signal(t, frozen, syscall.SIGCONT)
	c.steppedIn(t, frozen, standby)
	w.goesOn(t)
	w.well(t, "voters that leave, die and stand still", longestGap)
}

// starts runs `barque up` for servers without nodes.
func (c *cluster) starts(t *testing.T, flags ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if _, err := c.up(ctx, flags...); err != nil {
		t.Fatal(err)
	}
}

// standsBy waits until all but one of so many servers vote, and returns that one.
func (c *cluster) standsBy(t *testing.T, servers int) *local.Machine {
	t.Helper()
	var name string
	rest := c.client(t).Discovery().RESTClient()
	eventually(t, bound, "one server stands by", func() error {
		var list membership.List
		if err := askJSON(t.Context(), rest, membership.PathServers, &list); err != nil {
			return err
		}
		var standbys []string
		for _, s := range list.Servers {
			if s.Learner && s.Name != "" {
				standbys = append(standbys, s.Name)
			}
		}
		if len(list.Servers) != servers || len(standbys) != 1 {
			return fmt.Errorf("%+v", list.Servers)
		}
		name = standbys[0]
		return nil
	})
	for _, m := range c.Machines {
		if m.Name == name {
			return m
		}
	}
	t.Fatalf("there is no machine %s", name)
	return nil
}

// servesLikeAll writes and reads through one server what others read and write.
func (c *cluster) servesLikeAll(t *testing.T, m *local.Machine) {
	t.Helper()
	here, there := c.clientOf(t, m).CoreV1().ConfigMaps("default"), c.client(t).CoreV1().ConfigMaps("default")
	eventually(t, bound, m.Name+" writes", func() error {
		_, err := here.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "by-standby"}}, metav1.CreateOptions{})
		return err
	})
	if _, err := there.Get(t.Context(), "by-standby", metav1.GetOptions{}); err != nil {
		t.Errorf("what %s wrote: %v", m.Name, err)
	}
	watch, err := here.Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=by-others"})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	if _, err := there.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "by-others"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := here.Get(t.Context(), "by-others", metav1.GetOptions{}); err != nil {
		t.Errorf("what others wrote, at %s: %v", m.Name, err)
	}
	select {
	case e := <-watch.ResultChan():
		t.Logf("%s was told: %s", m.Name, e.Type)
	case <-time.After(bound):
		t.Errorf("%s is not told of what others wrote", m.Name)
	}
}

// voterBeside is a server other than those.
func (c *cluster) voterBeside(t *testing.T, those ...*local.Machine) *local.Machine {
	t.Helper()
	for _, m := range c.Machines {
		if !containsMachine(those, m) {
			return m
		}
	}
	t.Fatal("there is no other server")
	return nil
}

func containsMachine(list []*local.Machine, m *local.Machine) bool {
	for _, o := range list {
		if o.Name == m.Name {
			return true
		}
	}
	return false
}

// steppedIn waits until a server that was replaced is back, with its old data aside, and stands by for the one that stood by before.
func (c *cluster) steppedIn(t *testing.T, replaced, now *local.Machine) {
	t.Helper()
	eventually(t, bound, replaced.Name+" stands by", func() error {
		if by := c.standsBy(t, 6); by.Name != replaced.Name {
			return errors.New(by.Name + " does")
		}
		return nil
	})
	if old, _ := filepath.Glob(filepath.Join(replaced.DataDir(), "etcd.removed-*")); len(old) != 1 {
		t.Errorf("the old data of %s: %v", replaced.Name, old)
	}
	c.has(t, replaced, "by-standby")
	c.has(t, now, "by-standby")
}
