package apiserver_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/client-go/kubernetes/scheme"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/pki"
	"barque.dev/internal/store"
)

// status is the Status that an answer holds.
func status(tb testing.TB, a answer) metav1.Status {
	tb.Helper()
	var s metav1.Status
	if err := json.Unmarshal([]byte(a.body), &s); err != nil || s.Kind != "Status" {
		tb.Fatalf("not a Status (%v): %d %s", err, a.code, a.body)
	}
	return s
}

func TestErrorsAreAsStock(t *testing.T) {
	c := start(t, nil)
	c.wait(t)
	admin, nobody, ann := c.admin(t), c.http(t, ""), c.http(t, "ann")
	for _, test := range []struct {
		name         string
		client       *http.Client
		method, path string
		body         string
		headers      []string
		code         int
		reason       metav1.StatusReason // "" for an answer that is plain text
		message      string
	}{
		{name: "no right", client: ann, method: "GET", path: "/api/v1/pods", code: 403, reason: "Forbidden",
			message: `pods is forbidden: User "ann" cannot list resource "pods" in API group "" at the cluster scope`},
		{name: "no right to a path", client: ann, method: "GET", path: "/metrics", code: 403, reason: "Forbidden",
			message: `forbidden: User "ann" cannot get path "/metrics"`},
		{name: "anonymous", client: nobody, method: "GET", path: "/api/v1/pods", code: 401, reason: "Unauthorized", message: "Unauthorized"},
		{name: "anonymous path", client: nobody, method: "GET", path: "/metrics", code: 401, reason: "Unauthorized", message: "Unauthorized"},
		{name: "anonymous, health", client: nobody, method: "POST", path: "/healthz", code: 403, reason: "Forbidden",
			message: `forbidden: User "system:anonymous" cannot post path "/healthz"`},
		{name: "bad token", client: nobody, method: "GET", path: "/api/v1/pods", headers: []string{"Authorization", "Bearer nonsense"}, code: 401, reason: "Unauthorized", message: "Unauthorized"},
		{name: "unknown path", method: "GET", path: "/nothing", code: 404, message: "404 page not found\n"},
		{name: "unknown group", method: "GET", path: "/apis/nothing.example/v1/things", code: 404, message: "404 page not found\n"},
		{name: "unknown resource", method: "GET", path: "/api/v1/nothings", code: 404, reason: "NotFound", message: "the server could not find the requested resource"},
		{name: "unknown subresource", method: "GET", path: "/api/v1/namespaces/default/pods/a/nothing", code: 404, reason: "NotFound", message: "the server could not find the requested resource"},
		{name: "unknown object", method: "GET", path: "/api/v1/namespaces/default/pods/a", code: 404, reason: "NotFound", message: `pods "a" not found`},
		{name: "too deep", method: "GET", path: "/api/v1/namespaces/default/pods/a/status/b", code: 404, reason: "NotFound", message: "the server could not find the requested resource"},
		{name: "namespace of a cluster's resource", method: "GET", path: "/api/v1/namespaces/default/nodes", code: 404, reason: "NotFound", message: "the server could not find the requested resource"},
		{name: "method", method: "POST", path: "/api/v1/pods", body: "{}", code: 405, reason: "MethodNotAllowed", message: "the server does not allow this method on the requested resource"},
		{name: "head", method: "HEAD", path: "/api/v1/pods", code: 405},
		{name: "options", method: "OPTIONS", path: "/api/v1/pods", code: 405, reason: "MethodNotAllowed", message: "the server does not allow this method on the requested resource"},
		{name: "method of discovery", method: "POST", path: "/apis", code: 405, reason: "MethodNotAllowed", message: "the server does not allow this method on the requested resource"},
		{name: "not acceptable", method: "GET", path: "/api/v1/pods", headers: []string{"Accept", "text/html"}, code: 406, reason: "NotAcceptable",
			message: "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, application/vnd.kubernetes.protobuf, application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"},
		{name: "half a media type", method: "GET", path: "/api/v1/namespaces/default", headers: []string{"Accept", "application/*"}, code: 406, reason: "NotAcceptable",
			message: "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, application/vnd.kubernetes.protobuf"},
		{name: "unknown version", method: "GET", path: "/apis/apps/v9", code: 404, reason: "NotFound", message: "the server could not find the requested resource"},
		{name: "unknown core version", method: "GET", path: "/api/v2", code: 404, reason: "NotFound", message: "the server could not find the requested resource"},
		{name: "two slashes", method: "GET", path: "//api/v1/pods", code: 404, message: "404 page not found\n"},
		{name: "object of a review", method: "GET", path: "/apis/authentication.k8s.io/v1/tokenreviews/x", code: 404, reason: "NotFound", message: "the server could not find the requested resource"},
		{name: "creation by name", method: "POST", path: "/api/v1/namespaces/default", body: "{}", headers: []string{"Content-Type", "application/json"}, code: 405, reason: "MethodNotAllowed", message: "the server does not allow this method on the requested resource"},
		{name: "update of all", method: "PUT", path: "/api/v1/namespaces/default/configmaps", body: "{}", headers: []string{"Content-Type", "application/json"}, code: 405, reason: "MethodNotAllowed", message: "the server does not allow this method on the requested resource"},
		{name: "patch of all", method: "PATCH", path: "/api/v1/namespaces/default/configmaps", body: "{}", headers: []string{"Content-Type", "application/merge-patch+json"}, code: 405, reason: "MethodNotAllowed", message: "the server does not allow this method on the requested resource"},
		{name: "version is read only", method: "POST", path: "/version", code: 405, reason: "MethodNotAllowed", message: "the server does not allow this method on the requested resource"},
		{name: "export", method: "GET", path: "/api/v1/namespaces/default?export=true", code: 400, reason: "BadRequest", message: "the export parameter, deprecated since v1.14, is no longer supported"},
		{name: "options before the object", method: "POST", path: "/api/v1/namespaces?dryRun=Some", body: "{", headers: []string{"Content-Type", "application/json"}, code: 422, reason: "Invalid",
			message: `CreateOptions.meta.k8s.io "" is invalid: dryRun: Unsupported value: ["Some"]: supported values: "All"`},
		{name: "options before the update", method: "PUT", path: "/api/v1/namespaces/default?fieldValidation=Some", body: "{", headers: []string{"Content-Type", "application/json"}, code: 422, reason: "Invalid",
			message: `UpdateOptions.meta.k8s.io "" is invalid: fieldValidation: Unsupported value: "Some": supported values: "", "Ignore", "Strict", "Warn"`},
		{name: "bad resource version", method: "GET", path: "/api/v1/namespaces?resourceVersion=x", code: 400, reason: "BadRequest",
			message: `invalid resource version: resourceVersion: Invalid value: "x": strconv.ParseUint: parsing "x": invalid syntax`},
		{name: "broken patch", method: "PATCH", path: "/api/v1/namespaces/default", body: "{", headers: []string{"Content-Type", "application/merge-patch+json"}, code: 400, reason: "BadRequest", message: "invalid JSON patch"},
		{name: "table in protobuf", method: "GET", path: "/api/v1/pods", headers: []string{"Accept", "application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1"}, code: 406, reason: "NotAcceptable",
			message: "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"},
		{name: "review in a table", method: "POST", path: "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body: `{"spec":{"nonResourceAttributes":{"path":"/","verb":"get"}}}`,
			headers: []string{"Content-Type", "application/json", "Accept", "application/json;as=Table;g=meta.k8s.io;v=v1"}, code: 406, reason: "NotAcceptable",
			message: "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"},
		{name: "review of a broken selector", method: "POST", path: "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body: `{"spec":{"resourceAttributes":{"verb":"list","labelSelector":{"requirements":[{"key":"a","operator":"In"}]}}}}`,
			headers: []string{"Content-Type", "application/json"}, code: 422, reason: "Invalid",
			message: "SelfSubjectAccessReview.authorization.k8s.io \"\" is invalid: spec.resourceAttributes.labelSelector.requirements[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"},
		{name: "review of a broken field selector", method: "POST", path: "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body: `{"spec":{"resourceAttributes":{"verb":"list","fieldSelector":{"requirements":[{"operator":"Exists"}]}}}}`,
			headers: []string{"Content-Type", "application/json"}, code: 422, reason: "Invalid",
			message: "SelfSubjectAccessReview.authorization.k8s.io \"\" is invalid: spec.resourceAttributes.fieldSelector.requirements[0].key: Required value: must be specified"},
		{name: "options of a log", method: "OPTIONS", path: "/api/v1/namespaces/default/pods/x/log", code: 405, reason: "MethodNotAllowed", message: "the server does not allow this method on the requested resource"},
		{name: "old proxy", method: "GET", path: "/api/v1/proxy/nodes/x", code: 404, reason: "NotFound", message: "the server could not find the requested resource"},
		{name: "type before options", method: "POST", path: "/api/v1/namespaces?dryRun=Some", body: "x", headers: []string{"Content-Type", "text/plain"}, code: 415, reason: "UnsupportedMediaType",
			message: "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf"},
		{name: "broken configuration", method: "PATCH", path: "/api/v1/namespaces/default?fieldManager=m", body: "\tbad", headers: []string{"Content-Type", "application/apply-patch+yaml"}, code: 400, reason: "BadRequest",
			message: "error encoding patch: yaml: found character that cannot start any token"},
		{name: "broken configuration in JSON", method: "PATCH", path: "/api/v1/namespaces/default?fieldManager=m", body: `{"a":1`, headers: []string{"Content-Type", "application/apply-patch+yaml"}, code: 400, reason: "BadRequest",
			message: "error decoding patch: error converting YAML to JSON: yaml: line 1: did not find expected ',' or '}'"},
		{name: "unsupported", method: "POST", path: "/api/v1/namespaces", body: "a=b", headers: []string{"Content-Type", "application/x-www-form-urlencoded"}, code: 415, reason: "UnsupportedMediaType",
			message: "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf"},
		{name: "unsupported patch", method: "PATCH", path: "/api/v1/namespaces/default", body: "{}", headers: []string{"Content-Type", "application/json"}, code: 415, reason: "UnsupportedMediaType", message: "415: Unsupported Media Type"},
		{name: "garbage", method: "POST", path: "/api/v1/namespaces", body: "{", headers: []string{"Content-Type", "application/json"}, code: 400, reason: "BadRequest",
			message: `the object provided is unrecognized (must be of type Namespace): couldn't get version/kind; json parse error: unexpected end of JSON input ({)`},
		{name: "another kind", method: "POST", path: "/api/v1/namespaces", body: `{"kind":"Pod","apiVersion":"v1"}`, headers: []string{"Content-Type", "application/json"}, code: 400, reason: "BadRequest",
			message: `Pod in version "v1" cannot be handled as a Namespace`},
		{name: "another version", method: "POST", path: "/apis/apps/v1/namespaces/default/deployments", body: `{"kind":"Deployment","apiVersion":"apps/v1beta1"}`, headers: []string{"Content-Type", "application/json"}, code: 400, reason: "BadRequest",
			message: "the API version in the data (apps/v1beta1) does not match the expected API version (apps/v1)"},
		{name: "another name", method: "PUT", path: "/api/v1/namespaces/default", body: `{"metadata":{"name":"b"}}`, headers: []string{"Content-Type", "application/json"}, code: 400, reason: "BadRequest",
			message: "the name of the object (b) does not match the name on the URL (default)"},
		{name: "no name", method: "PUT", path: "/api/v1/namespaces/default", body: `{"metadata":{}}`, headers: []string{"Content-Type", "application/json"}, code: 400, reason: "BadRequest",
			message: "the name of the object (default based on URL) was undeterminable: name must be provided"},
		{name: "another namespace", method: "PUT", path: "/api/v1/namespaces/default/configmaps/a", body: `{"metadata":{"name":"a","namespace":"b"}}`, headers: []string{"Content-Type", "application/json"}, code: 400, reason: "BadRequest",
			message: "the namespace of the provided object does not match the namespace sent on the request"},
		{name: "bad timeout", method: "GET", path: "/api/v1/namespaces?timeout=soon", code: 400, reason: "BadRequest", message: `invalid timeout specified in the request URL - time: invalid duration "soon"`},
		{name: "bad selector", method: "GET", path: "/api/v1/namespaces?labelSelector=%2C%2C", code: 400, reason: "BadRequest", message: `found ',', expected: !, identifier, or 'end of string'`},
		{name: "strict", method: "POST", path: "/api/v1/namespaces?fieldValidation=Strict", body: `{"metadata":{"name":"s"},"nothing":1}`, headers: []string{"Content-Type", "application/json"}, code: 400, reason: "BadRequest",
			message: `Namespace in version "v1" cannot be handled as a Namespace: strict decoding error: unknown field "nothing"`},
		{name: "name and selector differ", method: "GET", path: "/api/v1/watch/namespaces/default?fieldSelector=metadata.name%3Db", code: 400, reason: "BadRequest",
			message: "fieldSelector metadata.name doesn't match requested name"},
	} {
		t.Run(test.name, func(t *testing.T) {
			client := test.client
			if client == nil {
				client = admin
			}
			a := do(t, client, test.method, c.url+test.path, strings.NewReader(test.body), test.headers...)
			if a.code != test.code {
				t.Fatalf("code %d, want %d: %s", a.code, test.code, a.body)
			}
			if test.reason == "" {
				if a.body != test.message {
					t.Errorf("body %q, want %q", a.body, test.message)
				}
				return
			}
			s := status(t, a)
			if s.Status != "Failure" || s.Reason != test.reason || int(s.Code) != test.code || s.Message != test.message {
				t.Errorf("got  %s %q\nwant %s %q", s.Reason, s.Message, test.reason, test.message)
			}
		})
	}
}

