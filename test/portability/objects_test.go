package portability

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"embed"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
)

// namespace is where the table's objects stand.
const namespace = "portability"

// manager is the field manager of every write, so that both servers note the same.
const manager = "portability"

//go:embed objects/*.yaml
var manifests embed.FS

// An item is an object of the table and the resource that serves it.
type item struct {
	gvr    schema.GroupVersionResource
	object *unstructured.Unstructured
}

func (i item) String() string {
	return strings.Trim(i.gvr.GroupResource().String()+"/"+i.object.GetNamespace()+"/"+i.object.GetName(), "/")
}

func (i item) of(p *portal) dynamic.ResourceInterface {
	return p.dynamic.Resource(i.gvr).Namespace(i.object.GetNamespace())
}

// table reads the manifests and gives every object its resource as discovery tells it. Every
// kind that the server keeps must have an object.
func table(t *testing.T, p *portal) []item {
	t.Helper()
	objects := readManifests(t)
	_, lists, err := p.disco.ServerGroupsAndResources()
	if err != nil {
		t.Fatalf("discover what %s serves: %v", p.name, err)
	}
	var items []item
	have := map[*unstructured.Unstructured]bool{}
	covered := map[schema.GroupKind]bool{}
	var all []schema.GroupVersionKind
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list.APIResources {
			if strings.Contains(r.Name, "/") || !slices.Contains(r.Verbs, "create") || !slices.Contains(r.Verbs, "get") {
				continue
			}
			gvk := gv.WithKind(r.Kind)
			all = append(all, gvk)
			for _, o := range objects {
				if o.GroupVersionKind() == gvk {
					items = append(items, item{gvr: gv.WithResource(r.Name), object: o})
					have[o], covered[gvk.GroupKind()] = true, true
				}
			}
		}
	}
	for _, gvk := range all {
		if !covered[gvk.GroupKind()] {
			t.Errorf("%s serves %s, of which test/portability/objects has no object: add one", p.name, gvk)
		}
	}
	for _, o := range objects {
		if !have[o] {
			t.Errorf("%s does not serve %s %s", p.name, o.GroupVersionKind(), o.GetName())
		}
	}
	return items
}

func readManifests(t *testing.T) []*unstructured.Unstructured {
	t.Helper()
	files, err := manifests.ReadDir("objects")
	if err != nil {
		t.Fatal(err)
	}
	var objects []*unstructured.Unstructured
	for _, f := range files {
		data, err := manifests.ReadFile("objects/" + f.Name())
		if err != nil {
			t.Fatal(err)
		}
		for old, value := range certificates() {
			data = bytes.ReplaceAll(data, []byte(old), value)
		}
		decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
		for {
			var o unstructured.Unstructured
			err := decoder.Decode(&o.Object)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("objects/%s: %v", f.Name(), err)
			}
			objects = append(objects, &o)
		}
	}
	return objects
}

// certificates stand for what manifests can't hold since it would run out: made once, so that
// both servers get the same.
var certificates = sync.OnceValue(func() map[string][]byte {
	must := func(b []byte, err error) []byte {
		if err != nil {
			panic(err)
		}
		return b
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(nil, err)
	root := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "portability"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	ca := must(x509.CreateCertificate(rand.Reader, root, root, &key.PublicKey, key))
	csr := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "portability"}}, key))
	stub := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key))
	encode := func(b []byte) []byte { return []byte(base64.StdEncoding.EncodeToString(b)) }
	return map[string][]byte{
		"REQUEST_PEM": encode(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
		"REQUEST_DER": encode(stub),
		"CERTIFICATE": must(json.Marshal(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca})))),
	}
})

// fill writes the table through a server.
func fill(t *testing.T, p *portal, items []item) {
	t.Helper()
	ns := &unstructured.Unstructured{}
	ns.SetAPIVersion("v1")
	ns.SetKind("Namespace")
	ns.SetName(namespace)
	options := metav1.CreateOptions{FieldManager: manager}
	namespaces := p.dynamic.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"})
	if _, err := namespaces.Create(t.Context(), ns, options); err != nil {
		t.Fatalf("create the namespace through %s: %v", p.name, err)
	}
	for _, i := range order(items) {
		if _, err := i.of(p).Create(t.Context(), i.object, options); err != nil {
			t.Errorf("create %s through %s: %v", i, p.name, err)
		}
	}
}

// order has what others need in front: accounts before pods, pods last.
func order(items []item) []item {
	rank := func(i item) int {
		switch i.gvr.Resource {
		case "serviceaccounts", "priorityclasses":
			return 0
		case "pods":
			return 2
		}
		return 1
	}
	sorted := slices.Clone(items)
	slices.SortStableFunc(sorted, func(a, b item) int { return rank(a) - rank(b) })
	return sorted
}
