package stream

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"barque.dev/test/differential/wire"
)

// Media types.
const (
	mediaJSON      = "application/json"
	mediaYAML      = "application/yaml"
	mediaProtobuf  = "application/vnd.kubernetes.protobuf"
	mediaCBOR      = "application/cbor"
	mediaTable     = "application/json;as=Table;v=v1;g=meta.k8s.io"
	mediaMeta      = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
	mediaMetaList  = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
	jsonPatch      = "application/json-patch+json"
	mergePatch     = "application/merge-patch+json"
	strategicPatch = "application/strategic-merge-patch+json"
	applyPatch     = "application/apply-patch+yaml"
)

// life is one object's, from creation to deletion, with a choice of what may happen to it.
func (m *maker) life(k *kind) {
	m.scene = k.String()
	ns := m.namespace()
	n := m.next()
	if !k.can("get") {
		m.virtual(k, ns, n)
		return
	}
	object, name := m.object(k, ns, n)
	path := k.collection(ns) + "/" + name
	for range m.random.IntN(4) {
		m.invalid(k, ns)
	}
	born := m.create(k, ns, object)
	m.born[k.collection(ns)] = born
	if text, ok := settled()[k.Resource.Resource]; ok {
		m.get(path, until(text))
	}
	steps := []func(*kind, string, string, map[string]any, int){
		m.read, m.read, m.list, m.list, m.update, m.patch, m.patch, m.apply, m.sub, m.sub, m.again, m.oddDelete, m.watchNow,
	}
	if k.Resource.Resource == "servicecidrs" {
		steps = []func(*kind, string, string, map[string]any, int){m.read, m.list, m.list, m.oddDelete, m.watchNow, m.read, m.list, m.watchNow, m.read, m.list, m.read}
	}
	m.random.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
	for _, step := range steps[:5+m.random.IntN(6)] {
		step(k, ns, path, object, born)
	}
	if m.chance(80) {
		m.remove(path)
	}
}

// settled is what servers themselves write about new objects, as far as one knows when that is done.
func settled() map[string]string {
	return map[string]string{"customresourcedefinitions": `"type":"Established","status":"True"`, "apiservices": `"Available"`, "flowschemas": `"Dangling"`}
}

// virtual resources can be created alone.
func (m *maker) virtual(k *kind, ns string, n int) {
	object, _ := m.object(k, ns, n)
	if k.ResponseKind.Kind != "Binding" {
		object["metadata"] = map[string]any{}
	}
	m.send("POST", k.collection(ns), object)
	m.send("POST", k.collection(ns)+"?dryRun=All", object, accept(pick(m, mediaJSON, mediaYAML, mediaProtobuf, mediaTable)))
	for range 3 {
		changed := clone(object).(map[string]any) //nolint:forcetypeassert // as the object
		m.mutate(k, changed)
		m.send("POST", k.collection(ns)+m.writeOptions(), changed)
	}
	m.get(k.collection(ns))
	m.send("DELETE", k.collection(ns), nil)
	m.send("PUT", k.collection(ns)+"/x", object)
}

// writeOptions are those of a creation or update, at random.
func (m *maker) writeOptions() string {
	return query(
		pick(m, "", "", "fieldValidation=Strict", "fieldValidation=Warn", "fieldValidation=Ignore", "fieldValidation=Whatever"),
		pick(m, "", "", "", "dryRun=All", "dryRun=Some", "dryRun=All&dryRun=All"),
		pick(m, "", "", "", "fieldManager=somebody", "fieldManager="+strings.Repeat("m", 129), "fieldManager=a%0Ab", "pretty=true", "pretty=false", "unheardOf=1"),
	)
}

// dry is a dry run of an option list, which says so already or does not.
func dry(options string) string {
	if strings.Contains(options, "dryRun") {
		return options
	}
	if options == "" {
		return "?dryRun=All"
	}
	return options + "&dryRun=All"
}