// Who takes transformed objects alone gets errors as they are, to be read.
func TestErrorsAreNotTransformed(t *testing.T) {
	c := start(t, nil)
	c.wait(t)
	for accept, indented := range map[string]bool{
		"application/json;as=Table;g=meta.k8s.io;v=v1":                                    true,
		"application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1": true,
		"application/json;as=Table;g=meta.k8s.io;v=v1,application/json":                   false,
	} {
		a := do(t, c.admin(t), "GET", c.url+"/api/v1/namespaces/absent", nil, "Accept", accept)
		if a.code != 404 || a.header.Get("Content-Type") != "application/json" || strings.HasPrefix(a.body, "{\n  ") != indented {
			t.Errorf("%s: %d %s %q", accept, a.code, a.header.Get("Content-Type"), a.body)
		}
		if s := status(t, a); s.Reason != metav1.StatusReasonNotFound {
			t.Errorf("%s: %s", accept, s.Reason)
		}
	}
}

// Warnings are of what is asked for: also where nothing is deleted, and not of what another kind would have lacked.
func TestWarningsOfRequests(t *testing.T) {
	c := start(t, nil)
	c.wait(t)
	if a := do(t, c.admin(t), "DELETE", c.url+"/apis/batch/v1/namespaces/default/jobs", nil); a.code != 200 || len(a.header.Values("Warning")) != 1 {
		t.Errorf("jobs that may leave pods behind: %d %v", a.code, a.header.Values("Warning"))
	}
	a := do(t, c.admin(t), "POST", c.url+"/api/v1/namespaces", strings.NewReader(`{"kind":"Pod","apiVersion":"v1","spec":{"nothing":1}}`), "Content-Type", "application/json")
	if a.code != 400 || len(a.header.Values("Warning")) != 0 {
		t.Errorf("another kind: %d %v", a.code, a.header.Values("Warning"))
	}
}

