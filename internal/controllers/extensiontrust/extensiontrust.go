// Package extensiontrust publishes what aggregated API servers need to know to trust the API servers: the ConfigMap
// kube-system/extension-apiserver-authentication, which every library for such servers reads. It holds the authority of
// client certificates, those of front proxies, and the headers by which a front proxy says who asks.
package extensiontrust

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
)

const name = "extension-apiserver-authentication"

// Trust is what is published.
type Trust struct {
	// ClientCA and FrontProxyCA are the authorities, in PEM, of client certificates and of front proxies'.
	ClientCA, FrontProxyCA []byte
	// Proxies are the names that a front proxy's certificate may have; with none, any will do.
	Proxies []string
	// UsernameHeaders and the others are headers by which proxies name users, beside those of API servers (X-Remote-User
	// and so on), which are published always.
	UsernameHeaders, UIDHeaders, GroupHeaders, ExtraPrefixes []string
}

// New makes the controller. trust tells what to publish, and until when: the channel is closed when there is something
// else, and may be nil.
func New(deps kit.Deps, trust func() (Trust, <-chan struct{})) kit.Controller {
	key := types.NamespacedName{Namespace: metav1.NamespaceSystem, Name: name}
	return kit.Controller{
		Name:    "extension-apiserver-authentication",
		Workers: 1,
		Watches: []kit.Watch{{Kind: &corev1.ConfigMap{}, Requests: func(e barqueclient.Event) []reconcile.Request {
			if client.ObjectKeyFromObject(e.Object()) != key {
				return nil
			}
			return kit.Self(e)
		}}},
		Source: func(ctx context.Context, enqueue func(reconcile.Request)) error {
			for {
				_, replaced := trust()
				enqueue(reconcile.Request{NamespacedName: key}) // nobody may have made it yet
				select {
				case <-replaced:
				case <-ctx.Done():
					return nil
				}
			}
		},
		Reconcile: func(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
			now, _ := trust()
			return reconcile.Result{}, publish(ctx, deps.Client, req.NamespacedName, now, deps.Clock.Now())
		},
	}
}

func publish(ctx context.Context, c client.Client, key types.NamespacedName, trust Trust, now time.Time) error {
	have := &corev1.ConfigMap{}
	err := c.Get(ctx, key, have)
	switch {
	case apierrors.IsNotFound(err):
		data, merr := merged(nil, trust, now)
		if merr != nil {
			return merr
		}
		err = c.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}, Data: data})
	case err == nil:
		data, merr := merged(have.Data, trust, now)
		if merr != nil {
			return merr
		}
		if maps.Equal(data, have.Data) {
			return nil
		}
		changed := have.DeepCopy()
		changed.Data = data
		err = c.Update(ctx, changed)
	}
	if err != nil {
		return fmt.Errorf("publish ConfigMap %s: %w", key, err)
	}
	return nil
}

// Keys of the ConfigMap.
const (
	clientCA     = "client-ca-file"
	frontProxyCA = "requestheader-client-ca-file"
	allowedNames = "requestheader-allowed-names"
)

// merged adds to what is published already, which may be another API server's during an upgrade or a rotation of
// authorities. Certificates leave when they have run out; what can't be read is replaced.
func merged(have map[string]string, trust Trust, now time.Time) (map[string]string, error) {
	data := map[string]string{
		clientCA:     certificates(now, []byte(have[clientCA]), trust.ClientCA),
		frontProxyCA: certificates(now, []byte(have[frontProxyCA]), trust.FrontProxyCA),
	}
	for key, own := range map[string][]string{
		allowedNames:                         trust.Proxies,
		"requestheader-username-headers":     append([]string{"X-Remote-User"}, trust.UsernameHeaders...),
		"requestheader-uid-headers":          append([]string{"X-Remote-Uid"}, trust.UIDHeaders...),
		"requestheader-group-headers":        append([]string{"X-Remote-Group"}, trust.GroupHeaders...),
		"requestheader-extra-headers-prefix": append([]string{"X-Remote-Extra-"}, trust.ExtraPrefixes...),
	} {
		list := []string{}
		if key != allowedNames || len(own) > 0 {
			list = union(have[key], own)
		}
		value, err := json.Marshal(list)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", key, err)
		}
		data[key] = string(value)
	}
	return data, nil
}

// union adds what is missing to a list in JSON. Names of headers and of certificates are compared as they are written.
func union(have string, own []string) []string {
	var list []string
	if json.Unmarshal([]byte(have), &list) != nil {
		list = nil
	}
	for _, item := range own {
		if !slices.Contains(list, item) {
			list = append(list, item)
		}
	}
	return list
}

// certificates joins bundles in PEM: each certificate once, and none that has run out.
func certificates(now time.Time, bundles ...[]byte) string {
	var out bytes.Buffer
	seen := map[string]bool{}
	for _, rest := range bundles {
		for {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil || block.Type != "CERTIFICATE" || seen[string(cert.Raw)] || now.After(cert.NotAfter) {
				continue
			}
			seen[string(cert.Raw)] = true
			out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
		}
	}
	return out.String()
}