// invalid creates an object that is changed in one place, or sent badly.
func (m *maker) invalid(k *kind, ns string) {
	object, _ := m.object(k, ns, m.next())
	options := m.writeOptions()
	if k.harmful {
		options = dry(options)
	}
	collection := k.collection(ns)
	switch m.random.IntN(12) {
	case 0:
		m.send("POST", collection+options, duplicate(object, pick(m, "kind", "metadata", "spec")))
	case 1:
		data, _ := json.Marshal(object) //nolint:errchkjson // of JSON
		m.send("POST", collection+options, string(data[:m.random.IntN(len(data))]))
	case 2:
		m.send("POST", collection+options, object, content(pick(m, "text/plain", "application/xml", "application/x-www-form-urlencoded", "", "application/json;charset=utf-8", "garbage;;")))
	case 3:
		meta := object["metadata"].(map[string]any) //nolint:forcetypeassert // as made
		switch m.random.IntN(6) {
		case 0:
			meta["namespace"] = "elsewhere"
		case 1:
			meta["resourceVersion"] = "1"
		case 2:
			meta["name"] = m.word()
		case 3:
			meta["labels"] = map[string]any{m.word(): m.word()}
		case 4:
			meta["annotations"] = map[string]any{"big": strings.Repeat("b", 300<<10)}
		default:
			meta["finalizers"] = []any{m.word()}
		}
		m.send("POST", collection+dry(options), object)
	case 4:
		object["kind"], object["apiVersion"] = pick(m, "Pod", "Nothing", ""), pick(m, any("v1"), any("apps/v9"), any(""), any("a/b/c"))
		m.send("POST", collection+options, object)
	case 5:
		m.send("POST", collection+options, pick(m, "", "null", "[]", "{}", `"x"`, "{{{", "\xff\xfe", "---\n"))
	case 6:
		data, _ := yaml.Marshal(object) //nolint:errchkjson // of JSON
		m.send("POST", collection+options, pick(m, string(data), string(data)+"\nkind: twice\n", "a: &a [1]\nb: *a\n", "\tx"), content(mediaYAML))
	default:
		m.mutate(k, object)
		if m.chance(30) {
			m.mutate(k, object)
		}
		m.send("POST", collection+options, object)
	}
}

// create makes the object that the rest of its life is about.
func (m *maker) create(k *kind, ns string, object map[string]any) int {
	collection := k.collection(ns)
	if k.Resource.Resource == "servicecidrs" {
		return m.send("POST", collection+"?dryRun=All", object) // addresses would come from there
	}
	if m.chance(30) {
		m.send("POST", collection+"?dryRun=All", object)
	}
	switch m.random.IntN(5) {
	case 0:
		data, _ := yaml.Marshal(object) //nolint:errchkjson // of JSON
		return m.send("POST", collection, string(data), content(mediaYAML), accept(mediaYAML))
	case 1:
		return m.send("POST", collection+"?fieldManager=creator&fieldValidation=Strict", object)
	case 2:
		if data, err := wire.Protobuf(object); err == nil {
			return m.send("POST", collection, data, content(mediaProtobuf), accept(pick(m, mediaJSON, mediaProtobuf)))
		}
	}
	born := m.send("POST", collection, object, accept(pick(m, mediaJSON, mediaJSON, "*/*", mediaTable, mediaMeta)))
	return born
}

// again is creation of what exists, by its name or by one that is generated.
func (m *maker) again(k *kind, ns, _ string, object map[string]any, _ int) {
	if m.chance(50) {
		m.send("POST", k.collection(ns), object)
		return
	}
	o := clone(object).(map[string]any)    //nolint:forcetypeassert // as the object
	meta := o["metadata"].(map[string]any) //nolint:forcetypeassert // likewise
	delete(meta, "name")
	meta["generateName"] = pick(m, "gen-", "gen-", strings.Repeat("long-", 13), "Bad_", "x.")
	m.send("POST", k.collection(ns)+"?dryRun=All", o)
}

func (m *maker) accepts() string {
	return pick(m, mediaJSON, mediaJSON, mediaYAML, mediaProtobuf, mediaTable, mediaMeta, mediaCBOR,
		"application/json;as=Table;v=v1beta1;g=meta.k8s.io", "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;v=v1;g=meta.k8s.io,application/json",
		"application/json;as=Table;v=v1;g=meta.k8s.io,application/json", "text/html", "application/json;as=Nothing;v=v1;g=meta.k8s.io", "", "*/*", "application/*", "text/plain;q=0.5,application/json;q=0.1", "application/json;stream=watch")
}