func TestBodyLimit(t *testing.T) {
	c := start(t, nil)
	c.wait(t)
	large := `{"metadata":{"name":"large","annotations":{"a":"` + strings.Repeat("x", 3<<20) + `"}}}`
	for name, body := range map[string]io.Reader{
		"announced": strings.NewReader(large),
		"streamed":  io.MultiReader(strings.NewReader(large)),
	} {
		a := do(t, c.admin(t), "POST", c.url+"/api/v1/namespaces", body, "Content-Type", "application/json")
		if s := status(t, a); a.code != 413 || s.Reason != metav1.StatusReasonRequestEntityTooLarge || s.Message != "Request entity too large: limit is 3145728" {
			t.Errorf("%s: %d %s %q", name, a.code, s.Reason, s.Message)
		}
	}
}

// One object in every form that it can be asked for.
func TestMediaTypes(t *testing.T) {
	c := start(t, nil)
	c.wait(t)
	path := c.url + "/api/v1/namespaces/default"
	get := func(url string, headers ...string) answer { return do(t, c.admin(t), "GET", url, nil, headers...) }

	plain := get(path)
	if !strings.HasPrefix(plain.body, `{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"default","uid":`) || !strings.HasSuffix(plain.body, "}\n") {
		t.Errorf("JSON: %s", plain.body)
	}
	pretty := get(path+"?pretty=true", "User-Agent", "x")
	if !strings.HasPrefix(pretty.body, "{\n  \"kind\": \"Namespace\",\n") || pretty.body != get(path, "User-Agent", "curl/7.88").body {
		t.Errorf("pretty: %s", pretty.body)
	}
	yaml := get(path, "Accept", "application/yaml")
	if yaml.header.Get("Content-Type") != "application/yaml" || !strings.HasPrefix(yaml.body, "apiVersion: v1\nkind: Namespace\nmetadata:\n") {
		t.Errorf("YAML: %v %s", yaml.header, yaml.body)
	}
	protobuf := get(path, "Accept", "application/vnd.kubernetes.protobuf,application/json")
	fromJSON, _, err := scheme.Codecs.UniversalDeserializer().Decode([]byte(plain.body), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	fromProtobuf, _, err := scheme.Codecs.UniversalDeserializer().Decode([]byte(protobuf.body), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := fmt.Sprintf("%#v", fromJSON), fmt.Sprintf("%#v", fromProtobuf); protobuf.header.Get("Content-Type") != "application/vnd.kubernetes.protobuf" ||
		fromProtobuf.(*corev1.Namespace).UID != fromJSON.(*corev1.Namespace).UID {
		t.Errorf("protobuf:\n%s\nJSON:\n%s", b, a)
	}
	partial := get(path, "Accept", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1")
	if !strings.HasPrefix(partial.body, `{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"default",`) || strings.Contains(partial.body, "spec") {
		t.Errorf("metadata: %s", partial.body)
	}
	list := get(c.url+"/api/v1/namespaces?limit=2", "Accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")
	var metadata metav1.PartialObjectMetadataList
	if err := json.Unmarshal([]byte(list.body), &metadata); err != nil || len(metadata.Items) != 2 || metadata.Items[0].Kind != "PartialObjectMetadata" ||
		metadata.Continue == "" || metadata.RemainingItemCount == nil || *metadata.RemainingItemCount != 2 {
		t.Errorf("metadata list: %v %s", err, list.body)
	}
	table := get(c.url+"/api/v1/namespaces", "Accept", "application/json;as=Table;g=meta.k8s.io;v=v1,application/json")
	var rows metav1.Table
	if err := json.Unmarshal([]byte(table.body), &rows); err != nil || len(rows.Rows) != 4 || rows.Rows[0].Cells[0] != "default" ||
		!strings.Contains(string(rows.Rows[0].Object.Raw), `"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1"`) {
		t.Errorf("table: %v %s", err, table.body)
	}
	bare := get(path+"?includeObject=None", "Accept", "application/json;as=Table;g=meta.k8s.io;v=v1")
	if strings.Contains(bare.body, "PartialObjectMetadata") || !strings.Contains(bare.body, `"object":null`) {
		t.Errorf("table without objects: %s", bare.body)
	}
	whole := get(path+"?includeObject=Object", "Accept", "application/json;as=Table;g=meta.k8s.io;v=v1")
	if !strings.Contains(whole.body, `"object":{"kind":"Namespace","apiVersion":"v1",`) {
		t.Errorf("table with objects: %s", whole.body)
	}
}

// A subresource of another kind than its parent's is printed as that kind.
func TestTableOfScale(t *testing.T) {
	c := start(t, nil)
	c.wait(t)
	body := `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web"},"spec":{"replicas":3,"selector":{"matchLabels":{"a":"b"}},
		"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}`
	path := c.url + "/apis/apps/v1/namespaces/default/deployments"
	if a := do(t, c.admin(t), "POST", path, strings.NewReader(body), "Content-Type", "application/json"); a.code != 201 {
		t.Fatal(a)
	}
	a := do(t, c.admin(t), "GET", path+"/web/scale", nil, "Accept", "application/json;as=Table;g=meta.k8s.io;v=v1")
	var table metav1.Table
	if err := json.Unmarshal([]byte(a.body), &table); err != nil || len(table.Rows) != 1 || table.ResourceVersion == "" {
		t.Fatalf("%v: %s", err, a.body)
	}
	var columns []string
	for _, column := range table.ColumnDefinitions {
		columns = append(columns, column.Name)
	}
	if got := strings.Join(columns, " "); got != "Name Desired Available Age" {
		t.Errorf("columns are %s", got)
	}
	if got := fmt.Sprint(table.Rows[0].Cells[:3]); got != "[web 3 0]" {
		t.Errorf("cells are %s", got)
	}
}

// FlowSchemas are shown in the order in which requests are matched with them, each row with its own object.
func TestTableOfFlowSchemas(t *testing.T) {
	c := start(t, nil)
	c.wait(t)
	path := c.url + "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas"
	for name, precedence := range map[string]int{"a-last": 900, "b-first": 100, "c-middle": 500, "d-middle": 500} {
		body := fmt.Sprintf(`{"apiVersion":"flowcontrol.apiserver.k8s.io/v1","kind":"FlowSchema","metadata":{"name":%q,"labels":{"mine":"yes"}},"spec":{"matchingPrecedence":%d,"priorityLevelConfiguration":{"name":"exempt"},"distinguisherMethod":{"type":"ByUser"}}}`, name, precedence)
		if a := do(t, c.admin(t), "POST", path, strings.NewReader(body), "Content-Type", "application/json"); a.code != 201 {
			t.Fatal(a)
		}
	}
	a := do(t, c.admin(t), "GET", path+"?labelSelector=mine", nil, "Accept", "application/json;as=Table;g=meta.k8s.io;v=v1")
	var table metav1.Table
	if err := json.Unmarshal([]byte(a.body), &table); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	var cells, objects []string
	for _, row := range table.Rows {
		var object metav1.PartialObjectMetadata
		if err := json.Unmarshal(row.Object.Raw, &object); err != nil {
			t.Fatal(err)
		}
		cells, objects = append(cells, fmt.Sprint(row.Cells[0])), append(objects, object.Name)
	}
	if want := "b-first c-middle d-middle a-last"; strings.Join(cells, " ") != want || strings.Join(objects, " ") != want {
		t.Errorf("rows are %v of %v", cells, objects)
	}
}

func TestGzip(t *testing.T) {
	c := start(t, nil)
	c.wait(t)
	for i := range 4 {
		body := fmt.Sprintf(`{"metadata":{"name":"c%d"},"data":{"a":"%s"}}`, i, strings.Repeat("x", 50<<10))
		if a := do(t, c.admin(t), "POST", c.url+"/api/v1/namespaces/default/configmaps", strings.NewReader(body), "Content-Type", "application/json"); a.code != 201 {
			t.Fatal(a)
		}
	}
	plain := do(t, c.admin(t), "GET", c.url+"/api/v1/namespaces/default/configmaps", nil)
	if plain.header.Get("Content-Encoding") != "" || len(plain.body) < 200<<10 {
		t.Errorf("not asked for: %v, %d bytes", plain.header, len(plain.body))
	}
	small := do(t, c.admin(t), "GET", c.url+"/api/v1/namespaces/default/configmaps/c0", nil, "Accept-Encoding", "gzip")
	if small.header.Get("Content-Encoding") != "" {
		t.Error("a small answer is compressed")
	}
	client := c.admin(t)
	client.Transport.(*http.Transport).DisableCompression = false // asks for gzip, and unpacks
	unpacked := do(t, client, "GET", c.url+"/api/v1/namespaces/default/configmaps", nil)
	if unpacked.body != plain.body {
		t.Error("unpacked answer differs")
	}
	packed := do(t, c.admin(t), "GET", c.url+"/api/v1/namespaces/default/configmaps", nil, "Accept-Encoding", "gzip")
	if packed.header.Get("Content-Encoding") != "gzip" || len(packed.body) > len(plain.body)/10 {
		t.Errorf("asked for: %v, %d bytes", packed.header, len(packed.body))
	}
}

func TestDiscoveryDocuments(t *testing.T) {
	c := start(t, nil)
	admin := c.admin(t)
	const aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
	a := do(t, admin, "GET", c.url+"/apis", nil, "Accept", aggregated+",application/json")
	var list apidiscoveryv2.APIGroupDiscoveryList
	if err := json.Unmarshal([]byte(a.body), &list); err != nil || len(list.Items) < 15 || list.Kind != "APIGroupDiscoveryList" || a.header.Get("Content-Type") != aggregated {
		t.Fatalf("aggregated: %v %v %.200s", err, a.header, a.body)
	}
	again := do(t, admin, "GET", c.url+"/apis", nil, "Accept", aggregated, "If-None-Match", a.header.Get("Etag"))
	if again.code != http.StatusNotModified || again.body != "" {
		t.Errorf("with its own etag: %d", again.code)
	}
	classic := do(t, admin, "GET", c.url+"/apis", nil)
	if !strings.HasPrefix(classic.body, `{"kind":"APIGroupList","apiVersion":"v1","groups":[{"name":"apiregistration.k8s.io",`) {
		t.Errorf("classic: %.200s", classic.body)
	}
	core := do(t, admin, "GET", c.url+"/api", nil)
	if !strings.HasPrefix(core.body, `{"kind":"APIVersions","versions":["v1"],"serverAddressByClientCIDRs":[{"clientCIDR":"0.0.0.0/0","serverAddress":"127.0.0.1:`) {
		t.Errorf("core: %s", core.body)
	}
	for path, start := range map[string]string{
		"/api/v1":       `{"kind":"APIResourceList","groupVersion":"v1","resources":[`,
		"/api/v1/":      `{"kind":"APIResourceList","groupVersion":"v1","resources":[`,
		"/apis/apps":    `{"kind":"APIGroup","apiVersion":"v1","name":"apps","versions":[`,
		"/apis/apps/v1": `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"apps/v1","resources":[`,
	} {
		if a := do(t, admin, "GET", c.url+path, nil); !strings.HasPrefix(a.body, start) {
			t.Errorf("%s: %.200s", path, a.body)
		}
	}
	if a := do(t, admin, "GET", c.url+"/version", nil); a.code != 200 || !strings.Contains(a.body, `"gitVersion": "v1.37.1+barque"`) || !strings.Contains(a.body, `"minor": "37"`) {
		t.Errorf("version: %v", a)
	}
}

func TestOpenAPIDocuments(t *testing.T) {
	c := start(t, nil)
	admin := c.admin(t)
	var index struct {
		Paths map[string]struct{ ServerRelativeURL string }
	}
	a := do(t, admin, "GET", c.url+"/openapi/v3", nil)
	if err := json.Unmarshal([]byte(a.body), &index); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"api/v1": true, "apis/apps/v1": true, "apis/apps": true, "version": true, "apis/internal.apiserver.k8s.io/v1alpha1": false, "logs": false} {
		if _, ok := index.Paths[name]; ok != want {
			t.Errorf("%s is listed: %v, want %v", name, ok, want)
		}
	}
	for name, entry := range index.Paths {
		a := do(t, admin, "GET", c.url+entry.ServerRelativeURL, nil)
		if a.code != 200 || !json.Valid([]byte(a.body)) || a.header.Get("Cache-Control") != "public, immutable" || a.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %v", name, a.code, a.header)
		}
		if b := do(t, admin, "GET", c.url+entry.ServerRelativeURL, nil, "If-None-Match", a.header.Get("Etag")); b.code != http.StatusNotModified {
			t.Errorf("%s: %d with its own etag", name, b.code)
		}
	}
	noFollow := c.admin(t)
	noFollow.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if a := do(t, noFollow, "GET", c.url+"/openapi/v3/apis/apps/v1?hash=old", nil); a.code != http.StatusMovedPermanently || a.header.Get("Location") != index.Paths["apis/apps/v1"].ServerRelativeURL {
		t.Errorf("old hash: %d %v", a.code, a.header)
	}
	for path, accept := range map[string]string{
		"/openapi/v2":             "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
		"/openapi/v3/api/v1":      "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
		"/openapi/v3/apis/batch/": "",
	} {
		a := do(t, admin, "GET", c.url+path, nil, "Accept", accept)
		switch {
		case accept == "" && a.code != 404:
			t.Errorf("%s: %d", path, a.code)
		case accept != "" && (a.code != 200 || a.header.Get("Content-Type") != strings.Replace(accept, "@", ".", 1) || len(a.body) < 1<<16):
			t.Errorf("%s: %d %v", path, a.code, a.header)
		}
	}
	if a := do(t, admin, "GET", c.url+"/openapi/v2", nil, "Accept", "text/html"); a.code != 406 {
		t.Errorf("HTML: %d", a.code)
	}
}

func TestHealth(t *testing.T) {
	var ill error
	c := start(t, func(cfg *apiserver.Config) {
		cfg.Livez = []healthz.HealthChecker{healthz.NamedCheck("heart", func(*http.Request) error { return ill })}
	})
	admin := c.admin(t)
	get := func(path string) answer { return do(t, admin, "GET", c.url+path, nil) }
	for _, path := range []string{"/healthz", "/livez", "/readyz", "/livez/ping", "/livez/heart", "/readyz/etcd", "/readyz/shutdown"} {
		if a := get(path); a.code != 200 || a.body != "ok" {
			t.Errorf("%s: %d %q", path, a.code, a.body)
		}
	}
	if a := get("/readyz?verbose&exclude=etcd&exclude=nothing"); a.body != "[+]ping ok\n[+]etcd excluded: ok\n[+]shutdown ok\nwarn: some health checks cannot be excluded: no matches for [\"nothing\"]\nreadyz check passed\n" {
		t.Errorf("verbose: %q", a.body)
	}
	ill = errors.New("secret reason")
	if a := get("/livez"); a.code != 500 || a.body != "[+]ping ok\n[-]heart failed: reason withheld\nlivez check failed\n" {
		t.Errorf("ill: %d %q", a.code, a.body)
	}
	if a := get("/livez/heart"); a.code != 500 || !strings.Contains(a.body, "secret reason") {
		t.Errorf("ill, by itself: %d %q", a.code, a.body)
	}
	if a := get("/livez?exclude=heart"); a.code != 200 {
		t.Errorf("ill, excluded: %d", a.code)
	}
	if a := get("/readyz"); a.code != 200 {
		t.Errorf("readiness is not liveness: %d", a.code)
	}
}

func TestMetrics(t *testing.T) {
	c := start(t, nil)
	admin := c.admin(t)
	for _, path := range []string{"/api/v1/namespaces", "/api/v1/made-up-by-somebody", "/made-up", "/api/v1/nodes/n/made-up"} {
		do(t, admin, "GET", c.url+path, nil)
	}
	// Nor does a stranger's, who is refused before anything is looked for.
	do(t, c.http(t, ""), "GET", c.url+"/api/v1/namespaces/n/pods/p/made-up-by-a-stranger", nil)
	if conn, err := tls.Dial("tcp", strings.TrimPrefix(c.url, "https://"), &tls.Config{MaxVersion: tls.VersionTLS11, InsecureSkipVerify: true}); err == nil {
		conn.Close()
		t.Error("TLS 1.1 is spoken")
	}
	eventually(t, "a failed handshake is counted", func() error {
		if a := do(t, admin, "GET", c.url+"/metrics", nil); !strings.Contains(a.body, "apiserver_tls_handshake_errors_total 1\n") {
			return errors.New("it is not")
		}
		return nil
	})
	a := do(t, admin, "GET", c.url+"/metrics", nil)
	for _, want := range []string{
		`apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="namespaces",scope="cluster",subresource="",verb="LIST",version="v1"} 1`,
		`apiserver_request_duration_seconds_count{component="apiserver",dry_run="",group="",resource="namespaces",scope="cluster",subresource="",verb="LIST",version="v1"} 1`,
		`apiserver_current_inflight_requests{request_kind="readOnly"}`,
	} {
		if !strings.Contains(a.body, want) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(a.body, "made-up") {
		t.Error("a made-up name is a label")
	}
	families, err := c.metrics.Gather()
	if err != nil || !slices.ContainsFunc(families, func(f *dto.MetricFamily) bool { return f.GetName() == "apiserver_response_sizes" }) {
		t.Errorf("the given registry lacks the server's metrics (%v)", err)
	}
}

func TestWarnings(t *testing.T) {
	c := start(t, nil)
	c.wait(t)
	post := func(query, body string) answer {
		return do(t, c.admin(t), "POST", c.url+"/api/v1/namespaces/default/configmaps"+query, strings.NewReader(body), "Content-Type", "application/json")
	}
	a := post("", `{"metadata":{"name":"w"},"nothing":1,"data":{"a":"1","a":"2"}}`)
	if want := []string{`299 - "unknown field \"nothing\""`, `299 - "duplicate field \"data.a\""`}; a.code != 201 || len(a.header["Warning"]) != 2 ||
		!slices.Contains(a.header["Warning"], want[0]) || !slices.Contains(a.header["Warning"], want[1]) {
		t.Errorf("%d %q, want %q", a.code, a.header["Warning"], want)
	}
	if a := post("?fieldValidation=Ignore", `{"metadata":{"name":"i"},"nothing":1}`); a.code != 201 || len(a.header["Warning"]) != 0 {
		t.Errorf("ignore: %d %q", a.code, a.header["Warning"])
	}
}

func TestDeprecatedKindsWarn(t *testing.T) {
	c := start(t, nil)
	a := do(t, c.admin(t), "GET", c.url+"/api/v1/endpoints", nil)
	if want := `299 - "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"`; a.header.Get("Warning") != want {
		t.Errorf("warning %q, want %q", a.header.Get("Warning"), want)
	}
	if a := do(t, c.admin(t), "GET", c.url+"/api/v1/pods", nil); a.header.Get("Warning") != "" {
		t.Errorf("warning %q about pods", a.header.Get("Warning"))
	}
}

func TestImpersonation(t *testing.T) {
	c := start(t, nil)
	c.wait(t)
	path := c.url + "/api/v1/namespaces"
	a := do(t, c.admin(t), "GET", path, nil, "Impersonate-User", "jane", "Impersonate-Group", "dev")
	if s := status(t, a); a.code != 403 || !strings.Contains(s.Message, `User "jane" cannot list resource "namespaces"`) {
		t.Errorf("as jane: %d %s", a.code, s.Message)
	}
	a = do(t, c.http(t, "jane"), "GET", path, nil, "Impersonate-User", "admin", "Impersonate-Group", pki.GroupMasters)
	if a.code != 403 {
		t.Errorf("jane as admin: %d", a.code)
	}
}

func TestTooManyRequests(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	c := start(t, func(cfg *apiserver.Config) {
		cfg.Limits.Writes, cfg.Limits.Plain = 1, true
		cfg.Identity.Name = ""
		cfg.Paths = map[string]http.Handler{"/slow": http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			entered <- struct{}{}
			<-leave
		})}
	})
	c.wait(t)
	role := `{"metadata":{"name":"slow"},"rules":[{"nonResourceURLs":["/slow"],"verbs":["*"]}]}`
	binding := `{"metadata":{"name":"slow"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"slow"},"subjects":[{"kind":"User","name":"jane"}]}`
	for kind, body := range map[string]string{"clusterroles": role, "clusterrolebindings": binding} {
		if a := do(t, c.admin(t), "POST", c.url+"/apis/rbac.authorization.k8s.io/v1/"+kind, strings.NewReader(body), "Content-Type", "application/json"); a.code != 201 {
			t.Fatal(a)
		}
	}
	jane := c.http(t, "jane")
	first := make(chan answer, 1)
	go func() { first <- do(t, jane, "POST", c.url+"/slow", nil) }()
	<-entered
	a := do(t, jane, "POST", c.url+"/slow", nil)
	if a.code != http.StatusTooManyRequests || a.header.Get("Retry-After") != "1" || a.body != "Too many requests, please try again later.\n" {
		t.Errorf("second: %v", a)
	}
	if a := do(t, c.admin(t), "DELETE", c.url+"/api/v1/namespaces/default/pods/nothing", nil); a.code != 404 {
		t.Errorf("the admin has to wait: %d", a.code)
	}
	close(leave)
	if a := <-first; a.code != 200 {
		t.Errorf("first: %v", a)
	}
}

