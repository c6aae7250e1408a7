package stream

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
)

// definition is one of custom resources, which are called boats.
func definition(group string, versions ...any) map[string]any {
	return map[string]any{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": map[string]any{"name": "boats." + group}, "spec": map[string]any{
		"group": group, "scope": "Namespaced", "names": map[string]any{"plural": "boats", "singular": "boat", "kind": "Boat", "listKind": "BoatList", "shortNames": []any{"bt"}, "categories": []any{"all"}},
		"versions": versions}}
}

const crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

// custom resources with schemas, rules, defaults, two versions and subresources.
func (m *maker) custom() {
	properties := map[string]any{
		"masts":  map[string]any{"type": "integer", "minimum": 1, "maximum": 9, "default": 3},
		"name":   map[string]any{"type": "string", "maxLength": 10, "pattern": "^[a-z]*$"},
		"crew":   map[string]any{"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": []any{"role"}, "items": map[string]any{"type": "object", "required": []any{"role"}, "properties": map[string]any{"role": map[string]any{"type": "string"}, "count": map[string]any{"type": "integer", "format": "int32"}}}},
		"tags":   map[string]any{"type": "array", "x-kubernetes-list-type": "set", "items": map[string]any{"type": "string"}},
		"kind":   map[string]any{"type": "string", "enum": []any{"sloop", "barque"}},
		"any":    map[string]any{"x-kubernetes-preserve-unknown-fields": true},
		"amount": map[string]any{"x-kubernetes-int-or-string": true},
		"since":  map[string]any{"type": "string", "format": "date-time"},
		"opt":    map[string]any{"type": "string", "nullable": true},
	}
	schema := map[string]any{"openAPIV3Schema": map[string]any{"type": "object", "required": []any{"spec"}, "properties": map[string]any{
		"spec": map[string]any{"type": "object", "properties": properties, "x-kubernetes-validations": []any{
			map[string]any{"rule": "self.masts != 7", "message": "seven is unlucky"}, map[string]any{"rule": "!has(oldSelf.kind) || has(self.kind) && self.kind == oldSelf.kind", "messageExpression": "'it was a ' + oldSelf.kind"},
		}},
		"status": map[string]any{"type": "object", "properties": map[string]any{"replicas": map[string]any{"type": "integer"}, "selector": map[string]any{"type": "string"}}},
	}}}
	version := func(name string, storage bool) map[string]any {
		return map[string]any{"name": name, "served": true, "storage": storage, "schema": schema,
			"subresources":             map[string]any{"status": map[string]any{}, "scale": map[string]any{"specReplicasPath": ".spec.masts", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}},
			"additionalPrinterColumns": []any{map[string]any{"name": "Masts", "type": "integer", "jsonPath": ".spec.masts"}, map[string]any{"name": "Wide", "type": "string", "jsonPath": ".spec.name", "priority": 1}},
			"selectableFields":         []any{map[string]any{"jsonPath": ".spec.kind"}}}
	}
	old := version("v1beta1", false)
	old["deprecated"], old["deprecationWarning"] = true, "use v1, it is the same"
	group := "boats.example.com"
	created := m.send("POST", crds, definition(group, version("v1", true), old))
	m.get(crds+"/boats."+group, until(`"type":"Established","status":"True"`))
	path := "/apis/" + group + "/v1/namespaces/diff-5/boats"
	m.get(path, until(`"items"`))
	m.get(crds+"/boats."+group, accept(mediaTable))
	m.get(crds+"/boats."+group+"/status", accept(mediaTable))
	boat := func(name string, spec any) map[string]any {
		return map[string]any{"apiVersion": group + "/v1", "kind": "Boat", "metadata": map[string]any{"name": name, "labels": map[string]any{"stream": m.tag}}, "spec": spec}
	}
	specs := map[string]any{
		"plain": map[string]any{}, "full": map[string]any{"masts": 2, "name": "abc", "crew": []any{map[string]any{"role": "cook", "count": 1}}, "tags": []any{"a", "b"}, "kind": "barque", "any": map[string]any{"x": []any{1, "y"}}, "amount": "5%", "opt": nil, "since": "2026-01-02T03:04:05Z"},
		"seven": map[string]any{"masts": 7}, "many": map[string]any{"masts": 10}, "wrong": map[string]any{"masts": "two"}, "long": map[string]any{"name": "abcdefghijklmn"}, "pattern": map[string]any{"name": "ABC"},
		"enum": map[string]any{"kind": "raft"}, "unknown": map[string]any{"sails": 5, "crew": []any{map[string]any{"role": "x", "rank": 1}}}, "dup-set": map[string]any{"tags": []any{"a", "a"}}, "dup-map": map[string]any{"crew": []any{map[string]any{"role": "x"}, map[string]any{"role": "x"}}},
		"no-key": map[string]any{"crew": []any{map[string]any{"count": 1}}}, "null": nil, "list": []any{1}, "null-field": map[string]any{"masts": nil, "name": nil}, "float": map[string]any{"masts": 1.5}, "whole-float": map[string]any{"masts": 2.0}, "time": map[string]any{"since": "today"}, "int32": map[string]any{"crew": []any{map[string]any{"role": "x", "count": 1 << 40}}},
	}
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		m.send("POST", path+query(pick(m, "", "fieldValidation=Strict", "fieldValidation=Warn", "fieldValidation=Ignore", "")), boat(name, specs[name]))
	}
	m.send("POST", path, duplicate(boat("twice", map[string]any{}), "spec"))
	m.send("POST", path, boat("no-spec", nil), accept(mediaYAML))
	m.send("POST", path, `{"apiVersion":"`+group+`/v1","kind":"Boat","metadata":{"name":"absent-spec"}}`)
	m.send("POST", path, `{"apiVersion":"`+group+`/v2","kind":"Boat","metadata":{"name":"version"},"spec":{}}`)
	m.send("POST", path, "spec: {masts: 4}\nmetadata: {name: yaml}\nkind: Boat\napiVersion: "+group+"/v1\n", content(mediaYAML))
	m.send("POST", path, []byte("k8s\x00x"), content(mediaProtobuf))
	for _, media := range []string{mediaJSON, mediaYAML, mediaTable, mediaMeta, mediaProtobuf, mediaCBOR, "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", "text/html"} {
		m.get(path+"/full", accept(media))
		m.get(path, accept(media))
	}
	m.get("/apis/"+group+"/v1beta1/namespaces/diff-5/boats/full", accept(mediaJSON))
	for _, selector := range []string{"spec.kind%3Dbarque", "spec.kind!%3Dbarque", "spec.masts%3D2", "metadata.name%3Dfull", "x"} {
		m.get(path + "?fieldSelector=" + selector)
	}
	m.customChanges(path)
	m.get("/apis/" + group)
	m.get("/apis/" + group + "/v1")
	m.get("/apis/" + group + "/v3")
	m.get("/apis/" + group + "/v1/nothing")
	m.send("PATCH", crds+"/boats."+group, `{"spec":{"scope":"Cluster"}}`, content(mergePatch))
	m.send("PATCH", crds+"/boats."+group, `{"spec":{"group":"x.example.com"}}`, content(mergePatch))
	m.send("PUT", crds+"/boats."+group, definition(group, version("v1", true)))
	changed := definition(group, version("v1", true))
	changed["metadata"].(map[string]any)["resourceVersion"] = ref("resourceVersion", created) //nolint:forcetypeassert // as made
	m.send("PUT", crds+"/boats."+group, changed)
	m.send("DELETE", path+"?labelSelector=stream%3D"+m.tag, nil)
	m.get(path)
	m.send("DELETE", crds+"/boats."+group, deleteOptions(map[string]any{"preconditions": map[string]any{"uid": "x"}}))
	m.send("DELETE", crds+"/boats."+group, nil)
	m.get(path, until("not f"))
	m.get(crds+"/boats."+group, until("NotFound"))
}

