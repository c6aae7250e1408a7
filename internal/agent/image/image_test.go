package image_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"barque.dev/internal/agent/cri/critest"
	"barque.dev/internal/agent/image"
)

type secrets map[string]*corev1.Secret

func (s secrets) ConfigMap(_, name string) (*corev1.ConfigMap, error) {
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
}

func (s secrets) Secret(_, name string) (*corev1.Secret, error) {
	if v := s[name]; v != nil {
		return v, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
}

func dockerConfig(entries ...string) *corev1.Secret {
	body := `{"auths":{`
	for i := 0; i < len(entries); i += 2 {
		if i > 0 {
			body += ","
		}
		body += fmt.Sprintf(`%q:{"auth":%q}`, entries[i], base64.StdEncoding.EncodeToString([]byte(entries[i+1])))
	}
	return &corev1.Secret{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(body + "}}")}}
}

func TestKeyring(t *testing.T) {
	var k image.Keyring
	err := k.Add(dockerConfig("https://index.docker.io/v1/", "hub:1", "registry.example.com:5000", "port:2", "example.org/team", "team:3", "example.org", "org:4", "*.wild.io", "wild:5"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		"busybox": {"hub"}, "registry.example.com:5000/x": {"port"}, "registry.example.com/x": nil,
		"example.org/team/app": {"team", "org"}, "example.org/teamwork/app": {"org"}, "a.wild.io/x": {"wild"}, "a.b.wild.io/x": nil,
	} {
		named, err := image.Normalize(name)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range k.Lookup(named) {
			got = append(got, a.GetUsername())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	bad := dockerConfig()
	bad.Data[corev1.DockerConfigJsonKey] = []byte("{")
	if err := k.Add(bad); err == nil {
		t.Error("broken JSON was taken")
	}
}

func TestEnsure(t *testing.T) {
	rt := critest.New("docker.io/library/have:1")
	now := time.Unix(1000, 0)
	p := image.NewPuller(rt, secrets{}, func() time.Time { return now })
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u"}}
	var events []string
	ensure := func(name string, policy corev1.PullPolicy) error {
		events = nil
		_, err := p.Ensure(t.Context(), pod, image.Wanted{Name: name, Policy: policy}, nil, func(_, reason, _ string, _ ...any) { events = append(events, reason) })
		return err
	}
	reason := func(err error) string {
		var e *image.Error
		if errors.As(err, &e) {
			return e.Reason
		}
		return fmt.Sprint(err)
	}
	if err := ensure("have:1", corev1.PullIfNotPresent); err != nil || !slices.Equal(events, []string{"Pulled"}) {
		t.Errorf("present: %v %v", err, events)
	}
	if err := ensure("have:1", corev1.PullAlways); err != nil || !slices.Equal(events, []string{"Pulling", "Pulled"}) {
		t.Errorf("always: %v %v", err, events)
	}
	if got := reason(ensure("none:1", corev1.PullNever)); got != image.ReasonNeverPull {
		t.Error(got)
	}
	if got := reason(ensure("Not/Valid", corev1.PullAlways)); got != image.ReasonInvalidName {
		t.Error(got)
	}
	rt.Fail("PullImage", errors.New("down"))
	if got := reason(ensure("none:1", "")); got != image.ReasonPull {
		t.Error(got)
	}
	var waits []time.Duration
	for range 7 {
		err := ensure("none:1", "")
		var e *image.Error
		if !errors.As(err, &e) || e.Reason != image.ReasonBackoff {
			t.Fatalf("within the delay: %v", err)
		}
		waits = append(waits, e.Retry.Sub(now))
		now = e.Retry
		if got := reason(ensure("none:1", "")); got != image.ReasonPull {
			t.Fatalf("after the delay: %s", got)
		}
	}
	want := []time.Duration{10, 20, 40, 80, 160, 300, 300}
	for i := range want {
		if waits[i] != want[i]*time.Second {
			t.Errorf("waits %v", waits)
			break
		}
	}
	rt.Fail("PullImage", nil)
	now = now.Add(time.Hour)
	if err := ensure("none:1", ""); err != nil {
		t.Error(err)
	}
}

func TestChoose(t *testing.T) {
	now := time.Unix(10_000, 0)
	at := func(seconds int) time.Time { return now.Add(-time.Duration(seconds) * time.Second) }
	list := []image.Candidate{{ID: "new", Size: 10, Used: at(10)}, {ID: "old", Size: 10, Used: at(1000)}, {ID: "older", Size: 10, Used: at(2000)}}
	for need, want := range map[int64][]string{0: nil, 5: {"older"}, 15: {"older", "old"}, 1000: {"older", "old"}} {
		var got []string
		for _, c := range image.Choose(list, need, now, time.Minute) {
			got = append(got, c.ID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("need %d: %v, want %v", need, got, want)
		}
	}
}

func TestCollect(t *testing.T) {
	rt := critest.New("a", "b", "imported")
	rt.Pin("imported")
	now := time.Unix(10_000, 0)
	p := image.NewPuller(rt, secrets{}, func() time.Time { return now })
	th := image.Thresholds{High: 0, Low: 0, MinAge: time.Minute} // every disk is too full
	if _, err := p.Collect(t.Context(), nil, th); err != nil {
		t.Fatal(err) // first seen: too young
	}
	now = now.Add(time.Hour)
	freed, err := p.Collect(t.Context(), map[string]bool{"sha256:a": true}, th)
	if err != nil || freed != 1000 {
		t.Errorf("freed %d, %v", freed, err)
	}
	list, err := rt.ListImages(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, i := range list.GetImages() {
		left = append(left, i.GetId())
	}
	slices.Sort(left)
	if !slices.Equal(left, []string{"sha256:a", "sha256:imported"}) {
		t.Errorf("left: %v", left)
	}
}

func TestCollectNever(t *testing.T) {
	rt := critest.New("a")
	now := time.Unix(10_000, 0)
	p := image.NewPuller(rt, secrets{}, func() time.Time { return now })
	th := image.Thresholds{High: 100, Low: 0}
	for range 2 {
		if freed, err := p.Collect(t.Context(), nil, th); err != nil || freed != 0 {
			t.Errorf("freed %d, %v", freed, err)
		}
		now = now.Add(time.Hour)
	}
}

func TestThresholds(t *testing.T) {
	for th, good := range map[image.Thresholds]bool{
		image.DefaultThresholds(): true, {High: 100}: true, {High: 1}: true,
		{High: 80, Low: 80}: false, {High: 80, Low: 85}: false, {High: 101, Low: 1}: false, {High: 5, Low: -1}: false,
	} {
		if err := th.Check(); (err == nil) != good {
			t.Errorf("%+v: %v", th, err)
		}
	}
}