func (m *maker) read(_ *kind, _, path string, _ map[string]any, _ int) {
	switch m.random.IntN(5) {
	case 0:
		m.get(path + pick(m, "x", "?pretty=true", "?pretty=1", "?resourceVersion=abc", "?resourceVersion=-1", "?export=true", "/status", "/nothing", "/", "/..", "%2F", "?includeObject=Object"))
	case 1:
		m.get(path+query(pick(m, "includeObject=None", "includeObject=Object", "includeObject=Metadata", "includeObject=All")), accept(mediaTable))
	case 2:
		m.get(path+"?resourceVersion=99999999x", accept(m.accepts()))
	default:
		m.get(path, accept(m.accepts()))
	}
}

func (m *maker) list(k *kind, ns, path string, _ map[string]any, born int) {
	collection := k.collection(pick(m, ns, ns, ""))
	mine := "labelSelector=stream%3D" + m.tag
	switch m.random.IntN(7) {
	case 0:
		name := path[strings.LastIndexByte(path, '/')+1:]
		m.get(collection + query(mine, "fieldSelector="+pick(m, "metadata.name%3D"+name, "metadata.name!%3D"+name, "metadata.namespace%3D"+ns, "spec.nodeName%3D", "status.phase%3DPending",
			"spec.nothing%3Dx", "metadata.name", "%3D", "type%3DOpaque", "metadata.name%3D"+name+",metadata.namespace%3D"+ns, "metadata.uid%3Dx", "spec.clusterIP%3DNone")))
	case 1:
		m.get(collection + query(mine+pick(m, ",n%3Dn1", ",n+in+(n1,n2)", ",n+notin+(n0)", ",!n", ",n", ",n!%3Dn2", ",n%3E1", ",a+b", ",(", ",n+in+()", ",A_%3D%3D", ",n%3D"+strings.Repeat("v", 64))))
	case 2:
		m.get(collection + query(mine, "limit="+pick(m, "1", "2", "-1", "x", "0", "500")))
		if k.namespaced() {
			// All objects of one of the namespaces, since cluster-wide there are those of the servers' own.
			collection = k.collection(ns)
			first := m.get(collection + query("limit="+pick(m, "1", "2")))
			next := m.get(collection + query("limit=1", "continue="+ref("continue", first)))
			m.get(collection+query("continue="+ref("continue", next)), accept(pick(m, mediaJSON, mediaTable, mediaMetaList)))
		}
		if m.chance(30) {
			m.get(collection + query("continue="+pick(m, "nonsense", base64.RawURLEncoding.EncodeToString([]byte(`{"v":"meta.k8s.io/v1","rv":1,"start":"x\u0000"}`)), base64.RawURLEncoding.EncodeToString([]byte(`{"v":"v9"}`)))))
		}
	case 3:
		m.get(collection + query(mine, "resourceVersion="+pick(m, "0", ref("resourceVersion", born), "x", "", "-1"), "resourceVersionMatch="+pick(m, "NotOlderThan", "Exact", "Sometimes", ""), pick(m, "", "limit=1")))
	case 4:
		m.get(collection + query(mine, pick(m, "sendInitialEvents=true", "allowWatchBookmarks=true", "timeoutSeconds=5", "timeoutSeconds=x", "sendInitialEvents=x", "limit=1&resourceVersion=0", "pretty=true", "limit=1&limit=2")))
	default:
		m.get(collection+query(mine), accept(pick(m, m.accepts(), mediaMetaList, mediaTable)))
	}
}

