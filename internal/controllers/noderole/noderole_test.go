package noderole

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/controllertest"
)

func node(name string, labels, annotations map[string]string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, Annotations: annotations}}
}

func TestDecide(t *testing.T) {
	role, mark := map[string]string{Label: ""}, map[string]string{Annotation: "server"}
	for _, test := range []struct {
		name                string
		node                *corev1.Node
		server, gone        bool
		changed, role, ours bool
	}{
		{name: "a server", node: node("a", nil, nil), server: true, changed: true, role: true, ours: true},
		{name: "a server with the role", node: node("a", role, mark), server: true},
		{name: "a server with a user's role", node: node("a", role, nil), server: true},
		{name: "a server that lost its label", node: node("a", nil, mark), server: true, changed: true, role: true, ours: true},
		{name: "an agent", node: node("a", nil, nil), gone: true},
		{name: "an agent with a user's role", node: node("a", role, nil), gone: true},
		{name: "a server that restarts", node: node("a", role, mark)},
		{name: "a server that is gone", node: node("a", role, mark), gone: true, changed: true},
		{name: "other labels stay", node: node("a", map[string]string{Label: "", "x": "y"}, mark), gone: true, changed: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := test.node.DeepCopy()
			after := decide(test.node, test.server, test.gone)
			if (after != nil) != test.changed {
				t.Fatalf("changed to %v, want a change: %v", after, test.changed)
			}
			if len(test.node.Labels) != len(before.Labels) {
				t.Error("the shared object was changed")
			}
			if after == nil {
				return
			}
			_, labelled := after.Labels[Label]
			_, ours := after.Annotations[Annotation]
			if labelled != test.role || ours != test.ours || after.Labels["x"] != before.Labels["x"] {
				t.Errorf("labels %v, annotations %v", after.Labels, after.Annotations)
			}
			if decide(after, test.server, test.gone) != nil {
				t.Error("the outcome does not last")
			}
		})
	}
}

func TestRoles(t *testing.T) {
	w := controllertest.New(t, node("s1", nil, nil), node("s2", nil, nil), node("agent", nil, nil),
		node("old", map[string]string{Label: ""}, map[string]string{Annotation: "server"}))
	servers := []string{"s1", "s2", "s3"}
	var broken error
	c := New(w.Deps(), func(context.Context) ([]string, error) { return servers, broken })
	check := func(want ...string) {
		t.Helper()
		if result, err := c.Reconcile(t.Context(), reconcile.Request{}); err != nil || result.RequeueAfter == 0 {
			t.Fatalf("%v, %v", result, err)
		}
		var nodes corev1.NodeList
		if err := w.List(t.Context(), &nodes); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, n := range nodes.Items {
			if _, ok := n.Labels[Label]; ok {
				got = append(got, n.Name)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("servers are %v, want %v", got, want)
		}
	}
	check("old", "s1", "s2")
	servers = []string{"s1"}
	w.Clock.Step(absence / 2)
	check("old", "s1", "s2")
	servers = []string{"s1", "s2"}
	w.Clock.Step(absence)
	check("s1", "s2") // nobody named old, for long enough
	w.MustCreate(node("s3", nil, nil))
	servers = []string{"s2", "s3"}
	check("s1", "s2", "s3")
	w.Clock.Step(absence + time.Second)
	check("s2", "s3")
	// A leader of an earlier term, that leads again while a server restarts.
	w.Clock.Step(time.Hour)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	asked := 0
	if err := c.Source(ctx, func(reconcile.Request) { asked++ }); err != nil || asked != 1 {
		t.Errorf("a term began with %d requests, %v", asked, err)
	}
	servers = []string{"s2"}
	check("s2", "s3")
	broken = errors.New("no answer")
	if _, err := c.Reconcile(t.Context(), reconcile.Request{}); !errors.Is(err, broken) {
		t.Errorf("without an answer: %v", err)
	}
}

func TestRelabelled(t *testing.T) {
	plain, labelled := node("a", nil, nil), node("a", map[string]string{"x": "y"}, nil)
	for _, test := range []struct {
		name  string
		event barqueclient.Event
		want  int
	}{
		{"a new node", barqueclient.Event{New: plain}, 1},
		{"other labels", barqueclient.Event{Old: labelled, New: plain}, 1},
		{"a heartbeat", barqueclient.Event{Old: labelled, New: labelled}, 0},
		{"a removal", barqueclient.Event{Old: labelled}, 0},
	} {
		if got := relabelled(test.event); len(got) != test.want {
			t.Errorf("%s makes %d requests", test.name, len(got))
		}
	}
}