func TestPanicAnswers500(t *testing.T) {
	c := start(t, func(cfg *apiserver.Config) {
		cfg.Paths = map[string]http.Handler{"/panic": http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("oh") })}
		cfg.Extra = map[string]http.Handler{
			"/open": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "open") }),
			"/cut": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprint(w, "half")
				w.(http.Flusher).Flush()
				panic("oh")
			}),
		}
	})
	if a := do(t, c.admin(t), "GET", c.url+"/panic", nil); a.code != 500 || !strings.Contains(a.body, "panic") {
		t.Errorf("%v", a)
	}
	if a := do(t, c.http(t, ""), "GET", c.url+"/open", nil); a.code != 200 || a.body != "open" {
		t.Errorf("after a panic: %v", a)
	}
	resp, err := c.http(t, "").Get(c.url + "/cut")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("an answer that broke off looks complete: %q", b)
	}
}

func TestRequestTimeout(t *testing.T) {
	c := start(t, func(cfg *apiserver.Config) {
		cfg.Paths = map[string]http.Handler{"/wait": http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			<-req.Context().Done()
			if !errors.Is(req.Context().Err(), context.DeadlineExceeded) {
				t.Error(req.Context().Err())
			}
		})}
	})
	if a := do(t, c.admin(t), "GET", c.url+"/wait?timeout=10ms", nil); a.code != 200 {
		t.Errorf("%v", a)
	}
}

