package stream

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// A scene is a part of every stream.
type scene struct {
	name string
	play func(*maker)
}

func scenes() []scene {
	return []scene{
		{"documents", (*maker).documents},
		{"paths", (*maker).paths},
		{"defaults", (*maker).defaults},
		{"access", (*maker).access},
		{"pod security", (*maker).podSecurity},
		{"services", (*maker).services},
		{"limits", (*maker).limits},
		{"quota", (*maker).quota},
		{"custom resources", (*maker).custom},
		{"custom resources without rules", (*maker).preserving},
		{"definitions", (*maker).definitions},
		{"policies", (*maker).policies},
		{"owners", (*maker).owners},
		{"races", (*maker).race},
		{"oddities", (*maker).oddities},
	}
}

// prologue makes what everything else stands on.
func (m *maker) prologue() {
	m.scene = "prologue"
	for i := range namespaces {
		name := "diff-" + strconv.Itoa(i)
		m.send("POST", "/api/v1/namespaces", map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": name, "labels": map[string]any{"stream": m.tag}}})
		for _, account := range []string{"default", "worker"} {
			m.send("POST", "/api/v1/namespaces/"+name+"/serviceaccounts", map[string]any{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": map[string]any{"name": account}}, until(`"uid"`))
		}
	}
	node := m.find("nodes")
	object := clone(node.sample).(map[string]any) //nolint:forcetypeassert // as the sample
	m.send("POST", "/api/v1/nodes", object)
}

// documents are what the server says of itself.
func (m *maker) documents() {
	aggregated := accept("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json")
	for _, path := range []string{"/api", "/apis"} {
		m.get(path)
		m.get(path, aggregated)
		m.get(path, accept("application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"))
		m.get(path, accept("application/vnd.kubernetes.protobuf"))
		m.get(path, accept("application/cbor"))
		m.get(path, accept("text/html"))
		m.send("POST", path, "{}")
	}
	for _, g := range m.served.Groups {
		if g.Metadata.Name != "" {
			m.get("/apis/" + g.Metadata.Name)
			m.get("/apis/"+g.Metadata.Name, accept("application/yaml"))
		}
		for _, v := range g.Versions {
			m.get(root(g.Metadata.Name, v.Version))
		}
	}
	m.get("/openapi/v3")
	for _, path := range slices.Sorted(maps.Keys(m.served.Documents)) {
		m.get("/openapi/v3/" + path)
	}
	m.get("/openapi/v3/apis/nothing/v1")
	m.get("/openapi/v2", accept(mediaJSON))
	m.get("/version")
	m.get("/version/")
	m.get("/.well-known/openid-configuration")
	for _, path := range []string{"/healthz", "/livez", "/readyz", "/healthz/ping", "/livez/ping", "/readyz/ping", "/healthz/nothing", "/readyz?exclude=ping", "/livez?exclude=nothing"} {
		m.get(path)
		m.send("HEAD", path, nil)
	}
}

// paths are those that nothing stands at, and methods that nothing does.
func (m *maker) paths() {
	for _, path := range []string{
		"/", "/nothing", "/api/", "/apis/", "/api/v1/", "/api/v2", "/api/v1/nothing", "/apis/nothing", "/apis/nothing/v1", "/apis/apps", "/apis/apps/", "/apis/apps/v9", "/apis/apps/v1/nothing",
		"/api/v1/namespaces/diff-0", "/api/v1/namespaces/diff-0/", "/api/v1/namespaces/diff-0/nothing", "/api/v1/namespaces/diff-0/nothing/x", "/api/v1/namespaces/diff-0/pods/x/nothing",
		"/api/v1/namespaces/diff-0/nodes", "/api/v1/nodes/x/y/z", "/api/v1/namespaces/absent/configmaps", "/api/v1/namespaces/absent/configmaps/x", "/api/v1/namespaces/A_b/configmaps",
		"/api/v1/namespaces//configmaps", "/api/v1//pods", "//api/v1/pods", "/api/v1/pods/x", "/api/v1/watch/pods?timeoutSeconds=1&resourceVersion=x", "/api/v1/watch/namespaces/diff-0/configmaps?resourceVersion=x",
		"/api/v1/proxy/nodes/x", "/logs/", "/metrics/nothing", "/debug/pprof/nothing", "/openapi", "/openapi/v4", "/apis/apps/v1/namespaces/diff-0/deployments/%00", "/api/v1/namespaces/diff-0/configmaps/..%2f..%2fx",
		"/api/v1/namespaces/diff-0/configmaps/%C3%BC", "/api/v1/namespaces/diff-0/configmaps/x?timeout=x", "/api/v1/namespaces/diff-0/configmaps/x?timeout=-1s", "/api/v1/namespaces/diff-0/configmaps?timeout=1s",
		"/api/v1/componentstatuses/x", "/apis/batch", "/apis/autoscaling", "/swagger.json", "/ui", "/api/v1/namespaces/diff-0/configmaps/" + strings.Repeat("x", 300),
	} {
		m.get(path)
	}
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "FROB", "HEAD"} {
		for _, path := range []string{"/", "/version", "/nothing", "/api/v1/namespaces/diff-0", "/api/v1/namespaces/diff-0/configmaps", "/api/v1/namespaces/diff-0/configmaps/absent", "/openapi/v3", "/healthz", "/apis/apps/v1/deployments", "/api/v1/namespaces/diff-0/pods/x/log"} {
			if method == "DELETE" && strings.HasSuffix(path, "diff-0") {
				continue
			}
			var body any
			if method != "HEAD" && method != "DELETE" && method != "TRACE" {
				body = "{}"
			}
			m.send(method, path, body)
		}
	}
	m.send("POST", "/api/v1/namespaces/diff-0/configmaps", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"huge"},"data":{"x":"`+strings.Repeat("h", 4<<20)+`"}}`)
	m.send("POST", "/api/v1/namespaces/diff-0/configmaps", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"deep"},"data":`+strings.Repeat(`{"a":`, 20000)+"1"+strings.Repeat("}", 20000)+`}`)
	m.send("POST", "/api/v1/namespaces/diff-0/configmaps", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"big"},"data":{"x":"`+strings.Repeat("h", 1100<<10)+`"}}`)
}

// defaults are the objects that every cluster has.
func (m *maker) defaults() {
	for _, path := range []string{
		"/api/v1/namespaces?labelSelector=!stream", "/apis/rbac.authorization.k8s.io/v1/clusterroles", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", "/apis/rbac.authorization.k8s.io/v1/roles",
		"/apis/rbac.authorization.k8s.io/v1/rolebindings", "/apis/scheduling.k8s.io/v1/priorityclasses", "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas",
		"/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations", "/apis/networking.k8s.io/v1/servicecidrs", "/apis/apiregistration.k8s.io/v1/apiservices", "/api/v1/services", "/api/v1/endpoints",
		"/api/v1/configmaps", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies", "/apis/storage.k8s.io/v1/storageclasses", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
	} {
		m.get(path)
		m.get(path, accept(mediaTable))
	}
}

// access is what users may who are not administrators.
func (m *maker) access() {
	role := map[string]any{"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": map[string]any{"name": "some"}, "rules": []any{
		map[string]any{"apiGroups": []any{""}, "resources": []any{"configmaps", "pods"}, "verbs": []any{"get", "list", "create"}},
		map[string]any{"apiGroups": []any{"rbac.authorization.k8s.io"}, "resources": []any{"roles", "rolebindings"}, "verbs": []any{"*"}},
	}}
	rbac := "/apis/rbac.authorization.k8s.io/v1/namespaces/diff-1/"
	m.send("POST", rbac+"roles", role)
	m.send("POST", rbac+"rolebindings", map[string]any{"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": map[string]any{"name": "some"},
		"roleRef": map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "some"}, "subjects": []any{map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}}})
	base := "/api/v1/namespaces/diff-1/"
	m.get(base+"configmaps?labelSelector=stream", as("jane"), until(`"items"`))
	m.get(base+"configmaps/absent", as("jane"))
	m.get(base+"secrets", as("jane"))
	m.get("/api/v1/namespaces/diff-2/configmaps", as("jane"))
	m.send("DELETE", base+"configmaps/x", nil, as("jane"))
	m.send("DELETE", base+"configmaps", nil, as("jane"))
	m.send("PATCH", base+"configmaps/x", "{}", as("jane"), content(mergePatch))
	m.get(base+"pods/x/log", as("jane"))
	m.get(base+"pods/x/exec?command=ls", as("jane"))
	m.get("/version", as("jane"))
	m.get("/metrics", as("jane"))
	m.get("/nothing", as("jane"))
	m.get("/", as("jane"))
	m.get("/api/v1/nodes?watch=1", as("jane"))
	stronger := clone(role).(map[string]any) //nolint:forcetypeassert // as the role
	stronger["metadata"] = map[string]any{"name": "stronger"}
	stronger["rules"] = append(stronger["rules"].([]any), map[string]any{"apiGroups": []any{""}, "resources": []any{"secrets"}, "verbs": []any{"get"}}) //nolint:forcetypeassert // as the role
	m.send("POST", rbac+"roles", stronger, as("jane"))
	m.send("PUT", rbac+"roles/some", stronger, as("jane"))
	m.send("POST", rbac+"rolebindings", map[string]any{"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": map[string]any{"name": "up"},
		"roleRef": map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"}, "subjects": []any{map[string]any{"kind": "User", "name": "jane"}}}, as("jane"))
	m.get(base+"pods", header("Impersonate-Uid", "x"))
	m.get(base+"pods", inGroup("system:masters"))
	m.get(base+"pods", as("root"), inGroup("system:masters"))
	m.get(base+"secrets", as("system:serviceaccount:diff-1:worker"))
	m.get(base+"secrets", as("system:node:portability-node"), inGroup("system:nodes"))
	m.get("/api/v1/nodes/portability-node", as("system:node:portability-node"), inGroup("system:nodes"))
	m.send("PATCH", "/api/v1/nodes/portability-node", `{"metadata":{"labels":{"node-restriction.kubernetes.io/x":"y"}}}`, content(mergePatch), as("system:node:portability-node"), inGroup("system:nodes"))
	for _, review := range []string{"pods", "secrets", "roles"} {
		m.send("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", map[string]any{"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
			"spec": map[string]any{"resourceAttributes": map[string]any{"namespace": "diff-1", "verb": "list", "resource": review}}}, as("jane"))
	}
	m.send("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", map[string]any{"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": map[string]any{"namespace": "diff-1"}}, as("jane"))
	m.send("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}, as("jane"), inGroup("dev"))
	m.get(base+"pods", header("Authorization", "Bearer nonsense"))
	m.get("/healthz", header("Authorization", "Bearer nonsense"))
	m.tokens(base)
}

// tokens are of service accounts.
func (m *maker) tokens(base string) {
	token := func(spec map[string]any, options ...option) int {
		return m.send("POST", base+"serviceaccounts/worker/token", map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}, options...)
	}
	issued := token(map[string]any{"expirationSeconds": 600})
	m.get(base+"pods", header("Authorization", "Bearer "+ref("token", issued)))
	m.send("POST", "/apis/authentication.k8s.io/v1/tokenreviews", map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": map[string]any{"token": ref("token", issued)}})
	m.send("POST", "/apis/authentication.k8s.io/v1/tokenreviews", map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": map[string]any{"token": ref("token", issued), "audiences": []any{"other"}}})
	token(map[string]any{"expirationSeconds": 5})
	token(map[string]any{"audiences": []any{"x"}, "boundObjectRef": map[string]any{"kind": "Pod", "apiVersion": "v1", "name": "absent"}})
	token(map[string]any{"boundObjectRef": map[string]any{"kind": "ConfigMap", "apiVersion": "v1", "name": "x"}})
	token(map[string]any{}, as("jane"))
	m.send("POST", base+"serviceaccounts/absent/token", map[string]any{"spec": map[string]any{}})
}

// podSecurity is what namespaces let in.
func (m *maker) podSecurity() {
	m.send("POST", "/api/v1/namespaces", map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": "diff-secure", "labels": map[string]any{
		"stream": m.tag, "pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted", "pod-security.kubernetes.io/audit": "restricted"}}})
	m.send("POST", "/api/v1/namespaces/diff-secure/serviceaccounts", map[string]any{"metadata": map[string]any{"name": "default"}}, until(`"uid"`))
	pod := func(name string, spec, container map[string]any) map[string]any {
		container["name"], container["image"] = "c", "example.com/x:1"
		spec["containers"] = []any{container}
		return map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": name}, "spec": spec}
	}
	path := "/api/v1/namespaces/diff-secure/pods"
	m.send("POST", path+"?dryRun=All", pod("probe", map[string]any{"hostNetwork": true}, map[string]any{}), until("violates"))
	m.send("POST", path, pod("plain", map[string]any{}, map[string]any{}))
	m.send("POST", path, pod("privileged", map[string]any{}, map[string]any{"securityContext": map[string]any{"privileged": true}}))
	m.send("POST", path, pod("host", map[string]any{"hostPID": true, "volumes": []any{map[string]any{"name": "h", "hostPath": map[string]any{"path": "/"}}}}, map[string]any{"ports": []any{map[string]any{"containerPort": 80, "hostPort": 80}}}))
	m.send("POST", path, pod("caps", map[string]any{}, map[string]any{"securityContext": map[string]any{"capabilities": map[string]any{"add": []any{"SYS_ADMIN", "NET_RAW"}}}}))
	m.send("POST", "/apis/apps/v1/namespaces/diff-secure/deployments", map[string]any{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"name": "d"}, "spec": map[string]any{
		"selector": map[string]any{"matchLabels": map[string]any{"a": "b"}}, "template": map[string]any{"metadata": map[string]any{"labels": map[string]any{"a": "b"}},
			"spec": map[string]any{"containers": []any{map[string]any{"name": "c", "image": "x", "securityContext": map[string]any{"privileged": true}}}}}}})
	m.send("PATCH", "/api/v1/namespaces/diff-secure", `{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"restricted"}}}`, content(mergePatch))
	m.send("PATCH", "/api/v1/namespaces/diff-secure", `{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"nonsense"}}}`, content(mergePatch))
}

// services are what IPs and ports are allocated for.
func (m *maker) services() {
	path := "/api/v1/namespaces/diff-2/services"
	service := func(name string, spec map[string]any) int {
		if spec["ports"] == nil {
			spec["ports"] = []any{map[string]any{"port": 80}}
		}
		return m.send("POST", path, map[string]any{"apiVersion": "v1", "kind": "Service", "metadata": map[string]any{"name": name}, "spec": spec})
	}
	service("fixed", map[string]any{"clusterIP": "10.43.99.99"})
	service("taken", map[string]any{"clusterIP": "10.43.99.99"})
	service("outside", map[string]any{"clusterIP": "10.99.0.1"})
	service("bad-ip", map[string]any{"clusterIP": "x"})
	service("headless", map[string]any{"clusterIP": "None"})
	service("six", map[string]any{"ipFamilies": []any{"IPv6"}})
	service("dual", map[string]any{"ipFamilyPolicy": "RequireDualStack"})
	service("prefer", map[string]any{"ipFamilyPolicy": "PreferDualStack"})
	service("node", map[string]any{"type": "NodePort"})
	service("node-fixed", map[string]any{"type": "NodePort", "ports": []any{map[string]any{"port": 80, "nodePort": 30081}}})
	service("node-taken", map[string]any{"type": "NodePort", "ports": []any{map[string]any{"port": 80, "nodePort": 30081}}})
	service("node-outside", map[string]any{"type": "NodePort", "ports": []any{map[string]any{"port": 80, "nodePort": 80}}})
	service("node-two", map[string]any{"type": "NodePort", "ports": []any{map[string]any{"name": "a", "port": 53, "protocol": "TCP"}, map[string]any{"name": "b", "port": 53, "protocol": "UDP"}}})
	service("balanced", map[string]any{"type": "LoadBalancer", "externalTrafficPolicy": "Local"})
	service("external", map[string]any{"type": "ExternalName", "externalName": "example.com"})
	service("external-bad", map[string]any{"type": "ExternalName"})
	for _, patch := range []string{`{"spec":{"type":"NodePort"}}`, `{"spec":{"type":"ClusterIP"}}`, `{"spec":{"clusterIP":"10.43.99.98"}}`, `{"spec":{"type":"ExternalName","externalName":"a.b"}}`, `{"spec":{"type":"ClusterIP","externalName":null}}`, `{"spec":{"type":"LoadBalancer"}}`} {
		m.send("PATCH", path+"/fixed", patch, content(mergePatch))
	}
	m.send("PATCH", path+"/headless", `{"spec":{"clusterIP":""}}`, content(mergePatch))
	m.send("DELETE", path+"/fixed", nil)
	service("again", map[string]any{"clusterIP": "10.43.99.99"})
	m.get(path, accept(mediaTable))
	m.get("/apis/networking.k8s.io/v1/ipaddresses/10.43.99.99")
	m.get(path + "/again/proxy/x")
	m.send("POST", path+"?dryRun=All", map[string]any{"apiVersion": "v1", "kind": "Service", "metadata": map[string]any{"name": "dry"}, "spec": map[string]any{"type": "NodePort", "ports": []any{map[string]any{"port": 1}}}})
}

func (m *maker) limits() {
	base := "/api/v1/namespaces/diff-3/"
	m.send("POST", base+"limitranges", map[string]any{"apiVersion": "v1", "kind": "LimitRange", "metadata": map[string]any{"name": "lr"}, "spec": map[string]any{"limits": []any{
		map[string]any{"type": "Container", "default": map[string]any{"cpu": "500m"}, "defaultRequest": map[string]any{"cpu": "100m"}, "max": map[string]any{"cpu": "1"}, "min": map[string]any{"cpu": "50m"}, "maxLimitRequestRatio": map[string]any{"cpu": "10"}},
		map[string]any{"type": "PersistentVolumeClaim", "max": map[string]any{"storage": "1Gi"}},
	}}})
	pod := func(name string, requests, limits map[string]any) map[string]any {
		return map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": name}, "spec": map[string]any{"containers": []any{map[string]any{"name": "c", "image": "x",
			"resources": map[string]any{"requests": requests, "limits": limits}}}}}
	}
	m.send("POST", base+"pods?dryRun=All", pod("probe", nil, map[string]any{"cpu": "2"}), until("maximum cpu usage"))
	m.send("POST", base+"pods", pod("defaulted", nil, nil))
	m.send("POST", base+"pods", pod("small", map[string]any{"cpu": "1m"}, nil))
	m.send("POST", base+"pods", pod("ratio", map[string]any{"cpu": "50m"}, map[string]any{"cpu": "900m"}))
	m.send("POST", base+"pods", pod("fine", map[string]any{"cpu": "200m"}, map[string]any{"cpu": "900m"}))
	m.send("POST", base+"persistentvolumeclaims", map[string]any{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": map[string]any{"name": "big"}, "spec": map[string]any{"accessModes": []any{"ReadWriteOnce"}, "resources": map[string]any{"requests": map[string]any{"storage": "5Gi"}}}})
	m.send("DELETE", base+"limitranges/lr", nil)
	m.send("POST", base+"pods?dryRun=All", pod("after", nil, map[string]any{"cpu": "2"}), until(`"uid"`))
}

func (m *maker) quota() {
	base := "/api/v1/namespaces/diff-4/"
	hard := map[string]any{"configmaps": "2", "requests.cpu": "1", "services.nodeports": "0"}
	m.send("POST", base+"resourcequotas", map[string]any{"apiVersion": "v1", "kind": "ResourceQuota", "metadata": map[string]any{"name": "q"}, "spec": map[string]any{"hard": hard}})
	m.send("PATCH", base+"resourcequotas/q/status", map[string]any{"status": map[string]any{"hard": hard, "used": map[string]any{"configmaps": "0", "requests.cpu": "0", "services.nodeports": "0"}}}, content(mergePatch))
	pod := func(name, cpu string) map[string]any {
		c := map[string]any{"name": "c", "image": "x"}
		if cpu != "" {
			c["resources"] = map[string]any{"requests": map[string]any{"cpu": cpu}}
		}
		return map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": name}, "spec": map[string]any{"containers": []any{c}}}
	}
	m.send("POST", base+"pods?dryRun=All", pod("probe", "5"), until("exceeded quota"))
	m.send("POST", base+"pods", pod("nothing-said", ""))
	m.send("POST", base+"pods", pod("half", "600m"))
	m.send("POST", base+"pods", pod("too-much", "600m"))
	for i := range 3 {
		m.send("POST", base+"configmaps", map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "c" + strconv.Itoa(i)}})
	}
	m.send("POST", base+"services", map[string]any{"apiVersion": "v1", "kind": "Service", "metadata": map[string]any{"name": "s"}, "spec": map[string]any{"type": "NodePort", "ports": []any{map[string]any{"port": 80}}}})
	m.get(base + "resourcequotas/q")
	m.get(base+"resourcequotas", accept(mediaTable))
	m.send("DELETE", base+"resourcequotas/q", nil)
	m.send("POST", base+"pods?dryRun=All", pod("after", "5"), until(`"uid"`))
}