// customChanges are updates and patches of custom resources.
func (m *maker) customChanges(path string) {
	one := path + "/full"
	for _, patch := range []string{`{"spec":{"masts":4}}`, `{"spec":{"masts":7}}`, `{"spec":{"kind":"sloop"}}`, `{"spec":{"sails":1}}`, `{"status":{"replicas":5}}`, `{"metadata":{"labels":{"a":"B b"}}}`, `{"spec":{"opt":null}}`, `{"spec":{"masts":null}}`} {
		m.send("PATCH", one+query(pick(m, "", "", "fieldValidation=Strict")), patch, content(mergePatch))
	}
	m.send("PATCH", one, `{"spec":{"masts":4}}`, content(strategicPatch))
	m.send("PATCH", one, `[{"op":"replace","path":"/spec/masts","value":5},{"op":"add","path":"/spec/tags/-","value":"c"}]`, content(jsonPatch))
	m.send("PATCH", one, `[{"op":"replace","path":"/spec/absent","value":5}]`, content(jsonPatch))
	m.send("PATCH", one+"/status", `{"status":{"replicas":5,"selector":"a=b"},"spec":{"masts":1}}`, content(mergePatch))
	m.get(one + "/status")
	m.get(one + "/scale")
	m.send("PATCH", one+"/scale", `{"spec":{"replicas":6}}`, content(mergePatch))
	m.send("PATCH", one+"/scale", `{"spec":{"replicas":77}}`, content(mergePatch))
	m.send("PUT", one+"/scale", `{"kind":"Scale","apiVersion":"autoscaling/v1","metadata":{"name":"full","namespace":"diff-5"},"spec":{"replicas":2}}`)
	group := "boats.example.com"
	apply := func(name, spec, options string) {
		m.send("PATCH", path+"/"+name+"?"+options, fmt.Sprintf(`{"apiVersion":"%s/v1","kind":"Boat","metadata":{"name":"%s"},"spec":%s}`, group, name, spec), content(applyPatch))
	}
	apply("full", `{"masts":5}`, "fieldManager=a")
	apply("full", `{"masts":5}`, "fieldManager=a&force=true")
	apply("full", `{"masts":6,"crew":[{"role":"cook","count":2}]}`, "fieldManager=b")
	apply("full", `{"masts":6,"crew":[{"role":"cook","count":2}]}`, "fieldManager=b&force=true")
	apply("fresh", `{"crew":[{"role":"x"}],"tags":["z"]}`, "fieldManager=a")
	apply("fresh", `{"crew":[{"role":"y"}]}`, "fieldManager=a")
	apply("fresh", `{"sails":[{"role":"y"}]}`, "fieldManager=a&fieldValidation=Strict")
	apply("fresh", `{"sails":1}`, "fieldManager=a")
	m.send("PUT", path+"/plain", fmt.Sprintf(`{"apiVersion":"%s/v1","kind":"Boat","metadata":{"name":"plain"},"spec":{}}`, group))
	m.send("PUT", path+"/put", fmt.Sprintf(`{"apiVersion":"%s/v1","kind":"Boat","metadata":{"name":"put"},"spec":{}}`, group))
	m.send("DELETE", path+"/plain", fmt.Sprintf(`{"kind":"DeleteOptions","apiVersion":"%s/v1","preconditions":{"uid":"another"}}`, group))
	m.send("DELETE", path+"/plain", fmt.Sprintf(`{"kind":"DeleteOptions","apiVersion":"%s/v1"}`, group))
	m.send("DELETE", path+"/plain", nil)
}

