package stream

import "maps"

// oddities are requests that the two servers are meant to answer otherwise, so that every stream needs every exception:
// one that nothing needs any more is found.
func (m *maker) oddities() {
	const base = "/api/v1/namespaces/diff-3/"
	settings := func(name string, meta map[string]any) map[string]any {
		o := map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name}}
		maps.Copy(o["metadata"].(map[string]any), meta) //nolint:forcetypeassert // as made
		return o
	}
	m.send("POST", base+"configmaps", settings("odd", map[string]any{"labels": map[string]any{"odd": "yes"}}))
	m.send("POST", base+"configmaps", settings("odder", map[string]any{}))
	m.get(base + "configmaps?labelSelector=odd&limit=1")
	m.get(base + "configmaps?labelSelector=nobody")
	m.send("PUT", base+"configmaps/odd", settings("odd", map[string]any{"resourceVersion": "x"}))
	m.send("PUT", base+"events/absent", `{"metadata":{"name":"absent","resourceVersion":"x"},"involvedObject":{"kind":"Pod","namespace":"elsewhere","name":"x"}}`)
	m.send("PATCH", base+"configmaps/odd?fieldManager=m", `{"apiVersion":"v1","kind":"ConfigMap","unheardOf":1}`, content(applyPatch))
	m.send("PUT", base+"configmaps/odd", settings("odd", map[string]any{"uid": "x"}))
	m.send("PATCH", base+"configmaps/odd?fieldValidation=Strict", "{}", content(jsonPatch))
	m.send("DELETE", base+"configmaps/odd", `{"kind":"Pod","apiVersion":"v1"}`)
	m.send("POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/diff-3/rolebindings", `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"odd"}}`)
	m.send("POST", "/apis/authorization.k8s.io/v1/namespaces/diff-3/localsubjectaccessreviews", `{"spec":{}}`)
	m.send("POST", base+"pods", `{"metadata":{"name":"odd"},"spec":{"serviceAccountName":"a/b","containers":[{"name":"c","image":"x"}]}}`)
	m.send("POST", base+"bindings", `{"metadata":{"name":"absent"},"target":{"kind":"Node","name":"a/b"}}`)
	m.send("POST", base+"services", `{"metadata":{"name":"twice"},"spec":{"type":"NodePort","ports":[{"name":"a","port":80,"nodePort":30083},{"name":"b","port":81,"nodePort":30083}]}}`)
	status := map[string]any{"apiVersion": "v1", "kind": "Service", "metadata": map[string]any{"name": "absent", "uid": "99999999-2222-3333-4444-555555555555"}, "status": map[string]any{"loadBalancer": map[string]any{}}}
	m.send("PUT", base+"services/absent/status", status)
	m.send("PATCH", base+"services/absent/status?fieldManager=m", status, content(applyPatch))
	m.send("POST", "/api/v1/nodes", `{"metadata":{"name":"bare"}}`)
	m.get("/api/v1/nodes/bare/proxy/x")
	m.send("DELETE", "/api/v1/nodes/bare", nil)
	m.get("/apis/networking.k8s.io/v1/servicecidrs/kubernetes")
	m.get("/apis/rbac.authorization.k8s.io/v1/clusterroles?watch=1&timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true")
	m.shown("certificatesigningrequests", "/approval")
	m.shown("resourceclaims", "/status")
	m.shown("daemonsets", "/status")
	m.shown("csistoragecapacities", "")
}

// shown has an object be shown in ways that not every kind has, by itself or by one of its subresources.
func (m *maker) shown(resource, sub string) {
	k := m.find(resource)
	object, name := m.object(k, "diff-3", m.next())
	m.send("POST", k.collection("diff-3"), object)
	path := k.collection("diff-3") + "/" + name
	for _, media := range []string{mediaTable, mediaTable + "," + mediaJSON, mediaMeta} {
		m.get(path, accept(media))
		m.get(path+sub, accept(media))
	}
	m.send("PATCH", path, `{"metadata":{"annotations":{"a":"b"}}}`, content(mergePatch))
	m.get(path, accept(mediaMeta))
	m.send("DELETE", path, nil)
}
