package objects

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"barque.dev/internal/agent/volume"
)

// Certificates gets the certificates that pods' volumes ask for (KEP-4317): it makes a key, asks the
// volume's signer by a PodCertificateRequest, and asks again, with another key, when the signer's time
// has come. Keys are in memory only: an agent that starts again asks again. It is safe for concurrent use.
type Certificates struct {
	client kubernetes.Interface
	node   string
	store  *Store
	events record.EventRecorder
	now    func() time.Time

	mu    sync.Mutex
	known map[certificateKey]*credential
}

// certificateKey names a source of a volume.
type certificateKey struct {
	pod    types.UID
	volume string
	source int
}

// NewCertificates returns an empty Certificates of a node, whose requests store follows.
func NewCertificates(client kubernetes.Interface, node string, store *Store, events record.EventRecorder, now func() time.Time) *Certificates {
	return &Certificates{client: client, node: node, store: store, events: events, now: now, known: map[certificateKey]*credential{}}
}

// Certificate returns the key and certificate of the index-th source of a volume. It waits for some
// seconds for the first one; after that the present one is returned while the next is on its way.
func (c *Certificates) Certificate(ctx context.Context, pod *corev1.Pod, name string, index int, p *corev1.PodCertificateProjection) (volume.Certificate, error) {
	x := c.of(certificateKey{pod.UID, name, index})
	x.mu.Lock()
	defer x.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, firstAnswer)
	defer cancel()
	for {
		// From before anything is asked, so that no answer is missed.
		requests, news, err := c.store.sharedObjects(ctx, certificateRequests)
		if err != nil {
			return volume.Certificate{}, err
		}
		if err := c.advance(ctx, pod, p, &x.credentialState, requests); err != nil {
			return volume.Certificate{}, err
		}
		if len(x.key) > 0 {
			return x.certificate(c.now()), nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return volume.Certificate{}, fmt.Errorf("signer %s has not answered PodCertificateRequest %s/%s yet", p.SignerName, pod.Namespace, x.asked.name)
		}
	}
}

func (c *Certificates) of(key certificateKey) *credential {
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.known[key]
	if x == nil {
		x = &credential{}
		c.known[key] = x
	}
	return x
}

// Drop forgets a pod's certificates.
func (c *Certificates) Drop(uid types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.known, func(k certificateKey, _ *credential) bool { return k.pod == uid })
}

// advance takes in the answer to the request under way, and makes another when it is time.
func (c *Certificates) advance(ctx context.Context, pod *corev1.Pod, p *corev1.PodCertificateProjection, x *credentialState, requests cache.Store) error {
	if x.asked != nil {
		object, _, err := requests.GetByKey(cache.NewObjectName(pod.Namespace, x.asked.name).String())
		if err != nil {
			return err
		}
		request, _ := object.(*certificatesv1.PodCertificateRequest)
		c.tell(pod, x.take(request, c.now()))
	}
	c.tell(pod, x.late(c.now()))
	if x.refused != nil || !x.due(c.now()) {
		return x.refused
	}
	asked, err := c.ask(ctx, pod, p)
	if err != nil && len(x.key) == 0 {
		return err
	}
	x.asked = asked // after an error none: the present certificate serves until the next attempt
	return nil
}

func (c *Certificates) tell(pod *corev1.Pod, events []event) {
	for _, e := range events {
		c.events.Event(pod, corev1.EventTypeWarning, e.reason, e.message)
	}
}

// ask makes a key and a request for a certificate of it.
func (c *Certificates) ask(ctx context.Context, pod *corev1.Pod, p *corev1.PodCertificateProjection) (*question, error) {
	account, err := c.client.CoreV1().ServiceAccounts(pod.Namespace).Get(ctx, pod.Spec.ServiceAccountName, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("service account of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	node, err := c.client.CoreV1().Nodes().Get(ctx, c.node, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("node of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	key, proof, err := newKey(p.KeyType)
	if err != nil {
		return nil, err
	}
	request, err := c.client.CertificatesV1().PodCertificateRequests(pod.Namespace).Create(ctx, &certificatesv1.PodCertificateRequest{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName:    "req-",
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}},
		},
		Spec: certificatesv1.PodCertificateRequestSpec{
			SignerName: p.SignerName, PodName: pod.Name, PodUID: pod.UID,
			ServiceAccountName: account.Name, ServiceAccountUID: account.UID,
			NodeName: types.NodeName(node.Name), NodeUID: node.UID,
			MaxExpirationSeconds: p.MaxExpirationSeconds, StubPKCS10Request: proof, UnverifiedUserAnnotations: p.UserAnnotations,
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("ask signer %s for a certificate of pod %s/%s: %w", p.SignerName, pod.Namespace, pod.Name, err)
	}
	return &question{name: request.Name, key: key, since: c.now()}, nil
}
