package wire

import (
	"reflect"
	"testing"
)

// An object is the same in every format.
func TestFormatsAgree(t *testing.T) {
	object := map[string]any{"kind": "ConfigMap", "apiVersion": "v1", "metadata": map[string]any{"name": "x"}, "data": map[string]any{"a": "b"}}
	protobuf, err := Protobuf(object)
	if err != nil {
		t.Fatal(err)
	}
	for contentType, body := range map[string]string{
		"application/json":                    `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"},"data":{"a":"b"}}`,
		"application/yaml":                    "kind: ConfigMap\napiVersion: v1\nmetadata: {name: x}\ndata: {a: b}\n",
		"application/vnd.kubernetes.protobuf": string(protobuf),
		"application/cbor":                    "\xa4DkindIConfigMapJapiVersionBv1Hmetadata\xa1DnameAxDdata\xa1AaAb",
	} {
		got, err := Value(contentType, []byte(body))
		if err != nil || !reflect.DeepEqual(got, object) {
			t.Errorf("%s: %v, %v", contentType, got, err)
		}
	}
}

func TestValue(t *testing.T) {
	for _, c := range []struct {
		contentType, body string
		want              any
	}{
		{"text/plain", "{}", map[string]any{}},
		{"text/plain", "{x", "{x"},
		{"text/plain", "5", "5"},
		{"", "x", "x"},
		{"application/json", "{}{}", map[string]any{"$documents": []any{map[string]any{}, map[string]any{}}}},
		{"application/json;charset=utf-8", "[]", []any{}},
	} {
		if got, err := Value(c.contentType, []byte(c.body)); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s %q: %v, %v", c.contentType, c.body, got, err)
		}
	}
	for contentType, body := range map[string]string{"application/json": "{", "application/yaml": "\t", "application/cbor": "\xff", "application/vnd.kubernetes.protobuf": "x"} {
		if _, err := Value(contentType, []byte(body)); err == nil {
			t.Errorf("%s %q is taken for data", contentType, body)
		}
	}
}

func TestUnknownKind(t *testing.T) {
	if _, err := Protobuf(map[string]any{"kind": "Novelty", "apiVersion": "v1"}); err == nil {
		t.Error("an unknown kind has a form in protobuf")
	}
}
