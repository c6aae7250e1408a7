package integration

import (
	"fmt"
	"strings"
	"testing"
)

// Resources reach the kernel: shares, quotas and limits in the container's cgroup.
func TestResources(t *testing.T) {
	s := newScene(t)
	s.pod("oom", `
restartPolicy: Never
containers:
- name: c
  command: [sh, -c, "dd if=/dev/zero of=/dev/null bs=200M count=1"]
  resources: {limits: {memory: 32Mi}}
`)
	out := s.script("limited", `
containers:
- name: c
  command: [sh, -c, "cd /sys/fs/cgroup; if test -f cpu.max; then cat cpu.max memory.max; else cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu/cpu.shares memory/memory.limit_in_bytes; fi"]
  resources: {requests: {cpu: 250m, memory: 16Mi}, limits: {cpu: 500m, memory: 48Mi}}
`)
	switch got := strings.Join(strings.Fields(out), " "); got {
	case "50000 100000 256 50331648", "50000 100000 50331648":
	default:
		t.Errorf("cgroup: %s", got)
	}
	pod := s.until("oom", "ends", podEnded)
	if st := statusOf(pod, "c").State.Terminated; st == nil || st.Reason != "OOMKilled" || st.ExitCode != 137 {
		t.Errorf("out of memory: %s", describe(pod))
	}
	for name, class := range map[string]string{"{}": "BestEffort", "{requests: {cpu: 1m}}": "Burstable", "{limits: {cpu: 10m, memory: 16Mi}}": "Guaranteed"} {
		p := s.pod("qos-"+strings.ToLower(class), "containers: [{name: c, command: [sleep, '1000'], resources: "+name+"}]")
		same(t, "class at once", string(p.Status.QOSClass), class)
		p = s.until(p.Name, "runs", podReady)
		same(t, "class", string(p.Status.QOSClass), class)
	}
}

// What a security context asks for is what the container's process has.
func TestSecurityContext(t *testing.T) {
	s := newScene(t)
	const status = `grep -E "^(CapEff|NoNewPrivs|Seccomp):" /proc/self/status`
	tests := []struct {
		name, pod, container, command string
		want                          []string
	}{
		{name: "user", pod: "{runAsUser: 1000, runAsGroup: 2000, supplementalGroups: [4000], fsGroup: 3000}", container: "{}",
			command: `id -u; id -g; id -G; stat -c "%g %a" /v; touch /v/f && stat -c %g /v/f`,
			want:    []string{"1000", "2000", "2000 3000 4000", "3000 2777", "3000"}},
		{name: "readonly", container: "{readOnlyRootFilesystem: true}", command: "touch /f; touch /v/f && echo writes", want: []string{"Read-only", "writes"}},
		{name: "default", container: "{}", command: status, want: []string{"CapEff:\t00000000a80425fb", "NoNewPrivs:\t0", "Seccomp:\t0"}},
		{name: "dropped", container: "{allowPrivilegeEscalation: false, capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}, seccompProfile: {type: RuntimeDefault}}",
			command: status, want: []string{"CapEff:\t0000000000000400", "NoNewPrivs:\t1", "Seccomp:\t2"}},
		{name: "privileged", container: "{privileged: true}", command: status + "; test -e /dev/kmsg && echo devices", want: []string{"CapEff:\t" + boundingSet(t), "devices"}},
	}
	for _, tt := range tests {
		pod := tt.pod
		if pod == "" {
			pod = "{}"
		}
		s.pod(tt.name, fmt.Sprintf(`
restartPolicy: Never
securityContext: %s
volumes: [{name: v, emptyDir: {}}]
containers: [{name: c, command: [sh, -c, %q], securityContext: %s, volumeMounts: [{name: v, mountPath: /v}]}]
`, pod, tt.command+"; true", tt.container))
	}
	s.pod("root", `
securityContext: {runAsNonRoot: true}
containers: [{name: c, command: [sleep, "1000"]}]
`)
	for _, tt := range tests {
		s.until(tt.name, "ends", podEnded)
		out := s.logs(tt.name, "c")
		for _, want := range tt.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: %q is missing in %q", tt.name, want, out)
			}
		}
	}
	pod := s.until("root", "is refused", waiting("c", "CreateContainerConfigError"))
	if m := statusOf(pod, "c").State.Waiting.Message; !strings.Contains(m, "container has runAsNonRoot and image will run as root") {
		t.Errorf("root: %q", m)
	}
}

// Namespaces that pods share with the machine or between containers.
func TestSharedNamespaces(t *testing.T) {
	s := newScene(t)
	s.pod("net", `{hostNetwork: true, containers: [{name: c, command: [sleep, "1000"]}]}`)
	s.pod("pids", `
shareProcessNamespace: true
containers: [{name: a, command: [sleep, "1111"]}, {name: b, command: [sleep, "2222"]}]
`)
	s.pod("apart", `containers: [{name: a, command: [sleep, "1111"]}, {name: b, command: [sleep, "2222"]}]`)
	s.pod("named", `
hostname: wheel
subdomain: house
hostAliases: [{ip: 192.0.2.7, hostnames: [seven.example, seven]}]
containers: [{name: c, command: [sleep, "1000"]}]
`)
	pod := s.until("net", "runs", podReady)
	same(t, "address", pod.Status.PodIP, pod.Status.HostIP)
	if out := s.run("net", "c", "ip", "addr"); !strings.Contains(out, pod.Status.HostIP+"/") {
		t.Errorf("the machine's network is not the pod's:\n%s", out)
	}
	same(t, "the machine's name", s.run("net", "c", "hostname"), pod.Spec.NodeName)
	s.until("pids", "runs", podReady)
	if out := s.run("pids", "a", "ps"); !strings.Contains(out, "sleep 2222") {
		t.Errorf("shared process namespace:\n%s", out)
	}
	s.until("apart", "runs", podReady)
	if out := s.run("apart", "a", "ps"); strings.Contains(out, "sleep 2222") {
		t.Errorf("process namespaces of their own:\n%s", out)
	}
	s.until("named", "runs", podReady)
	same(t, "host name", s.run("named", "c", "hostname"), "wheel")
	hosts := strings.Join(strings.Fields(s.run("named", "c", "cat", "/etc/hosts")), " ")
	for _, want := range []string{"192.0.2.7 seven.example seven", "wheel.house." + s.ns + ".svc.cluster.local wheel"} {
		if !strings.Contains(hosts, want) {
			t.Errorf("hosts lacks %q: %s", want, hosts)
		}
	}
}

// boundingSet is every capability that this machine has to give, in hexadecimal.
func boundingSet(t *testing.T) string {
	t.Helper()
	for _, line := range strings.Split(readFile(t, "/proc/self/status"), "\n") {
		if set, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			return strings.TrimSpace(set)
		}
	}
	t.Fatal("no bounding set in /proc/self/status")
	return ""
}