// preserving custom resources keep what their schema does not know.
func (m *maker) preserving() {
	group := "loose.example.com"
	d := definition(group, map[string]any{"name": "v1", "served": true, "storage": true, "schema": map[string]any{"openAPIV3Schema": map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}}})
	d["spec"].(map[string]any)["scope"] = "Cluster" //nolint:forcetypeassert // as made
	m.send("POST", crds, d)
	path := "/apis/" + group + "/v1/boats"
	m.get(path, until(`"items"`))
	m.send("POST", path, fmt.Sprintf(`{"apiVersion":"%s/v1","kind":"Boat","metadata":{"name":"a"},"x":{"y":[1,2.5,"z",null,true]},"big":12345678901234567890,"e":1e3}`, group))
	m.send("POST", path+"?fieldValidation=Strict", fmt.Sprintf(`{"apiVersion":"%s/v1","kind":"Boat","metadata":{"name":"b","unheardOf":1},"x":1}`, group))
	m.get(path + "/a")
	m.get(path+"/a", accept(mediaTable))
	m.get(path+"/a/status", accept(mediaJSON))
	m.send("PATCH", path+"/a", `{"x":{"y":null}}`, content(mergePatch))
	m.send("PATCH", path+"/a?fieldManager=m", fmt.Sprintf(`{"apiVersion":"%s/v1","kind":"Boat","metadata":{"name":"a"},"list":[1,2]}`, group), content(applyPatch))
	m.send("DELETE", path+"/a", deleteOptions(map[string]any{"propagationPolicy": "Orphan"}))
	m.send("DELETE", crds+"/boats."+group, nil)
}