func (m *maker) update(k *kind, _, path string, object map[string]any, born int) {
	if !k.can("update") {
		m.send("PUT", path, object)
		return
	}
	o := clone(object).(map[string]any)    //nolint:forcetypeassert // as the object
	meta := o["metadata"].(map[string]any) //nolint:forcetypeassert // likewise
	options := m.writeOptions()
	switch m.random.IntN(8) {
	case 0:
		meta["resourceVersion"] = pick(m, ref("resourceVersion", born), "1", "x", "0", "99999999")
	case 1:
		meta["uid"] = pick(m, ref("uid", born), "11111111-2222-3333-4444-555555555555", "x")
	case 2:
		meta["name"] = "other"
	case 3:
		path += "-absent"
		meta["name"] = path[strings.LastIndexByte(path, '/')+1:]
		options = dry(options)
	case 4:
		meta["annotations"] = map[string]any{"changed": m.word()}
	case 5:
		m.send("PUT", path, pick(m, "", "{}", "null", "[1]", "{"))
		return
	default:
		m.mutate(k, o)
		if k.harmful {
			options = dry(options)
		}
	}
	m.send("PUT", path+options, o)
}

func (m *maker) patch(k *kind, _, path string, object map[string]any, born int) {
	options := m.writeOptions()
	if k.harmful {
		options = dry(options)
	}
	switch m.random.IntN(10) {
	case 0:
		m.send("PATCH", path+options, pick(m,
			`[{"op":"test","path":"/metadata/name","value":"x"}]`, `[{"op":"add","path":"/metadata/annotations","value":{"j":"p"}}]`, `[{"op":"remove","path":"/metadata/labels/n"}]`,
			`[{"op":"remove","path":"/nothing"}]`, `[{"op":"replace","path":"/metadata/name","value":"y"}]`, `[{"op":"copy","from":"/metadata/name","path":"/metadata/labels/copied"}]`,
			`[{"op":"move","from":"/a","path":"/b"}]`, `[{"op":"frobnicate","path":"/a"}]`, `{}`, `[]`, `[{"op":"add","path":"metadata","value":1}]`, `[{"op":"add","path":"/spec","value":5}]`,
			`[{"op":"test","path":"/metadata/uid","value":"`+ref("uid", born)+`"},{"op":"add","path":"/metadata/annotations","value":{"j":"q"}}]`,
			`[{"op":"add","path":"/unheardOf","value":1}]`, "["+strings.Repeat(`{"op":"test","path":"","value":1},`, 10001)+`{"op":"test","path":"","value":1}]`), content(jsonPatch))
	case 1, 2, 3:
		m.send("PATCH", path+options, pick(m,
			`{"metadata":{"annotations":{"m":"p"}}}`, `{"metadata":{"labels":{"n":null}}}`, `{"metadata":{"resourceVersion":"1"}}`, `{"metadata":{"uid":"x"}}`,
			`{"metadata":{"resourceVersion":"`+ref("resourceVersion", born)+`"}}`, `{"unheardOf":{"a":1}}`, `{"spec":null}`, `{"spec":[]}`, `[]`, `{`, `null`, `{"metadata":null}`, `{}`, `{"metadata":{"name":"z"}}`,
			`{"kind":"Other"}`, `{"apiVersion":"v7"}`, `{"metadata":{"finalizers":["example.com/f"]}}`, `{"metadata":{"labels":{"n":"n1","n":"n2"}}}`, `{"metadata":{"deletionTimestamp":"2026-01-02T03:04:05Z"}}`,
			`{"metadata":{"managedFields":[]}}`, `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"ConfigMap","name":"o","uid":"u"}]}}`), content(pick(m, mergePatch, strategicPatch)))
	case 4:
		m.send("PATCH", path+options, pick(m, `{"metadata":{"$patch":"replace","labels":{"only":"this"}}}`, `{"metadata":{"$retainKeys":["labels"],"labels":{"k":"v"}}}`, `{"$patch":"delete"}`, `{"metadata":{"$deleteFromPrimitiveList/finalizers":["a.b/c"]}}`,
			`{"metadata":{"$setElementOrder/finalizers":["x"]}}`, `{"spec":{"$patch":"nonsense"}}`), content(strategicPatch))
	case 5:
		m.send("PATCH", path, `{}`, content(pick(m, mediaJSON, "", "application/yaml", "text/plain", "application/apply-patch+cbor", mergePatch+";charset=utf-8")))
	case 6:
		m.send("PATCH", path+"-absent"+options, `{"metadata":{"labels":{"a":"b"}}}`, content(pick(m, mergePatch, strategicPatch, jsonPatch)))
	default:
		changed := clone(object).(map[string]any) //nolint:forcetypeassert // as the object
		m.mutate(k, changed)
		delete(changed, "metadata")
		delete(changed, "apiVersion")
		m.send("PATCH", path+options, changed, content(pick(m, mergePatch, strategicPatch)))
	}
}

