package podspec_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"pgregory.net/rapid"

	"barque.dev/internal/agent/podspec"
)

type sources map[string]any

func (s sources) ConfigMap(_, name string) (*corev1.ConfigMap, error) {
	if cm, ok := s[name].(*corev1.ConfigMap); ok {
		return cm, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
}

func (s sources) Secret(_, name string) (*corev1.Secret, error) {
	if v, ok := s[name].(*corev1.Secret); ok {
		return v, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
}

func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "1", "B": "$(A)", "E": ""}
	for in, want := range map[string]string{
		"": "", "x": "x", "$(A)": "1", "a$(A)b$(A)": "a1b1", "$(B)": "$(A)", "$(E)": "", "$(NO)": "$(NO)",
		"$$(A)": "$(A)", "$$$(A)": "$1", "$": "$", "$x": "$x", "$(A": "$(A", "$()": "$()", "100$": "100$",
	} {
		if got := podspec.Expand(in, vars); got != want {
			t.Errorf("Expand(%q) = %q, want %q", in, got, want)
		}
	}
	if _, err := podspec.ExpandAll("$(A)$(NO)", vars); err == nil {
		t.Error("a variable that is not set must be an error")
	}
}

func TestExpandLeavesPlainTextAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := strings.ReplaceAll(rapid.String().Draw(t, "s"), "$", "")
		if got := podspec.Expand(s, map[string]string{"A": "1"}); got != s {
			t.Fatalf("%q became %q", s, got)
		}
		// Doubling every $ undoes expansion.
		any := rapid.StringMatching(`[$()A-B]{0,12}`).Draw(t, "any")
		if got := podspec.Expand(strings.ReplaceAll(any, "$", "$$"), map[string]string{"A": "1"}); got != any {
			t.Fatalf("%q became %q", any, got)
		}
	})
}

func service(namespace, name, ip string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: ports}}
}

func TestEnvironment(t *testing.T) {
	yes := true
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u", Labels: map[string]string{"app": "web"}}}
	p.Spec.ServiceAccountName = "sa"
	c := corev1.Container{Name: "c", Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi"), corev1.ResourceCPU: resource.MustParse("1500m")}}}
	c.EnvFrom = []corev1.EnvFromSource{
		{Prefix: "P_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}},
		{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "missing"}, Optional: &yes}},
	}
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
	}
	c.Env = []corev1.EnvVar{
		field("NODE", "spec.nodeName"), field("APP", "metadata.labels['app']"), field("IPS", "status.podIPs"), field("SA", "spec.serviceAccountName"),
		{Name: "MEM", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}}},
		{Name: "CPU", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu"}}},
		{Name: "DISK", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.ephemeral-storage"}}},
		{Name: "KEY", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: "k"}}},
		{Name: "OPT", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}, Key: "no", Optional: &yes}}},
		{Name: "URL", Value: "http://$(DB_SERVICE_HOST):$(DB_SERVICE_PORT)/$(NODE)/$(LATER)"},
		{Name: "LATER", Value: "x"}, {Name: "P_a", Value: "overridden"}, {Name: "DB_PORT", Value: "mine"},
	}
	services := []*corev1.Service{
		service("n", "db", "10.43.0.9", corev1.ServicePort{Name: "pg", Port: 5432, Protocol: corev1.ProtocolTCP}),
		service("n", "headless", corev1.ClusterIPNone, corev1.ServicePort{Port: 1}),
		service("other", "x", "10.43.0.8", corev1.ServicePort{Port: 1}),
		service("default", "kubernetes", "10.43.0.1", corev1.ServicePort{Name: "https", Port: 443}),
	}
	objects := sources{"cm": &corev1.ConfigMap{Data: map[string]string{"a": "1", "b": "2"}}, "s": &corev1.Secret{Data: map[string][]byte{"k": []byte("v")}}}
	facts := podspec.Facts{NodeName: "node", PodIPs: []string{"10.0.0.1", "fd00::1"}, Allocatable: corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse("7")}}
	list, err := podspec.Environment(p, &c, facts, services, objects)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, v := range list {
		if _, twice := got[v.Name]; twice {
			t.Errorf("%s is there twice", v.Name)
		}
		got[v.Name] = v.Value
	}
	for name, want := range map[string]string{
		"NODE": "node", "APP": "web", "IPS": "10.0.0.1,fd00::1", "SA": "sa", "MEM": "64", "CPU": "2", "DISK": "7", "KEY": "v",
		"URL": "http://10.43.0.9:5432/node/$(LATER)", "P_a": "overridden", "P_b": "2", "DB_PORT": "mine",
		"DB_SERVICE_PORT_PG": "5432", "DB_PORT_5432_TCP": "tcp://10.43.0.9:5432", "DB_PORT_5432_TCP_ADDR": "10.43.0.9",
		"KUBERNETES_SERVICE_HOST": "10.43.0.1", "KUBERNETES_SERVICE_PORT": "443", "KUBERNETES_SERVICE_PORT_HTTPS": "443",
	} {
		if got[name] != want {
			t.Errorf("%s = %q, want %q", name, got[name], want)
		}
	}
	for _, name := range []string{"OPT", "X_SERVICE_HOST", "HEADLESS_SERVICE_HOST"} {
		if v, ok := got[name]; ok {
			t.Errorf("%s is set to %q", name, v)
		}
	}
	no := false
	p.Spec.EnableServiceLinks = &no
	vars := podspec.ServiceVars(p, services)
	if !slices.Contains(vars, podspec.Var{Name: "KUBERNETES_SERVICE_HOST", Value: "10.43.0.1"}) || slices.ContainsFunc(vars, func(v podspec.Var) bool { return strings.HasPrefix(v.Name, "DB_") }) {
		t.Errorf("without links: %v", vars)
	}
	c.Env = []corev1.EnvVar{{Name: "X", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: "no"}}}}
	if _, err := podspec.Environment(p, &c, facts, nil, objects); err == nil || err.Error() != "couldn't find key no in Secret n/s" {
		t.Errorf("missing key: %v", err)
	}
}