// definitions that are refused.
func (m *maker) definitions() {
	good := func() map[string]any {
		return map[string]any{"name": "v1", "served": true, "storage": true, "schema": map[string]any{"openAPIV3Schema": map[string]any{"type": "object", "properties": map[string]any{"spec": map[string]any{"type": "object"}}}}}
	}
	for i, change := range []func(d, v map[string]any){
		func(_, v map[string]any) { delete(v, "schema") },
		func(_, v map[string]any) { v["storage"] = false },
		func(_, v map[string]any) { v["name"] = "V1" },
		func(_, v map[string]any) {
			v["schema"] = map[string]any{"openAPIV3Schema": map[string]any{"type": "array"}}
		},
		func(_, v map[string]any) {
			v["schema"] = map[string]any{"openAPIV3Schema": map[string]any{"properties": map[string]any{"x": map[string]any{}}}}
		},
		func(_, v map[string]any) {
			v["schema"] = map[string]any{"openAPIV3Schema": map[string]any{"type": "object", "x-kubernetes-validations": []any{map[string]any{"rule": "self.nothing > 1"}}}}
		},
		func(_, v map[string]any) {
			v["schema"] = map[string]any{"openAPIV3Schema": map[string]any{"type": "object", "properties": map[string]any{"l": map[string]any{"type": "array", "items": map[string]any{"type": "string"}, "x-kubernetes-validations": []any{map[string]any{"rule": "self.all(a, self.all(b, a.contains(b)))"}}}}}}
		},
		func(_, v map[string]any) {
			v["subresources"] = map[string]any{"scale": map[string]any{"specReplicasPath": "x"}}
		},
		func(_, v map[string]any) {
			v["additionalPrinterColumns"] = []any{map[string]any{"name": "x", "type": "y", "jsonPath": "z"}}
		},
		func(d, _ map[string]any) { d["names"].(map[string]any)["kind"] = "boat kind" }, //nolint:forcetypeassert // as made
		func(d, _ map[string]any) { d["names"].(map[string]any)["plural"] = "ships" },   //nolint:forcetypeassert // likewise
		func(d, _ map[string]any) { d["scope"] = "Universe" },
		func(d, _ map[string]any) { d["conversion"] = map[string]any{"strategy": "Webhook"} },
		func(d, _ map[string]any) { d["preserveUnknownFields"] = true },
		func(d, _ map[string]any) { d["group"] = "k8s.io" },
		func(_, v map[string]any) {
			v["schema"] = map[string]any{"openAPIV3Schema": map[string]any{"type": "object", "properties": map[string]any{"x": map[string]any{"type": "integer", "default": "text"}}}}
		},
		func(_, v map[string]any) {
			v["schema"] = map[string]any{"openAPIV3Schema": map[string]any{"type": "object", "properties": map[string]any{"x": map[string]any{"type": "object", "additionalProperties": false, "properties": map[string]any{}}}}}
		},
		func(_, v map[string]any) { v["selectableFields"] = []any{map[string]any{"jsonPath": ".spec.x"}} },
	} {
		version := good()
		d := definition("bad"+strconv.Itoa(i)+".example.com", version)
		change(d["spec"].(map[string]any), version) //nolint:forcetypeassert // as made
		m.send("POST", crds+"?dryRun=All", d)
	}
}

