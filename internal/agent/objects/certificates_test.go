package objects_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"

	"barque.dev/internal/agent/objects"
)

// signer is a fake API server, with a clock, whose requests for certificates the test answers.
type signer struct {
	*fake.Clientset
	events       *record.FakeRecorder
	certificates *objects.Certificates
	pod          *corev1.Pod
	asked        chan *certificatesv1.PodCertificateRequest
	seen         atomic.Int64 // changes of requests that the node has heard of

	mu  sync.Mutex
	now time.Time
}

func newSigner(t *testing.T) *signer {
	s := &signer{
		Clientset: fake.NewClientset(
			&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "account", UID: "account-uid"}},
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node", UID: "node-uid"}}),
		events: record.NewFakeRecorder(10), asked: make(chan *certificatesv1.PodCertificateRequest, 10),
		now: time.Now().Truncate(time.Second),
	}
	s.PrependReactor("create", "podcertificaterequests", func(a clienttesting.Action) (bool, runtime.Object, error) {
		r := a.(clienttesting.CreateAction).GetObject().(*certificatesv1.PodCertificateRequest)
		r.Namespace, r.Name = a.GetNamespace(), r.GenerateName+string(rune('a'+len(s.asked)))+s.clock().Format("150405")
		s.asked <- r.DeepCopy()
		return false, nil, nil
	})
	s.pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "p", UID: "u"}, Spec: corev1.PodSpec{
		ServiceAccountName: "account",
		Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
			Sources: []corev1.VolumeProjection{{PodCertificate: projection()}},
		}}}},
	}}
	ctx, cancel := context.WithCancel(t.Context())
	store := objects.New(ctx, s, "node", slog.New(slog.DiscardHandler), func(types.UID) { s.seen.Add(1) })
	t.Cleanup(func() { cancel(); store.Wait() })
	store.Use(s.pod)
	s.certificates = objects.NewCertificates(s, "node", store, s.events, s.clock)
	eventually(t, func() bool { return watches(s.Clientset) == 1 })
	return s
}

func projection() *corev1.PodCertificateProjection {
	seconds := int32(7200)
	return &corev1.PodCertificateProjection{SignerName: "example.com/signer", KeyType: "ED25519", MaxExpirationSeconds: &seconds, UserAnnotations: map[string]string{"example.com/a": "b"}}
}

func (s *signer) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *signer) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

// answer sets a condition of a request; an issued certificate is to be renewed after an hour and holds for two.
func (s *signer) answer(t *testing.T, r *certificatesv1.PodCertificateRequest, kind, chain string) {
	t.Helper()
	refresh, end := metav1.NewTime(s.clock().Add(time.Hour)), metav1.NewTime(s.clock().Add(2*time.Hour))
	r.Status = certificatesv1.PodCertificateRequestStatus{
		Conditions:       []metav1.Condition{{Type: kind, Status: metav1.ConditionTrue, Reason: "Why", Message: "because"}},
		CertificateChain: chain, BeginRefreshAt: &refresh, NotAfter: &end,
	}
	if _, err := s.CertificatesV1().PodCertificateRequests("n").UpdateStatus(t.Context(), r, metav1.UpdateOptions{}); err != nil {
		t.Error(err)
	}
}

func (s *signer) ask(ctx context.Context) (key, chain string, renew time.Time, err error) {
	c, err := s.certificates.Certificate(ctx, s.pod, "v", 0, projection())
	return string(c.Key), string(c.Chain), c.Renew, err
}

func block(kind, content string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: []byte(content)}))
}