// A watch shows what happens, as it happens, and ends when the server stops.
func TestWatchStream(t *testing.T) {
	c := start(t, nil)
	c.wait(t)
	admin := c.admin(t)
	resp, err := admin.Get(c.url + "/api/v1/namespaces/default/configmaps?watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	events := bufio.NewScanner(resp.Body)
	next := func() (event metav1.WatchEvent, obj corev1.ConfigMap) {
		t.Helper()
		if !events.Scan() {
			t.Fatalf("the stream ended: %v", events.Err())
		}
		if err := json.Unmarshal(events.Bytes(), &event); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(event.Object.Raw, &obj); err != nil {
			t.Fatal(err)
		}
		return event, obj
	}
	if event, obj := next(); event.Type != "BOOKMARK" || obj.Annotations[metav1.InitialEventsAnnotationKey] != "true" || obj.ResourceVersion == "" {
		t.Errorf("first: %s %v", event.Type, obj)
	}
	path := c.url + "/api/v1/namespaces/default/configmaps"
	created := do(t, admin, "POST", path, strings.NewReader(`{"metadata":{"name":"a"}}`), "Content-Type", "application/json")
	event, obj := next()
	if event.Type != "ADDED" || string(event.Object.Raw)+"\n" != created.body {
		t.Errorf("%s %s\nwant %s", event.Type, event.Object.Raw, created.body)
	}
	version := obj.ResourceVersion
	deleted := do(t, admin, "DELETE", path+"/a", nil)
	if s := status(t, deleted); s.Status != "Success" || s.Details.Name != "a" || s.Details.Kind != "configmaps" || s.Details.UID != obj.UID {
		t.Errorf("deletion answers %s", deleted.body)
	}
	if event, obj := next(); event.Type != "DELETED" || obj.Name != "a" || obj.ResourceVersion == version {
		t.Errorf("%s %v", event.Type, obj.ObjectMeta)
	}
	begin := time.Now()
	c.stop()
	for events.Scan() {
		t.Errorf("after the stop: %s", events.Bytes())
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("stopped after %v", took)
	}
}

func TestWatchTooOld(t *testing.T) {
	c := start(t, nil)
	c.wait(t)
	if a := do(t, c.admin(t), "GET", c.url+"/api/v1/namespaces?watch=1&resourceVersion=1&timeoutSeconds=1", nil, "Accept", "application/json"); a.code != 200 {
		t.Fatal(a)
	}
	a := do(t, c.admin(t), "GET", c.url+"/api/v1/namespaces?watch=1&timeoutSeconds=1", nil, "Accept", "application/json;as=Table;g=meta.k8s.io;v=v1")
	lines := bytes.Split(bytes.TrimSpace([]byte(a.body)), []byte("\n"))
	if len(lines) != 4 || !bytes.Contains(lines[0], []byte(`"columnDefinitions":[{`)) || bytes.Contains(lines[1], []byte(`"columnDefinitions":[{`)) {
		t.Errorf("tables: %d lines: %s", len(lines), a.body)
	}
}

// What a server says about itself, and what every cluster has.
func TestDefaultObjects(t *testing.T) {
	c := start(t, nil)
	c.wait(t)
	client := c.client(t)
	service, err := client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil || service.Spec.ClusterIP != "10.43.0.1" || service.Spec.Ports[0].Port != 443 || service.Labels["component"] != "apiserver" {
		t.Errorf("%v %v", err, service)
	}
	eventually(t, "the lease", func() error {
		lease, err := client.CoordinationV1().Leases("kube-system").Get(t.Context(), "barque-apiserver-one", metav1.GetOptions{})
		if err == nil && (lease.Labels[apiserver.LeaseLabel] != "barque" || "https://"+lease.Annotations[apiserver.AddressAnnotation] != c.url ||
			*lease.Spec.HolderIdentity != "one" || *lease.Spec.LeaseDurationSeconds <= 0) {
			return fmt.Errorf("%v", lease)
		}
		return err
	})
	c.stop()
	leases := c.reg.Table(schema.GroupResource{Group: coordinationv1.GroupName, Resource: "leases"})
	if _, ok := leases.Get(store.Key{Namespace: "kube-system", Name: "barque-apiserver-one"}); ok {
		t.Error("the lease is still there after the server stopped")
	}
}