// policies of admission, in CEL.
func (m *maker) policies() {
	const base = "/apis/admissionregistration.k8s.io/v1/"
	policy := func(name string, spec map[string]any) map[string]any {
		spec["matchConstraints"] = map[string]any{"resourceRules": []any{map[string]any{"apiGroups": []any{""}, "apiVersions": []any{"v1"}, "operations": []any{"CREATE", "UPDATE"}, "resources": []any{"configmaps"}}}}
		return map[string]any{"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": map[string]any{"name": name}, "spec": spec}
	}
	m.send("POST", base+"validatingadmissionpolicies", policy("bad-cel", map[string]any{"validations": []any{map[string]any{"expression": "object."}}}))
	m.send("POST", base+"validatingadmissionpolicies", policy("nothing", map[string]any{}))
	m.send("POST", base+"validatingadmissionpolicies", policy("diff", map[string]any{"validations": []any{
		map[string]any{"expression": "!has(object.data) || !('forbidden' in object.data)", "message": "that key is forbidden", "reason": "Forbidden"},
		map[string]any{"expression": "!has(object.data) || object.data.size() < 3", "messageExpression": "'there are ' + string(object.data.size())"},
	}, "variables": []any{map[string]any{"name": "n", "expression": "object.metadata.name"}}, "matchConditions": []any{map[string]any{"name": "not-exempt", "expression": "object.metadata.name != 'exempt'"}}}))
	m.send("POST", base+"validatingadmissionpolicybindings", map[string]any{"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": map[string]any{"name": "diff"}, "spec": map[string]any{
		"policyName": "diff", "validationActions": []any{"Deny"}, "matchResources": map[string]any{"namespaceSelector": map[string]any{"matchLabels": map[string]any{"kubernetes.io/metadata.name": "diff-5"}}}}})
	path := "/api/v1/namespaces/diff-5/configmaps"
	settings := func(name string, keys ...string) map[string]any {
		data := map[string]any{}
		for _, key := range keys {
			data[key] = "x"
		}
		return map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name}, "data": data}
	}
	m.send("POST", path+"?dryRun=All", settings("probe", "forbidden"), until("that key is forbidden"))
	m.send("POST", path, settings("p-bad", "forbidden"))
	m.send("POST", path, settings("p-many", "a", "b", "c"))
	m.send("POST", path, settings("exempt", "forbidden"))
	m.send("POST", path, settings("p-fine", "a"))
	m.send("PATCH", path+"/p-fine", `{"data":{"forbidden":"x"}}`, content(mergePatch))
	m.send("POST", "/api/v1/namespaces/diff-4/configmaps", settings("p-elsewhere", "forbidden"))
	m.send("PATCH", base+"validatingadmissionpolicybindings/diff", `{"spec":{"validationActions":["Warn","Audit"]}}`, content(mergePatch))
	m.send("POST", path+"?dryRun=All", settings("probe", "forbidden"), until(`"uid"`))
	m.send("POST", path, settings("p-warned", "forbidden"))
	m.send("DELETE", base+"validatingadmissionpolicybindings/diff", nil)
	m.send("DELETE", base+"validatingadmissionpolicies/diff", nil)
	m.mutations(path, settings)
}

