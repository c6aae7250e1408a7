package apiserver_test

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"sigs.k8s.io/yaml"
)

const hostDefinition = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: hosts.net.example.com}
spec:
  group: net.example.com
  scope: Cluster
  names: {plural: hosts, singular: host, kind: Host, listKind: HostList}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {hostPort: {type: string}}}}
  - name: v2
    served: true
    storage: false
    selectableFields: [{jsonPath: .host}]
    additionalPrinterColumns: [{name: Host, type: string, jsonPath: .host}]
    schema: {openAPIV3Schema: {type: object, properties: {host: {type: string}, port: {type: string}, color: {type: string, default: blue}}}}
`

// converter is a conversion webhook between a field hostPort in v1, and host and port in v2.
type converter struct {
	*httptest.Server
	down, long atomic.Bool
	calls      atomic.Int32
}

func newConverter(t *testing.T) *converter {
	c := &converter{}
	c.Server = httptest.NewTLSServer(http.HandlerFunc(c.serve))
	t.Cleanup(c.Close)
	return c
}

func (c *converter) serve(w http.ResponseWriter, req *http.Request) {
	c.calls.Add(1)
	var review apiextensionsv1.ConversionReview
	if err := json.NewDecoder(req.Body).Decode(&review); err != nil || c.down.Load() {
		http.Error(w, "out of order", http.StatusInternalServerError)
		return
	}
	response := &apiextensionsv1.ConversionResponse{UID: review.Request.UID, Result: metav1.Status{Status: metav1.StatusSuccess}}
	if c.long.Load() {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(bytes.Repeat([]byte(" "), 16<<20))
	}
	for _, raw := range review.Request.Objects {
		u := &unstructured.Unstructured{}
		if err := json.Unmarshal(raw.Raw, u); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if strings.HasSuffix(review.Request.DesiredAPIVersion, "/v2") {
			both, _, _ := unstructured.NestedString(u.Object, "hostPort")
			u.Object["host"], u.Object["port"], _ = strings.Cut(both, ":")
			delete(u.Object, "hostPort")
		} else {
			u.Object["hostPort"] = u.Object["host"].(string) + ":" + u.Object["port"].(string)
			delete(u.Object, "host")
			delete(u.Object, "port")
		}
		u.SetAPIVersion(review.Request.DesiredAPIVersion)
		response.ConvertedObjects = append(response.ConvertedObjects, runtime.RawExtension{Object: u})
	}
	review.Request, review.Response = nil, response
	_ = json.NewEncoder(w).Encode(review)
}

// manifest is the definition with the webhook.
func (c *converter) manifest(t *testing.T) string {
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict([]byte(hostDefinition), crd); err != nil {
		t.Fatal(err)
	}
	crd.Spec.Conversion = &apiextensionsv1.CustomResourceConversion{Strategy: apiextensionsv1.WebhookConverter, Webhook: &apiextensionsv1.WebhookConversion{
		ConversionReviewVersions: []string{"v1"},
		ClientConfig: &apiextensionsv1.WebhookClientConfig{
			URL: &c.URL, CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate().Raw}),
		},
	}}
	out, err := yaml.Marshal(crd)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestConversionWebhook: each version has its own schema, defaults, columns and fields; what needs no conversion works
// while the webhook does not.
func TestConversionWebhook(t *testing.T) {
	c, hook, ctx := start(t, nil), newConverter(t), t.Context()
	establish(t, c, hook.manifest(t))
	gvr := schema.GroupVersionResource{Group: "net.example.com", Version: "v1", Resource: "hosts"}
	client := dynamic.NewForConfigOrDie(asAdmin(t, c))
	v1 := client.Resource(gvr)
	gvr.Version = "v2"
	v2 := client.Resource(gvr)
	host := func(version string, fields map[string]any) *unstructured.Unstructured {
		u := &unstructured.Unstructured{Object: fields}
		u.SetAPIVersion("net.example.com/" + version)
		u.SetKind("Host")
		return u
	}
	one := host("v1", map[string]any{"hostPort": "one:80"})
	one.SetName("one")
	if _, err := v1.Create(ctx, one, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	two := host("v2", map[string]any{"host": "two", "port": "81"})
	two.SetName("two")
	made, err := v2.Create(ctx, two, metav1.CreateOptions{})
	if err != nil || made.Object["color"] != "blue" {
		t.Fatalf("created %v, %v", made, err)
	}
	if got, err := v1.Get(ctx, "two", metav1.GetOptions{}); err != nil || got.Object["hostPort"] != "two:81" || got.Object["color"] != nil {
		t.Errorf("as v1: %v, %v", got, err)
	}
	list, err := v2.List(ctx, metav1.ListOptions{FieldSelector: "host=one"})
	if err != nil || len(list.Items) != 1 || list.Items[0].Object["port"] != "80" || list.Items[0].Object["color"] != "blue" {
		t.Errorf("by the field of v2: %v, %v", list, err)
	}
	if _, err := v1.List(ctx, metav1.ListOptions{FieldSelector: "host=one"}); !apierrors.IsBadRequest(err) {
		t.Errorf("v1 has no such field: %v", err)
	}
	_, table := body(t, c, "/apis/net.example.com/v2/hosts", "application/json;as=Table;v=v1;g=meta.k8s.io")
	if !strings.Contains(table, `"cells":["one","one"]`) {
		t.Errorf("table: %s", table)
	}
	hook.down.Store(true)
	establishedAgain(t, c) // what was converted is kept with the objects; a new schema forgets it
	if _, err := v2.Get(ctx, "one", metav1.GetOptions{}); err == nil || !strings.Contains(err.Error(), "conversion webhook for net.example.com/v1, Kind=Host failed") {
		t.Errorf("while the webhook is down: %v", err)
	}
	if got, err := v1.Get(ctx, "one", metav1.GetOptions{}); err != nil || got.Object["hostPort"] != "one:80" {
		t.Errorf("the version that is kept: %v, %v", got, err)
	}
	partial, err := metadata.NewForConfigOrDie(asAdmin(t, c)).Resource(gvr).List(ctx, metav1.ListOptions{})
	if err != nil || len(partial.Items) != 2 {
		t.Errorf("metadata: %v, %v", partial, err)
	}
	if err := v2.Delete(ctx, "one", metav1.DeleteOptions{}); err != nil {
		t.Errorf("deletion: %v", err)
	}
	hook.down.Store(false)
	hook.long.Store(true)
	if _, err := v2.Get(ctx, "two", metav1.GetOptions{}); err == nil || !strings.Contains(err.Error(), "longer than 8388608 bytes") {
		t.Errorf("while the webhook answers at length: %v", err)
	}
	hook.long.Store(false)
	if got, err := v2.Get(ctx, "two", metav1.GetOptions{}); err != nil || got.Object["host"] != "two" {
		t.Errorf("when the webhook is back: %v, %v", got, err)
	}
}

// TestConversionWebhookIsAskedOnceForAList: all objects of a list that are kept in another version go to the webhook together, and
// what came back is not asked for again, nor are the fields that selectors see.
func TestConversionWebhookIsAskedOnceForAList(t *testing.T) {
	c, hook, ctx := start(t, nil), newConverter(t), t.Context()
	establish(t, c, hook.manifest(t))
	gvr := schema.GroupVersionResource{Group: "net.example.com", Version: "v1", Resource: "hosts"}
	client := dynamic.NewForConfigOrDie(asAdmin(t, c))
	for i := range 50 {
		u := &unstructured.Unstructured{Object: map[string]any{"hostPort": fmt.Sprintf("h%d:80", i%5)}}
		u.SetAPIVersion("net.example.com/v1")
		u.SetKind("Host")
		u.SetName(fmt.Sprintf("h%02d", i))
		if _, err := client.Resource(gvr).Create(ctx, u, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	gvr.Version = "v2"
	v2 := client.Resource(gvr)
	for _, want := range []int32{1, 0} {
		hook.calls.Store(0)
		list, err := v2.List(ctx, metav1.ListOptions{})
		if err != nil || len(list.Items) != 50 {
			t.Fatal(len(list.Items), err)
		}
		for i, item := range list.Items {
			if item.Object["host"] != fmt.Sprintf("h%d", i%5) || item.GetName() != fmt.Sprintf("h%02d", i) || item.Object["color"] != "blue" || item.GetAPIVersion() != "net.example.com/v2" {
				t.Fatalf("item %d is %v", i, item.Object)
			}
		}
		if got := hook.calls.Load(); got != want {
			t.Errorf("the webhook was asked %d times, want %d", got, want)
		}
	}
	for round := range 2 {
		hook.calls.Store(0)
		list, err := v2.List(ctx, metav1.ListOptions{FieldSelector: "host=h3"})
		if err != nil || len(list.Items) != 10 {
			t.Fatal(len(list.Items), err)
		}
		if got := hook.calls.Load(); round > 0 && got > 0 {
			t.Errorf("the webhook was asked %d times for fields that were known", got)
		}
	}
	hook.down.Store(true)
	establishedAgain(t, c)
	eventually(t, "a list that can't be converted fails", func() error {
		if _, err := v2.List(ctx, metav1.ListOptions{}); err == nil || !strings.Contains(err.Error(), "conversion webhook for net.example.com/v2, Kind=HostList failed") {
			return fmt.Errorf("%v", err)
		}
		return nil
	})
}

// establishedAgain changes the schema of the hosts.
func establishedAgain(t *testing.T, c *cluster) {
	t.Helper()
	crds := dynamic.NewForConfigOrDie(asAdmin(t, c)).Resource(apiextensionsv1.SchemeGroupVersion.WithResource("customresourcedefinitions"))
	_, err := crds.Patch(t.Context(), "hosts.net.example.com", "application/json-patch+json",
		[]byte(`[{"op":"add","path":"/spec/versions/0/schema/openAPIV3Schema/properties/note","value":{"type":"string"}}]`), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
}