func TestResolver(t *testing.T) {
	two := "2"
	node, err := podspec.ParseResolver(strings.NewReader("# c\nnameserver 9.9.9.9\nsearch example.com. corp\noptions timeout:3 ndots:1\n"))
	if err != nil {
		t.Fatal(err)
	}
	d := podspec.DNS{ClusterDNS: []string{"10.43.0.10"}, Domain: "cluster.local", Node: node}
	base := func(policy corev1.DNSPolicy, host bool) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n"}}
		p.Spec.DNSPolicy, p.Spec.HostNetwork = policy, host
		return p
	}
	custom := base(corev1.DNSNone, false)
	custom.Spec.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"1.1.1.1"}, Searches: []string{"s"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &two}, {Name: "edns0"}}}
	extended := base(corev1.DNSClusterFirst, false)
	extended.Spec.DNSConfig = custom.Spec.DNSConfig
	cluster := "n.svc.cluster.local svc.cluster.local cluster.local example.com corp"
	for _, tt := range []struct {
		name                       string
		pod                        *corev1.Pod
		servers, searches, options string
	}{
		{"ClusterFirst", base(corev1.DNSClusterFirst, false), "10.43.0.10", cluster, "ndots:5"},
		{"ClusterFirst in the node's network", base(corev1.DNSClusterFirst, true), "9.9.9.9", "example.com corp", "timeout:3 ndots:1"},
		{"ClusterFirstWithHostNet", base(corev1.DNSClusterFirstWithHostNet, true), "10.43.0.10", cluster, "ndots:5"},
		{"Default", base(corev1.DNSDefault, false), "9.9.9.9", "example.com corp", "timeout:3 ndots:1"},
		{"None", custom, "1.1.1.1", "s", "ndots:2 edns0"},
		{"extended", extended, "10.43.0.10 1.1.1.1", cluster + " s", "ndots:2 edns0"},
	} {
		got := d.Resolver(tt.pod)
		if s := strings.Join(got.GetServers(), " "); s != tt.servers {
			t.Errorf("%s: servers %q", tt.name, s)
		}
		if s := strings.Join(got.GetSearches(), " "); s != tt.searches {
			t.Errorf("%s: searches %q", tt.name, s)
		}
		if s := strings.Join(got.GetOptions(), " "); s != tt.options {
			t.Errorf("%s: options %q", tt.name, s)
		}
	}
}

func TestHostnameAndHosts(t *testing.T) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: strings.Repeat("a", 62) + "-b", Namespace: "n"}}
	if host, _ := podspec.Hostname(p, "cluster.local"); host != strings.Repeat("a", 62) {
		t.Errorf("long name: %q", host)
	}
	p.Spec.Hostname, p.Spec.Subdomain = "h", "sub"
	p.Spec.HostAliases = []corev1.HostAlias{{IP: "1.2.3.4", Hostnames: []string{"x", "y"}}}
	hosts := string(podspec.Hosts(p, []string{"10.0.0.1"}, "cluster.local", nil))
	for _, want := range []string{"127.0.0.1\tlocalhost\n", "10.0.0.1\th.sub.n.svc.cluster.local\th\n", "1.2.3.4\tx\ty\n"} {
		if !strings.Contains(hosts, want) {
			t.Errorf("hosts lacks %q:\n%s", want, hosts)
		}
	}
	// What tells a file of the agent's from one that a container brings, and from the node's own.
	const header = "# Kubernetes-managed hosts file."
	if !strings.HasPrefix(hosts, header) {
		t.Errorf("hosts do not begin with %q:\n%s", header, hosts)
	}
	yes := true
	onHost := p.DeepCopy()
	onHost.Spec.HostNetwork = true
	if hosts := string(podspec.Hosts(onHost, nil, "cluster.local", []byte("192.0.2.1\tnode"))); strings.Contains(hosts, header) || !strings.Contains(hosts, "192.0.2.1\tnode\n") {
		t.Errorf("hosts on the node's network:\n%s", hosts)
	}
	p.Spec.SetHostnameAsFQDN = &yes
	if name, err := podspec.SandboxHostname(p, "cluster.local"); err != nil || name != "h.sub.n.svc.cluster.local" {
		t.Errorf("FQDN: %q, %v", name, err)
	}
	p.Spec.Subdomain = strings.Repeat("s", 60)
	if _, err := podspec.SandboxHostname(p, "cluster.local"); err == nil {
		t.Error("a name of more than 64 characters was taken")
	}
}

