package extensiontrust

import (
	"context"
	"encoding/json"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/controllers/controllertest"
	"barque.dev/internal/pki"
)

func authority(t *testing.T, name string, made time.Time) []byte {
	t.Helper()
	a, err := pki.NewAuthority(name, made)
	if err != nil {
		t.Fatal(err)
	}
	return a.PEM()
}

// TestPublished: what aggregated API servers read is made, mended, and added to what another server published.
func TestPublished(t *testing.T) {
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: name}}
	w := controllertest.New(t)
	now := w.Clock.Now()
	own := Trust{ClientCA: authority(t, "clients", now), FrontProxyCA: authority(t, "proxies", now), Proxies: []string{"front-proxy-client"}}
	c := New(w.Deps(), func() (Trust, <-chan struct{}) { return own, nil })
	check := func(what string, want map[string]string) {
		t.Helper()
		w.Reconcile(c, object)
		data := controllertest.Reload(w, object).Data
		for key, value := range want {
			if data[key] != value {
				t.Errorf("%s: %s is %s, want %s", what, key, data[key], value)
			}
		}
		if len(data) != 7 {
			t.Errorf("%s: %v", what, data)
		}
	}
	all := map[string]string{
		"client-ca-file": string(own.ClientCA), "requestheader-client-ca-file": string(own.FrontProxyCA),
		"requestheader-allowed-names": `["front-proxy-client"]`, "requestheader-username-headers": `["X-Remote-User"]`,
		"requestheader-uid-headers": `["X-Remote-Uid"]`, "requestheader-group-headers": `["X-Remote-Group"]`,
		"requestheader-extra-headers-prefix": `["X-Remote-Extra-"]`,
	}
	check("new", all)

	other, old := authority(t, "other", now), authority(t, "old", now.Add(-pki.AuthorityValidity-time.Hour))
	names, err := json.Marshal([]string{"aggregator"})
	if err != nil {
		t.Fatal(err)
	}
	controllertest.Change(w, object, func(cm *corev1.ConfigMap) {
		cm.Data = map[string]string{
			"client-ca-file": string(old) + string(other), "requestheader-client-ca-file": "not a certificate",
			"requestheader-allowed-names": string(names), "requestheader-group-headers": "{", "unknown": "x",
		}
	})
	all["client-ca-file"] = string(other) + string(own.ClientCA)
	all["requestheader-allowed-names"] = `["aggregator","front-proxy-client"]`
	check("beside another", all)
	before := controllertest.Reload(w, object).ResourceVersion
	check("as it was", all)
	if after := controllertest.Reload(w, object).ResourceVersion; after != before {
		t.Error("what needs no change is written")
	}

	own.Proxies, own.UsernameHeaders, own.ExtraPrefixes = append(own.Proxies, "gate"), []string{"X-User", "X-Remote-User"}, []string{"X-More-"}
	all["requestheader-allowed-names"] = `["aggregator","front-proxy-client","gate"]`
	all["requestheader-username-headers"] = `["X-Remote-User","X-User"]`
	all["requestheader-extra-headers-prefix"] = `["X-Remote-Extra-","X-More-"]`
	check("more proxies", all)
	own.Proxies = nil
	all["requestheader-allowed-names"] = `[]`
	check("proxies of any name", all)
	if strings.Count(all["client-ca-file"], "BEGIN CERTIFICATE") != 2 {
		t.Errorf("clients' authorities are %s", all["client-ca-file"])
	}
}

// TestFollows: what is to be published is published again when it is replaced.
func TestFollows(t *testing.T) {
	w := controllertest.New(t)
	replaced := make(chan struct{})
	var served atomic.Int32
	c := New(w.Deps(), func() (Trust, <-chan struct{}) {
		if served.Add(1) == 1 {
			return Trust{}, replaced
		}
		return Trust{}, nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	enqueued, ended := make(chan reconcile.Request), make(chan error, 1)
	go func() { ended <- c.Source(ctx, func(r reconcile.Request) { enqueued <- r }) }()
	for range 2 {
		if r := <-enqueued; r.Name != name || r.Namespace != "kube-system" {
			t.Fatalf("enqueued %v", r)
		}
		select {
		case <-replaced:
		default:
			close(replaced)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