func (m *maker) apply(k *kind, _, path string, object map[string]any, _ int) {
	o := clone(object).(map[string]any) //nolint:forcetypeassert // as the object
	var force string
	switch m.random.IntN(8) {
	case 0:
		m.send("PATCH", path, o, content(applyPatch))
		return
	case 1:
		m.send("PATCH", path+"?fieldManager=applier", pick(m, "", "{}", "[]", "kind: x", "apiVersion: v1\nkind: Pod\nmetadata: {name: other}\n", "\tbad"), content(applyPatch))
		return
	case 2:
		path += "-applied"
		o["metadata"].(map[string]any)["name"] = path[strings.LastIndexByte(path, '/')+1:] //nolint:forcetypeassert // as the object
		force = "dryRun=All"
	case 3:
		o["metadata"].(map[string]any)["managedFields"] = []any{} //nolint:forcetypeassert // as the object
	}
	m.send("PATCH", path+query("fieldManager="+pick(m, "applier", "applier", "other"), force, pick(m, "", "force=true", "force=x")), o, content(applyPatch))
	m.mutate(k, o)
	options := query("fieldManager=other", pick(m, "force=true", "", "force=false"), pick(m, "", "fieldValidation=Strict", "fieldValidation=Ignore"))
	if k.harmful {
		options = dry(options)
	}
	m.send("PATCH", path+options, o, content(applyPatch))
}