func TestSecurity(t *testing.T) {
	yes, no, group, user, other := true, false, int64(50), int64(1000), int64(2000)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n"}}
	p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &user, FSGroup: &group, SupplementalGroups: []int64{7}, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
	p.Spec.ShareProcessNamespace = &yes
	c := corev1.Container{Name: "c", SecurityContext: &corev1.SecurityContext{
		RunAsUser: &other, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}, Drop: []corev1.Capability{"ALL"}}}}
	s := podspec.ContainerSecurity(p, &c, podspec.ImageUser{}, "/seccomp", "")
	if s.GetRunAsUser().GetValue() != 2000 || !s.GetNoNewPrivs() || !s.GetReadonlyRootfs() || s.GetPrivileged() || !slices.Equal(s.GetSupplementalGroups(), []int64{50, 7}) {
		t.Errorf("security context %+v", s)
	}
	if s.GetSeccomp().GetProfileType() != runtimeapi.SecurityProfile_RuntimeDefault || s.GetNamespaceOptions().GetPid() != runtimeapi.NamespaceMode_POD || len(s.GetMaskedPaths()) == 0 {
		t.Errorf("security context %+v", s)
	}
	profile := "a/b.json"
	c.SecurityContext.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeLocalhost, LocalhostProfile: &profile}
	if got := podspec.ContainerSecurity(p, &c, podspec.ImageUser{}, "/seccomp", "").GetSeccomp(); got.GetLocalhostRef() != "/seccomp/a/b.json" {
		t.Errorf("seccomp %+v", got)
	}

	root, uid := int64(0), int64(10)
	for _, tt := range []struct {
		user  *int64
		image podspec.ImageUser
		ok    bool
	}{
		{&uid, podspec.ImageUser{UID: &root}, true}, {&root, podspec.ImageUser{UID: &uid}, false},
		{nil, podspec.ImageUser{UID: &uid}, true}, {nil, podspec.ImageUser{UID: &root}, false}, {nil, podspec.ImageUser{Name: "www"}, false},
	} {
		q := &corev1.Pod{}
		q.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: tt.user}
		if err := podspec.VerifyNonRoot(q, &corev1.Container{}, tt.image); (err == nil) != tt.ok || err != nil && !errors.Is(err, podspec.ErrRunAsNonRoot) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

func TestResources(t *testing.T) {
	p := &corev1.Pod{}
	list := func(cpu, memory string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	}
	p.Spec.Containers = []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: list("250m", "1Gi"), Limits: list("500m", "2Gi")}}}
	r := podspec.Resources(p, &p.Spec.Containers[0], 10<<30, true)
	if r.GetCpuShares() != 256 || r.GetCpuQuota() != 50_000 || r.GetCpuPeriod() != 100_000 || r.GetMemoryLimitInBytes() != 2<<30 || r.GetOomScoreAdj() != 900 || r.GetUnified()["memory.oom.group"] != "1" {
		t.Errorf("resources %+v", r)
	}
	if podspec.QOS(p) != corev1.PodQOSBurstable {
		t.Errorf("class %s", podspec.QOS(p))
	}
	p.Spec.Containers[0].Resources.Requests = p.Spec.Containers[0].Resources.Limits
	if podspec.QOS(p) != corev1.PodQOSGuaranteed || podspec.OOMScore(p, &p.Spec.Containers[0], 10<<30) != -997 {
		t.Errorf("class %s", podspec.QOS(p))
	}
	if podspec.QOS(&corev1.Pod{}) != corev1.PodQOSBestEffort {
		t.Error("a pod that asks for nothing is best effort")
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Int64Range(0, 1_000_000).Draw(t, "a"), rapid.Int64Range(0, 1_000_000).Draw(t, "b")
		if a <= b && podspec.Shares(a) > podspec.Shares(b) {
			t.Fatalf("shares of %d above those of %d", a, b)
		}
	})
}

