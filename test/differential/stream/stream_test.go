package stream

import (
	"bytes"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// served are a few kinds with as much of a schema as it takes to change something.
func served() *Served {
	s := &Served{Documents: map[string]*Document{}}
	every := []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
	for _, k := range []struct {
		kind, resource, group, scope string
		verbs                        []string
	}{
		{"ConfigMap", "configmaps", "", "Namespaced", every},
		{"Node", "nodes", "", "Cluster", every},
		{"Pod", "pods", "", "Namespaced", every},
		{"TokenReview", "tokenreviews", "authentication.k8s.io", "Cluster", []string{"create"}},
		{"CertificateSigningRequest", "certificatesigningrequests", "certificates.k8s.io", "Cluster", every},
		{"ResourceClaim", "resourceclaims", "resource.k8s.io", "Namespaced", every},
		{"DaemonSet", "daemonsets", "apps", "Namespaced", every},
		{"CSIStorageCapacity", "csistoragecapacities", "storage.k8s.io", "Namespaced", every},
		{"MutatingAdmissionPolicy", "mutatingadmissionpolicies", "admissionregistration.k8s.io", "Cluster", every},
	} {
		kind := Kind{k.group, "v1", k.kind}
		group := Group{Versions: []Version{{Version: "v1", Resources: []Resource{{Resource: k.resource, ResponseKind: kind, Scope: k.scope, Verbs: k.verbs,
			Subresources: []Subresource{{Subresource: "status", ResponseKind: kind, Verbs: []string{"get", "patch", "update"}}}}}}}}
		group.Metadata.Name = k.group
		s.Groups = append(s.Groups, group)
		path := strings.TrimPrefix(root(k.group, "v1"), "/")
		doc := s.Documents[path]
		if doc == nil {
			doc = &Document{}
			doc.Components.Schemas = map[string]*Schema{"Part": {Type: "object", Properties: map[string]*Schema{"number": {Type: "integer"}, "text": {Type: "string"}}}}
			s.Documents[path] = doc
		}
		doc.Components.Schemas[k.kind] = &Schema{Type: "object", Kinds: []Kind{kind}, Properties: map[string]*Schema{
			"spec": {AllOf: []*Schema{{Ref: "#/components/schemas/Part"}}}, "data": {Type: "object", Additional: []byte(`{"type":"string"}`)}, "status": {Ref: "#/components/schemas/Part"},
		}}
	}
	return s
}

// The same seed makes the same stream, another one another, and nobody is referred to who has not answered yet.
func TestMake(t *testing.T) {
	for seed := range uint64(3) {
		one, err := Make(served(), seed, 800)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Make(served(), seed, 800)
		if err != nil || !reflect.DeepEqual(one, again) {
			t.Fatal("the same seed made another stream")
		}
		other, err := Make(served(), seed+1, 800)
		if err != nil || reflect.DeepEqual(one, other) {
			t.Fatal("another seed made the same stream")
		}
		for i, r := range one {
			if r.ID != i || !strings.HasPrefix(r.Path, "/") || r.Scene == "" || r.Method == "" {
				t.Fatalf("request %d: %+v", i, r)
			}
			all := r.Path + string(r.Body)
			for _, value := range r.Header {
				all += value
			}
			for _, m := range reference.FindAllStringSubmatch(all, -1) {
				if to, err := strconv.Atoi(m[2]); err != nil || to >= i && r.Race == 0 {
					t.Fatalf("request %d refers to %s", i, m[0])
				}
			}
		}
	}
}

func TestEveryKindHasASample(t *testing.T) {
	s := served()
	s.Groups[0].Versions[0].Resources[0].ResponseKind.Kind = "Novelty"
	if _, err := Make(s, 1, 1); err == nil || !strings.Contains(err.Error(), "Novelty") {
		t.Errorf("a kind without a sample: %v", err)
	}
}

func TestFill(t *testing.T) {
	known := func(field string, id int) string { return field + "=" + strconv.Itoa(id) }
	for text, want := range map[string]string{
		"":                            "",
		"/x?continue={{continue 12}}": "/x?continue=continue=12",
		"{{uid 1}}{{uid 2}}":          "uid=1uid=2",
		"{{":                          "{{",
		"{{uid x}}":                   "{{uid x}}",
	} {
		if got := Fill(text, known); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestDuplicate(t *testing.T) {
	if got := duplicate(map[string]any{"kind": "K", "x": 1}, "kind"); got != `{"kind":"K","kind":"K","x":1}` {
		t.Error(got)
	}
}

// Objects are changed in one place, and the sample that they are made of never.
func TestMutate(t *testing.T) {
	m, err := newMaker(served(), 1)
	if err != nil {
		t.Fatal(err)
	}
	k := m.find("configmaps")
	changed := 0
	for range 200 {
		before, _ := m.object(k, "ns", 1)
		object, name := m.object(k, "ns", 1)
		m.mutate(k, object)
		if meta, ok := object["metadata"].(map[string]any); !ok || meta["name"] != name {
			t.Fatalf("it has another name: %v", object)
		}
		if !reflect.DeepEqual(before, object) {
			changed++
		}
	}
	if again, _ := m.object(k, "ns", 1); changed < 150 || !bytes.Contains([]byte(again["kind"].(string)), []byte("ConfigMap")) {
		t.Errorf("%d of 200 changed; the sample is %v", changed, again)
	}
}