func TestCertificate(t *testing.T) {
	s := newSigner(t)
	go func() {
		r := <-s.asked
		want := certificatesv1.PodCertificateRequestSpec{
			SignerName: "example.com/signer", PodName: "p", PodUID: "u", ServiceAccountName: "account", ServiceAccountUID: "account-uid",
			NodeName: "node", NodeUID: "node-uid",
		}
		got := r.Spec
		proof, err := x509.ParseCertificateRequest(got.StubPKCS10Request)
		if err == nil {
			err = proof.CheckSignature()
		}
		if err != nil || *got.MaxExpirationSeconds != 7200 || got.UnverifiedUserAnnotations["example.com/a"] != "b" || r.OwnerReferences[0].UID != "u" {
			t.Errorf("%+v, %v", r, err)
		}
		got.StubPKCS10Request, got.MaxExpirationSeconds, got.UnverifiedUserAnnotations = nil, nil, nil
		if got.SignerName != want.SignerName || got.PodName != want.PodName || got.PodUID != want.PodUID || got.ServiceAccountName != want.ServiceAccountName ||
			got.ServiceAccountUID != want.ServiceAccountUID || got.NodeName != want.NodeName || got.NodeUID != want.NodeUID {
			t.Errorf("%+v", got)
		}
		s.answer(t, r, "Issued", "a note\n"+block("CERTIFICATE", "leaf")+block("CERTIFICATE", "middle"))
	}()
	first, chain, renew, err := s.ask(t.Context())
	if err != nil || chain != block("CERTIFICATE", "leaf")+block("CERTIFICATE", "middle") || !strings.HasPrefix(first, "-----BEGIN PRIVATE KEY-----") {
		t.Fatalf("%q, %q, %v", first, chain, err)
	}
	if d := renew.Sub(s.clock()); d < time.Hour || d > time.Hour+5*time.Minute {
		t.Errorf("it is to be renewed after %v", d)
	}
	if again, _, _, err := s.ask(t.Context()); again != first || err != nil || len(s.asked) > 0 {
		t.Errorf("a certificate that holds is asked for again: %v", err)
	}

	// Renewal: the old one serves until the signer answers, and the user hears of it when it doesn't.
	s.pass(time.Hour + 5*time.Minute)
	if again, _, renew, err := s.ask(t.Context()); again != first || err != nil || renew.After(s.clock().Add(time.Minute)) {
		t.Errorf("while a new one is on its way: next look at %v, %v", renew, err)
	}
	next := <-s.asked
	// Made, answered, and the next one made: one that is not seen for long counts as deleted.
	eventually(t, func() bool { return s.seen.Load() == 3 })
	s.pass(time.Hour)
	if again, _, _, err := s.ask(t.Context()); again != first || err != nil {
		t.Errorf("an expired one is better than none: %v", err)
	}
	for _, want := range []string{"CertificateOverdueForRefresh", "CertificateExpired"} {
		if got := <-s.events.Events; !strings.Contains(got, want) {
			t.Errorf("event %q, want %s", got, want)
		}
	}
	s.answer(t, next, "Issued", block("CERTIFICATE", "new"))
	eventually(t, func() bool {
		key, chain, _, err := s.ask(t.Context())
		return err == nil && key != first && chain == block("CERTIFICATE", "new")
	})
	if len(s.asked) > 0 || len(s.events.Events) > 0 {
		t.Error("more was asked or told than needed")
	}
}

func TestCertificateRefused(t *testing.T) {
	for _, kind := range []string{"Denied", "Failed"} {
		s := newSigner(t)
		go func() { s.answer(t, <-s.asked, kind, "") }()
		_, _, _, err := s.ask(t.Context())
		if err == nil || !strings.Contains(err.Error(), kind+", Why: because") {
			t.Errorf("%s: %v", kind, err)
		}
		if got := <-s.events.Events; !strings.Contains(got, kind) {
			t.Errorf("event %q", got)
		}
		if _, _, _, again := s.ask(t.Context()); again == nil || len(s.asked) > 0 {
			t.Errorf("%s: it is asked again: %v", kind, again)
		}
	}
}

// A request that somebody deleted is made again, but not before it can't be a late watch any more.
func TestCertificateRequestLost(t *testing.T) {
	s := newSigner(t)
	hasty, cancel := context.WithCancel(t.Context())
	go func() {
		r := <-s.asked
		if err := s.CertificatesV1().PodCertificateRequests("n").Delete(t.Context(), r.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
		cancel()
	}()
	if _, _, _, err := s.ask(hasty); err == nil || !strings.Contains(err.Error(), "has not answered") {
		t.Errorf("without an answer: %v", err)
	}
	eventually(t, func() bool {
		ended, cancel := context.WithCancel(t.Context())
		s.pass(time.Minute)
		cancel()
		_, _, _, err := s.ask(ended)
		return len(s.asked) == 1 && err != nil
	})
	go func() { s.answer(t, <-s.asked, "Issued", block("CERTIFICATE", "c")) }()
	if _, chain, _, err := s.ask(t.Context()); err != nil || chain != block("CERTIFICATE", "c") {
		t.Errorf("%q, %v", chain, err)
	}
}

func TestCertificateCannotBeAskedFor(t *testing.T) {
	s := newSigner(t)
	broken := errors.New("no server")
	s.PrependReactor("get", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, broken })
	if _, _, _, err := s.ask(t.Context()); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	p := projection()
	p.KeyType = "DSA"
	s.ReactionChain = s.ReactionChain[1:]
	if _, err := s.certificates.Certificate(t.Context(), s.pod, "other", 0, p); err == nil || !strings.Contains(err.Error(), "key of type DSA") {
		t.Errorf("%v", err)
	}
}
