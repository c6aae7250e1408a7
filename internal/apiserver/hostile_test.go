package apiserver_test

import (
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"
)

const megabyte = 1 << 20

// bomb is YAML that is small and means a lot.
func bomb(head string) string {
	var b strings.Builder
	b.WriteString(head + "data:\n  a0: &a0 [x,x,x,x,x,x,x,x,x]\n")
	for i := 1; i < 12; i++ {
		fmt.Fprintf(&b, "  a%d: &a%d [%s*a%d]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d,", i-1), 8), i-1)
	}
	return b.String()
}

// deep is a JSON object with n objects or lists within one another at data.
func deep(opening, closing string, n int) string {
	return `{"metadata":{"name":"deep"},"data":` + strings.Repeat(opening, n) + "1" + strings.Repeat(closing, n) + "}"
}

// copies is a JSON patch that doubles a field with every operation.
func copies(n int) string {
	ops := make([]string, 0, n)
	for i := range n {
		ops = append(ops, fmt.Sprintf(`{"op":"copy","from":"/metadata","path":"/metadata/annotations/a%d"}`, i))
	}
	return "[" + `{"op":"add","path":"/metadata/annotations","value":{}},` + strings.Join(ops, ",") + "]"
}

// unknownFields is a field with a name of so many bytes, in which are so many that are unknown, and that come twice.
func unknownFields(name, n int) string {
	return `"` + strings.Repeat("n", name) + `":{"type":"object",` + repeatedFields(n) + `}`
}

func repeatedFields(n int) string {
	fields := make([]string, n)
	for i := range fields {
		fields[i] = fmt.Sprintf(`"f%d":1`, i/2)
	}
	return strings.Join(fields, ",")
}

// definition is a CustomResourceDefinition with a schema for spec.
func definition(spec string) string {
	return `{"metadata":{"name":"boats.example.com"},"spec":{"group":"example.com","scope":"Namespaced","names":{"plural":"boats","kind":"Boat"},"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","properties":{"spec":` + spec + `}}}}]}}`
}

// numbered is a selector of so many values, none of which can be one.
func numbered(head string, n int, tail string) string {
	var b strings.Builder
	b.WriteString(head)
	for i := range n {
		fmt.Fprintf(&b, "-v%d-,", i)
	}
	return strings.TrimSuffix(b.String(), ",") + tail
}