// sub does something with one of the subresources.
func (m *maker) sub(k *kind, ns, path string, object map[string]any, born int) {
	if len(k.Subresources) == 0 {
		m.get(path + "/" + pick(m, "status", "scale", "x"))
		return
	}
	s := k.Subresources[m.random.IntN(len(k.Subresources))]
	if _, ok := settled()[k.Resource.Resource]; ok {
		m.get(path+"/"+s.Subresource, accept(m.accepts())) // the rest is the server's
		return
	}
	path += "/" + s.Subresource
	body := clone(object).(map[string]any)    //nolint:forcetypeassert // as the object
	meta := body["metadata"].(map[string]any) //nolint:forcetypeassert // likewise
	switch s.Subresource {
	case "scale":
		body = map[string]any{"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": map[string]any{"name": meta["name"], "namespace": ns},
			"spec": map[string]any{"replicas": pick(m, any(0), any(1), any(3), any(-1), any("x"))}}
	case "eviction":
		body = map[string]any{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": map[string]any{"name": pick(m, meta["name"], any("other")), "namespace": ns}}
	case "binding":
		body = map[string]any{"apiVersion": "v1", "kind": "Binding", "metadata": map[string]any{"name": meta["name"], "namespace": ns}, "target": map[string]any{"kind": pick(m, "Node", "Pod"), "name": pick(m, "portability-node", "")}}
	case "token":
		body = map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": map[string]any{"audiences": []any{"a"}, "expirationSeconds": pick(m, 600, 10, 3600, 1<<33)}}
	default:
		if k.Resource.Resource == "services" {
			// Stock makes a service of the status of one that is not there, unless it is that of a certain one.
			meta["uid"] = ref("uid", born)
		}
		body["status"] = m.value(k.document, k.document.resolve(k.schema.Properties["status"]), 4)
	}
	verbs := map[string]string{"get": "GET", "update": "PUT", "patch": "PATCH", "create": "POST"}
	for _, verb := range []string{"get", "create", "update", "patch"} {
		if !slices.Contains(s.Verbs, verb) && !m.chance(10) {
			continue
		}
		if connects(s.Subresource) {
			m.get(path + query(pick(m, "", "container=main", "command=x", "previous=true", "tailLines=-1", "ports=80", "follow=x")))
			continue
		}
		switch verb {
		case "get":
			m.get(path, accept(m.accepts()))
		case "patch":
			m.send("PATCH", path+m.writeOptions(), map[string]any{"status": body["status"], "metadata": map[string]any{"annotations": map[string]any{"by": "status"}}}, content(pick(m, mergePatch, strategicPatch)))
			m.send("PATCH", path+"?fieldManager=applier&force=true", body, content(applyPatch))
		default:
			m.send(verbs[verb], path+m.writeOptions(), body)
		}
	}
}

// connects tells of subresources that pass requests on.
func connects(sub string) bool {
	return slices.Contains([]string{"proxy", "exec", "attach", "portforward", "log"}, sub)
}

func deleteOptions(options map[string]any) map[string]any {
	options["kind"], options["apiVersion"] = "DeleteOptions", "v1"
	return options
}

func (m *maker) oddDelete(k *kind, ns, path string, _ map[string]any, born int) {
	switch m.random.IntN(9) {
	case 0:
		m.send("DELETE", path, deleteOptions(map[string]any{"preconditions": map[string]any{"uid": pick(m, "11111111-2222-3333-4444-555555555555", "x")}}))
	case 1:
		m.send("DELETE", path, deleteOptions(map[string]any{"preconditions": map[string]any{"resourceVersion": "1"}}))
	case 2:
		m.send("DELETE", path+query(pick(m, "propagationPolicy=Sideways", "propagationPolicy=Orphan&orphanDependents=true", "gracePeriodSeconds=-5", "gracePeriodSeconds=x", "dryRun=Some", "orphanDependents=x")), nil)
	case 3:
		m.send("DELETE", path, pick(m, "{", "[]", `{"kind":"Pod","apiVersion":"v1"}`, `{"unheardOf":1}`, `{"dryRun":["Some"]}`, `{"gracePeriodSeconds":"x"}`))
	case 4:
		m.send("DELETE", path+"-absent", nil)
	case 5:
		m.send("DELETE", path+query("dryRun=All", pick(m, "", "propagationPolicy=Foreground", "propagationPolicy=Background", "propagationPolicy=Orphan", "gracePeriodSeconds=0")), nil)
	case 6:
		m.send("DELETE", k.collection(ns)+query("labelSelector=stream%3D"+m.tag+",nobody", pick(m, "dryRun=All", "dryRun=x", "limit=1", "")), nil)
	case 7:
		m.send("DELETE", k.collection(ns)+query("labelSelector=stream%3D"+m.tag, "dryRun=All"), nil)
	default:
		m.send("DELETE", path, deleteOptions(map[string]any{"dryRun": []any{"All"}, "preconditions": map[string]any{"uid": ref("uid", born)}}), content(pick(m, mediaJSON, mediaYAML, "text/plain")))
	}
}

// watchNow asks for watches that can't be, or end at once.
func (m *maker) watchNow(k *kind, ns, _ string, _ map[string]any, _ int) {
	m.get(k.collection(ns) + query("watch=1", pick(m, "resourceVersion=x", "timeoutSeconds=x", "sendInitialEvents=true", "resourceVersionMatch=Exact", "labelSelector=(", "fieldSelector=no.such%3Dx",
		"sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=x", "limit=x", "resourceVersionMatch=NotOlderThan", "sendInitialEvents=false")) + "&timeoutSeconds=1")
}

func (m *maker) remove(path string) {
	if strings.Contains(path, "/customresourcedefinitions/") {
		m.send("DELETE", path, nil)
		m.get(path, until("NotFound"))
		return
	}
	m.send("DELETE", path+query(pick(m, "", "propagationPolicy=Background", "propagationPolicy=Foreground", "gracePeriodSeconds=0", "gracePeriodSeconds=5", "propagationPolicy=Orphan", "orphanDependents=false", "orphanDependents=true")), nil)
	m.get(path)
	if m.chance(20) {
		m.send("PATCH", path, `{"metadata":{"finalizers":null}}`, content(mergePatch))
		m.send("DELETE", path, nil)
	}
}