func (m *maker) mutations(path string, settings func(string, ...string) map[string]any) {
	const base = "/apis/admissionregistration.k8s.io/v1/"
	policy := clone(m.find("mutatingadmissionpolicies").sample).(map[string]any) //nolint:forcetypeassert // as the sample
	policy["metadata"] = map[string]any{"name": "diff"}
	spec := policy["spec"].(map[string]any) //nolint:forcetypeassert // as the sample
	spec["matchConstraints"] = map[string]any{"resourceRules": []any{map[string]any{"apiGroups": []any{""}, "apiVersions": []any{"v1"}, "operations": []any{"CREATE"}, "resources": []any{"configmaps"}}}}
	spec["matchConditions"] = []any{map[string]any{"name": "mine", "expression": "object.metadata.name.startsWith('mutate')"}}
	m.send("POST", base+"mutatingadmissionpolicies", policy)
	m.send("POST", base+"mutatingadmissionpolicybindings", map[string]any{"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicyBinding", "metadata": map[string]any{"name": "diff"}, "spec": map[string]any{"policyName": "diff"}})
	m.send("POST", path+"?dryRun=All", settings("mutate-probe"), until(`"a":"b"`))
	m.send("POST", path, settings("mutate-1"))
	m.send("DELETE", base+"mutatingadmissionpolicybindings/diff", nil)
	m.send("DELETE", base+"mutatingadmissionpolicies/diff", nil)
}

// owners and finalizers.
func (m *maker) owners() {
	path := "/api/v1/namespaces/diff-0/configmaps"
	settings := func(name string, meta map[string]any) int {
		meta["name"] = name
		return m.send("POST", path, map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})
	}
	owner := settings("owner", map[string]any{"finalizers": []any{"example.com/hold"}})
	reference := func(more map[string]any) map[string]any {
		r := map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": ref("uid", owner)}
		maps.Copy(r, more)
		return map[string]any{"ownerReferences": []any{r}}
	}
	settings("owned", reference(map[string]any{"controller": true, "blockOwnerDeletion": true}))
	settings("owned-twice", map[string]any{"ownerReferences": append(reference(map[string]any{"controller": true})["ownerReferences"].([]any), reference(map[string]any{"controller": true, "uid": "other"})["ownerReferences"].([]any)...)}) //nolint:forcetypeassert // as made
	settings("owned-bad", reference(map[string]any{"uid": ""}))
	settings("owned-event", reference(map[string]any{"kind": "Event"}))
	m.send("DELETE", path+"/owner", nil)
	m.get(path + "/owner")
	m.send("DELETE", path+"/owner", nil)
	m.send("PATCH", path+"/owner", `{"metadata":{"finalizers":["example.com/hold","example.com/more"]}}`, content(mergePatch))
	m.send("PATCH", path+"/owner", `{"metadata":{"deletionGracePeriodSeconds":7}}`, content(mergePatch))
	m.send("PUT", path+"/owner", map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "owner", "finalizers": []any{}}})
	m.get(path + "/owner")
	for _, policy := range []string{"Foreground", "Orphan", "Background"} {
		name := "by-" + map[string]string{"Foreground": "f", "Orphan": "o", "Background": "b"}[policy]
		settings(name, map[string]any{})
		m.send("DELETE", path+"/"+name, deleteOptions(map[string]any{"propagationPolicy": policy}))
		m.get(path + "/" + name)
		m.send("DELETE", path+"/"+name, deleteOptions(map[string]any{"propagationPolicy": "Background"}))
		m.get(path + "/" + name)
	}
	m.send("DELETE", path+"?labelSelector=nobody", nil)
	m.send("POST", "/api/v1/namespaces", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"diff-going","labels":{"stream":"`+m.tag+`"}}}`)
	m.send("DELETE", "/api/v1/namespaces/diff-going", nil)
	m.send("POST", "/api/v1/namespaces/diff-going/configmaps?dryRun=All", `{"metadata":{"name":"late"}}`, until("being terminated"))
	m.send("POST", "/api/v1/namespaces/diff-going/configmaps", `{"metadata":{"name":"late"}}`)
	m.send("DELETE", "/api/v1/namespaces/diff-going", nil)
	m.send("PUT", "/api/v1/namespaces/diff-going/finalize", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"diff-going"},"spec":{"finalizers":[]}}`)
	m.get("/api/v1/namespaces/diff-going")
	for _, ns := range []string{"default", "kube-system", "kube-public", "kube-node-lease"} {
		m.send("DELETE", "/api/v1/namespaces/"+ns+"?dryRun=All", nil)
	}
}