// hostileRequests are meant to cost a server more than they cost their sender. All are refused.
func hostileRequests() []sent {
	var operations, requirements, members, managers strings.Builder
	for i := range 20_000 {
		operations.WriteString(`{"op":"test","path":"/data/k","value":"v"},`)
		fmt.Fprintf(&requirements, "k%d in (a,b,c),", i)
		fmt.Fprintf(&members, `{"name":"v%d","value":"$(v%d)$(v%d)"},`, i, i+1, i+2)
		fmt.Fprintf(&managers, `{"manager":"m%d","operation":"Apply","apiVersion":"v1","time":"never","fieldsType":"FieldsV1","fieldsV1":{"f:data":{}}},`, i)
	}
	cut := func(b *strings.Builder) string { return strings.TrimSuffix(b.String(), ",") }
	jsonPatch, strategic := "application/json-patch+json", "application/strategic-merge-patch+json"
	return []sent{
		{"POST", configMaps, jsonType, "", deep("[", "]", megabyte)},
		{"POST", configMaps, jsonType, "", deep(`{"a":`, "}", 200_000)},
		{"POST", configMaps, yamlType, "", deep("[", "]", megabyte)},
		{"POST", configMaps, yamlType, "", bomb("metadata: {name: bomb}\n")},
		{"POST", configMaps, cborType, "", "\xd9\xd9\xf7" + strings.Repeat("\x81", megabyte) + "\x01"},
		{"POST", configMaps, cborType, "", "\xd9\xd9\xf7\xbb\x7f\xff\xff\xff\xff\xff\xff\xff"},
		{"POST", configMaps, protobufType, "", "k8s\x00\n\x0f\n\x02v1\x12\tConfigMap\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f"},
		{"POST", configMaps, jsonType, "", `{"metadata":{"name":"` + strings.Repeat("n", megabyte) + `"}}`},
		{"POST", configMaps, jsonType, "", "{\"metadata\":{\"name\":\"a\xff\xfe\"}}"},
		{"POST", configMaps, jsonType, "", `{"metadata":{"name":"m","managedFields":[` + cut(&managers) + `]}}`},
		{"POST", "/api/v1/namespaces/default/pods", jsonType, "", `{"metadata":{"name":"p"},"spec":{"containers":[{"name":"A","image":"i","env":[` + cut(&members) + `]}]}}`},
		{"POST", configMaps, "text/x-evil", "", "x"},
		{"POST", configMaps, jsonType, "", ""},
		{"PUT", oneConfigMap, jsonType, "", `{"metadata":{"name":"one","resourceVersion":"99999999999999999999999999"}}`},
		{"PATCH", oneConfigMap, jsonPatch, "", "[" + cut(&operations) + "]"},
		{"PATCH", oneConfigMap, jsonPatch, "", copies(60)},
		{"PATCH", oneConfigMap, jsonPatch, "", `[{"op":"add","path":"/metadata/finalizers/99999999999","value":"a/b"}]`},
		{"PATCH", oneConfigMap, jsonPatch, "", `[{"op":"replace","path":"","value":7}]`},
		{"PATCH", oneConfigMap, "application/merge-patch+json", "", strings.Repeat(`{"a":`, 200_000) + "1" + strings.Repeat("}", 200_000)},
		{"PATCH", oneConfigMap, "application/merge-patch+json", "", `[1]`},
		{"PATCH", "/api/v1/namespaces/default/services/kubernetes", strategic, "", `{"spec":{"$setElementOrder/ports":{"port":1},"ports":[{"$patch":"explode"}]}}`},
		{"PATCH", "/api/v1/namespaces/default/services/kubernetes", strategic, "", `{"spec":{"ports":[[[{"port":1}]]]}}`},
		{"PATCH", oneConfigMap + "?fieldManager=m", "application/apply-patch+yaml", "", bomb("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one}\n")},
		{"PATCH", oneConfigMap + "?fieldManager=" + strings.Repeat("m", 200), "application/apply-patch+yaml", "", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one}\n"},
		{"GET", configMaps + "?labelSelector=" + strings.Repeat("(", 100_000), "", "", ""},
		{"GET", configMaps + "?labelSelector=" + strings.ReplaceAll(cut(&requirements), " ", "+") + ",,", "", "", ""},
		{"GET", configMaps + "?labelSelector=" + numbered("k+in+(", 20_000, ")"), "", "", ""},
		{"GET", configMaps + "?fieldSelector=metadata.name%3Dx&labelSelector=" + numbered("k+in+(", 20_000, ")"), "", "", ""},
		{"GET", configMaps + "?fieldSelector=" + strings.Repeat("a%3Db,", 20_000), "", "", ""},
		{"GET", configMaps + "?limit=99999999999999999999", "", "", ""},
		{"GET", configMaps + "?continue=" + strings.Repeat("e", 100_000), "", "", ""},
		{"GET", configMaps + "?resourceVersion=-1", "", "", ""},
		{"GET", configMaps + "?watch=1&resourceVersion=18446744073709551616", "", "", ""},
		{"GET", configMaps + "?timeout=soon", "", "", ""},
		{"GET", configMaps + "/" + strings.Repeat("%2e%2e%2f", 1000) + "etc", "", "", ""},
		{"GET", "/api/v1/" + strings.Repeat("namespaces/", 10_000), "", "", ""},
		{"GET", configMaps, "", strings.Repeat("application/evil;q=0.1,", 5000) + "text/evil;q=x", ""},
		{"GET", "/api/v1/namespaces/default/pods/p/log?tailLines=many", "", "", ""},
		{"DELETE", oneConfigMap, jsonType, "", deep("[", "]", megabyte)},
		{"DELETE", oneConfigMap, jsonType, "", `{"kind":"Pod","apiVersion":"v1"}`},
		{"POST", definitions, jsonType, "", definition(strings.Repeat(`{"type":"object","properties":{"a":`, 50_000) + `{"type":"string"}` + strings.Repeat("}}", 50_000))},
		{"POST", definitions, jsonType, "", definition(`{"type":"string","pattern":"` + strings.Repeat("(", 4) + "a{1,1000}" + strings.Repeat("){1,1000}", 4) + `"}`)},
		{"POST", definitions, jsonType, "", definition(`{"type":"array","items":{"type":"string"},"x-kubernetes-validations":[{"rule":"self.all(a, self.all(b, self.all(c, self.all(d, a + b + c + d != a))))"}]}`)},
		{"POST", definitions, jsonType, "", definition(`{"type":"object","properties":{"a":{"$ref":"#/properties/spec"}}}`)},
		{"POST", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies", jsonType, "", `{"metadata":{"name":"p"},"spec":{"matchConstraints":{"resourceRules":[{"apiGroups":["*"],"apiVersions":["*"],"operations":["*"],"resources":["*"]}]},"validations":[{"expression":"` + strings.Repeat("[", 2000) + strings.Repeat("]", 2000) + `.size() > 0"}]}}`},
		{"POST", definitions, jsonType, "", definition(`{"type":"object","properties":{` + unknownFields(megabyte, 5000) + `}}`)},
		{"POST", definitions, yamlType, "", definition(`{"type":"object","properties":{? ` + unknownFields(megabyte, 5000) + `}}`)},
		{"PATCH", oneConfigMap, "application/merge-patch+json", "", `{"data":{` + unknownFields(megabyte, 5000) + `}}`},
		{"PATCH", oneConfigMap, strategic, "", `{"data":{` + unknownFields(megabyte, 5000) + `}}`},
		{"PATCH", oneConfigMap + "?fieldManager=m", "application/apply-patch+yaml", "", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"one"},"data":{` + unknownFields(megabyte, 5000) + `}}`},
		{"PATCH", definitions + "/ships.example.com", jsonPatch, "", `[{"op":"add","path":"/spec/versions/0/schema/openAPIV3Schema/properties/` + strings.Repeat("n", megabyte) + `","value":{"type":"object",` + repeatedFields(5000) + `}}]`},
		{"BREW", configMaps, "", "", ""},
	}
}

// allowance is how much memory, in bytes, may be allocated for an answer, all that is given back at once included.
const allowance = 400 * megabyte

// What is meant to hurt is refused by a 4xx, soon, and for a bounded amount of memory.
func TestHostileRequests(t *testing.T) {
	c, seen := openPlane(t)
	if w, _ := c.send(sent{"POST", configMaps, jsonType, "", `{"metadata":{"name":"one"},"data":{"k":"v"}}`}); w.Code != http.StatusCreated {
		t.Fatal(w.Code, w.Body)
	}
	ships := strings.ReplaceAll(strings.ReplaceAll(definition(`{"type":"object"}`), "boat", "ship"), "Boat", "Ship")
	if w, _ := c.send(sent{"POST", definitions, jsonType, "", ships}); w.Code != http.StatusCreated {
		t.Fatal(w.Code, w.Body)
	}
	for _, r := range hostileRequests() {
		name := fmt.Sprintf("%s %.60s %s %.60q", r.method, r.target, r.contentType, r.body)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		began := time.Now()
		w, ok := c.send(r)
		took := time.Since(began)
		runtime.ReadMemStats(&after)
		if !ok {
			t.Errorf("%s: is no request", name)
			continue
		}
		if err := check(w, seen); err != nil {
			t.Errorf("%s: %d: %v", name, w.Code, err)
			continue
		}
		if w.Code < 400 || w.Code >= 500 {
			t.Errorf("%s: %d: %.300s", name, w.Code, w.Body)
		}
		// A name is in a status four times, as it is with a stock server.
		if w.Body.Len() > 4*(len(r.body)+len(r.target))+64<<10 {
			t.Errorf("%s: the answer has %d bytes, the request %d", name, w.Body.Len(), len(r.body))
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > raceFactor*allowance {
			t.Errorf("%s: %d MB were allocated", name, used/megabyte)
		}
		t.Logf("%s: %d in %v, %d KB allocated", name, w.Code, took.Round(time.Microsecond), (after.TotalAlloc-before.TotalAlloc)>>10)
	}
}
