package podspec

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// safeSysctl tells whether a pod may set a sysctl: one that the kernel has for each pod apart, and by which a pod
// harms nobody else. They are those that the stock kubelet allows, all of which kernels from 4.15 on have.
func safeSysctl(name string) bool {
	switch name {
	case "kernel.shm_rmid_forced",
		"net.ipv4.ip_local_port_range",
		"net.ipv4.ip_local_reserved_ports",
		"net.ipv4.ip_unprivileged_port_start",
		"net.ipv4.ping_group_range",
		"net.ipv4.tcp_fin_timeout",
		"net.ipv4.tcp_keepalive_intvl",
		"net.ipv4.tcp_keepalive_probes",
		"net.ipv4.tcp_keepalive_time",
		"net.ipv4.tcp_notsent_lowat",
		"net.ipv4.tcp_rmem",
		"net.ipv4.tcp_slow_start_after_idle",
		"net.ipv4.tcp_syncookies",
		"net.ipv4.tcp_wmem":
		return true
	}
	return false
}

// dotted is a safe sysctl's name with dots, for those who write it with slashes; no part of one has a slash in it.
func dotted(name string) string { return strings.ReplaceAll(name, "/", ".") }

// admitSysctls refuses what would reach beyond the pod.
func admitSysctls(pod *corev1.Pod) *Refusal {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	for _, s := range pod.Spec.SecurityContext.Sysctls {
		name := dotted(s.Name)
		why := ""
		switch {
		case !safeSysctl(name):
			why = fmt.Sprintf("%q not allowlisted", name)
		case pod.Spec.HostNetwork && strings.HasPrefix(name, "net."):
			why = fmt.Sprintf("%q not allowed with host network enabled", name)
		case pod.Spec.HostIPC && strings.HasPrefix(name, "kernel."):
			why = fmt.Sprintf("%q not allowed with host ipc enabled", name)
		default:
			continue
		}
		return &Refusal{"SysctlForbidden", "forbidden sysctl: " + why}
	}
	return nil
}