// racers are how many write at once.
const racers = namespaces

// race has several write to one object at once.
func (m *maker) race() {
	path := "/api/v1/namespaces/diff-1/configmaps"
	settings := func(meta string) string {
		return `{"apiVersion":"v1","kind":"ConfigMap","metadata":{` + meta + `}}`
	}
	together := func(send func(option)) {
		m.races++
		for range racers {
			send(inRace(m.races))
		}
	}
	together(func(o option) { m.send("POST", path, settings(`"name":"raced"`), o) })
	now := m.get(path + "/raced")
	together(func(o option) {
		m.send("PUT", path+"/raced", settings(`"name":"raced","resourceVersion":"`+ref("resourceVersion", now)+`","labels":{"won":"one-of-them"}`), o)
	})
	together(func(o option) {
		m.send("PATCH", path+"/raced", `{"metadata":{"annotations":{"k`+strconv.Itoa(len(m.requests))+`":"v"}}}`, content(mergePatch), o)
	})
	m.get(path + "/raced")
	together(func(o option) { m.send("DELETE", path+"/raced", nil, o) })
	together(func(o option) {
		m.send("POST", "/api/v1/namespaces/diff-1/services", `{"metadata":{"name":"raced"},"spec":{"clusterIP":"10.43.98.98","ports":[{"port":80}]}}`, o)
	})
	ns := 0
	together(func(o option) {
		m.send("POST", "/api/v1/namespaces/diff-"+strconv.Itoa(ns)+"/services", `{"metadata":{"name":"raced-port"},"spec":{"type":"NodePort","ports":[{"port":80,"nodePort":30082}]}}`, o)
		ns++
	})
	ns = 0
	together(func(o option) {
		m.send("DELETE", "/api/v1/namespaces/diff-"+strconv.Itoa(ns)+"/services/raced-port", nil, o)
		ns++
	})
	together(func(o option) {
		m.send("PATCH", path+"/applied?fieldManager=f"+strconv.Itoa(len(m.requests)), settings(`"name":"applied"`), content(applyPatch), o)
	})
}

// epilogue asks once more for what was there, all versions of it: watches begin where objects were born.
func (m *maker) epilogue() {
	m.scene = "watches"
	m.races++
	mine := "labelSelector=stream%3D" + m.tag
	for _, collection := range slices.Sorted(maps.Keys(m.born)) {
		m.get(collection + query(mine))
		m.get(collection + query(mine, "resourceVersion=0"))
	}
	for _, collection := range slices.Sorted(maps.Keys(m.born)) {
		m.get(collection+query("watch=1", mine, "timeoutSeconds=2", pick(m, "", "", "allowWatchBookmarks=false"), "resourceVersion="+ref("resourceVersion", m.born[collection])),
			beside(m.races), accept(pick(m, mediaJSON, mediaJSON, mediaTable, mediaMeta)))
		if m.chance(30) {
			m.get(collection+query("watch=1", mine, "timeoutSeconds=2", "sendInitialEvents=true", "resourceVersionMatch=NotOlderThan", "allowWatchBookmarks=true"), beside(m.races))
		}
	}
}