// TestAdmitSysctls: a pod sets what is its own, and nothing that it shares with the node or others.
func TestAdmitSysctls(t *testing.T) {
	for _, tt := range []struct {
		sysctl           string
		hostNet, hostIPC bool
		want             string
	}{
		{sysctl: "net.ipv4.tcp_syncookies"},
		{sysctl: "net/ipv4/tcp_syncookies"},
		{sysctl: "kernel.shm_rmid_forced", hostNet: true},
		{sysctl: "net.ipv4.tcp_syncookies", hostNet: true, want: `forbidden sysctl: "net.ipv4.tcp_syncookies" not allowed with host network enabled`},
		{sysctl: "net/ipv4/tcp_rmem", hostNet: true, want: `forbidden sysctl: "net.ipv4.tcp_rmem" not allowed with host network enabled`},
		{sysctl: "kernel.shm_rmid_forced", hostIPC: true, want: `forbidden sysctl: "kernel.shm_rmid_forced" not allowed with host ipc enabled`},
		{sysctl: "kernel.msgmax", want: `forbidden sysctl: "kernel.msgmax" not allowlisted`},
		{sysctl: "net.ipv4.ip_forward", want: `forbidden sysctl: "net.ipv4.ip_forward" not allowlisted`},
	} {
		p := &corev1.Pod{}
		p.Spec.HostNetwork, p.Spec.HostIPC = tt.hostNet, tt.hostIPC
		p.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: tt.sysctl, Value: "1"}}}
		got := podspec.Admit(p, nil, nil)
		if tt.want == "" && got != nil || tt.want != "" && (got == nil || *got != podspec.Refusal{Reason: "SysctlForbidden", Message: tt.want}) {
			t.Errorf("%+v: %+v", tt, got)
		}
	}
}

// TestUserNamespace: a pod that asks for a user namespace of its own must not run in the node's.
func TestUserNamespace(t *testing.T) {
	for hostUsers, fits := range map[bool]bool{true: true, false: false} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n"}, Spec: corev1.PodSpec{HostUsers: &hostUsers}}
		if _, err := (podspec.Node{}).SandboxConfig(p, 0, "/x"); (err == nil) != fits {
			t.Errorf("hostUsers %v: %v", hostUsers, err)
		}
	}
}

func TestAdmit(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node", Labels: map[string]string{"disk": "ssd"}}}
	node.Status.Allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourcePods: resource.MustParse("2")}
	with := func(cpu string, hostPort int32) *corev1.Pod {
		p := &corev1.Pod{}
		p.Spec.Containers = []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}}, Ports: []corev1.ContainerPort{{ContainerPort: 80, HostPort: hostPort}}}}
		return p
	}
	selective := with("1m", 0)
	selective.Spec.NodeSelector = map[string]string{"disk": "hdd"}
	for _, tt := range []struct {
		name   string
		pod    *corev1.Pod
		others []*corev1.Pod
		want   string
	}{
		{"fits", with("500m", 8080), []*corev1.Pod{with("500m", 8081)}, ""},
		{"CPU", with("600m", 0), []*corev1.Pod{with("500m", 0)}, "OutOfcpu"},
		{"pods", with("1m", 0), []*corev1.Pod{with("1m", 0), with("1m", 0)}, "OutOfpods"},
		{"ports", with("1m", 8080), []*corev1.Pod{with("1m", 8080)}, "NodePorts"},
		{"selector", selective, nil, "NodeAffinity"},
	} {
		got := ""
		if r := podspec.Admit(tt.pod, node, tt.others); r != nil {
			got = r.Reason
			if tt.want == "OutOfcpu" && r.Message != "Node didn't have enough resource: cpu, requested: 600, used: 500, capacity: 1000" {
				t.Errorf("message %q", r.Message)
			}
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	node.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoExecute}}
	if r := podspec.Admit(with("1m", 0), node, nil); r == nil || r.Reason != "TaintToleration" {
		t.Errorf("taint: %+v", r)
	}
}

func TestRunOnce(t *testing.T) {
	yes := true
	owned := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Controller: &yes}}}}
	replica := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Controller: &yes}}}}
	claim := &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{{VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}}}}
	marked := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{podspec.AnnotationRunOnce: "true"}}}
	for pod, want := range map[*corev1.Pod]bool{owned: true, replica: false, claim: true, marked: true, {}: false} {
		if got := podspec.RunOnce(pod); got != want {
			t.Errorf("%+v: %v", pod.ObjectMeta, got)
		}
	}
	config, err := podspec.Node{}.SandboxConfig(owned, 0, "/x")
	if err != nil || config.GetAnnotations()[podspec.AnnotationRunOnce] != "true" {
		t.Errorf("the sandbox does not say so: %v, %v", config.GetAnnotations(), err)
	}
}
