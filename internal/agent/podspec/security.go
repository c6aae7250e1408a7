package podspec

import (
	"errors"
	"fmt"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ErrRunAsNonRoot is why a container that must not run as root does not run.
var ErrRunAsNonRoot = errors.New("container has runAsNonRoot")

// ImageUser is the user that an image says its containers run as: a number or a name, or neither.
type ImageUser struct {
	UID  *int64
	Name string
}

// effective is a container's security context on top of its pod's.
type effective struct {
	runAsUser, runAsGroup *int64
	nonRoot               bool
	seLinux               *corev1.SELinuxOptions
	seccomp               *corev1.SeccompProfile
	apparmor              *corev1.AppArmorProfile
}

func effectiveOf(pod *corev1.Pod, c *corev1.Container) effective {
	var e effective
	if p := pod.Spec.SecurityContext; p != nil {
		e = effective{runAsUser: p.RunAsUser, runAsGroup: p.RunAsGroup, seLinux: p.SELinuxOptions, seccomp: p.SeccompProfile, apparmor: p.AppArmorProfile}
		e.nonRoot = p.RunAsNonRoot != nil && *p.RunAsNonRoot
	}
	s := c.SecurityContext
	if s == nil {
		return e
	}
	if s.RunAsUser != nil {
		e.runAsUser = s.RunAsUser
	}
	if s.RunAsGroup != nil {
		e.runAsGroup = s.RunAsGroup
	}
	if s.RunAsNonRoot != nil {
		e.nonRoot = *s.RunAsNonRoot
	}
	if s.SELinuxOptions != nil {
		e.seLinux = s.SELinuxOptions
	}
	if s.SeccompProfile != nil {
		e.seccomp = s.SeccompProfile
	}
	if s.AppArmorProfile != nil {
		e.apparmor = s.AppArmorProfile
	}
	return e
}

// VerifyNonRoot checks a container that must not run as root against the user it would run as.
func VerifyNonRoot(pod *corev1.Pod, c *corev1.Container, image ImageUser) error {
	e := effectiveOf(pod, c)
	switch {
	case !e.nonRoot:
		return nil
	case e.runAsUser != nil:
		if *e.runAsUser == 0 {
			return fmt.Errorf("%w and runAsUser is root (pod: %q, container: %s)", ErrRunAsNonRoot, FullName(pod), c.Name)
		}
		return nil
	case image.UID != nil:
		if *image.UID == 0 {
			return fmt.Errorf("%w and image will run as root (pod: %q, container: %s)", ErrRunAsNonRoot, FullName(pod), c.Name)
		}
		return nil
	case image.Name != "":
		return fmt.Errorf("%w and image has non-numeric user (%s), cannot verify user is non-root (pod: %q, container: %s)", ErrRunAsNonRoot, image.Name, FullName(pod), c.Name)
	default:
		return fmt.Errorf("%w and image will run as root (pod: %q, container: %s)", ErrRunAsNonRoot, FullName(pod), c.Name)
	}
}

// paths in /proc and /sys that a container does not see or cannot write, as every runtime has them.
func maskedPaths() []string {
	return []string{"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
		"/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware"}
}

func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// ContainerSecurity returns a container's security context as the runtime is told it. target is the
// id of the container whose process namespace an ephemeral container joins.
func ContainerSecurity(pod *corev1.Pod, c *corev1.Container, image ImageUser, seccompRoot, target string) *runtimeapi.LinuxContainerSecurityContext {
	e := effectiveOf(pod, c)
	out := &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: namespaces(pod),
		MaskedPaths:      maskedPaths(),
		ReadonlyPaths:    readonlyPaths(),
		Seccomp:          seccomp(e.seccomp, seccompRoot),
		Apparmor:         appArmor(e.apparmor),
	}
	if target != "" {
		out.NamespaceOptions.Pid, out.NamespaceOptions.TargetId = runtimeapi.NamespaceMode_TARGET, target
	}
	switch {
	case e.runAsUser != nil:
		out.RunAsUser = &runtimeapi.Int64Value{Value: *e.runAsUser}
	case image.UID != nil:
		out.RunAsUser = &runtimeapi.Int64Value{Value: *image.UID}
	default:
		out.RunAsUsername = image.Name
	}
	if e.runAsGroup != nil && (out.RunAsUser != nil || out.RunAsUsername != "") {
		out.RunAsGroup = &runtimeapi.Int64Value{Value: *e.runAsGroup}
	}
	if e.seLinux != nil {
		out.SelinuxOptions = &runtimeapi.SELinuxOption{User: e.seLinux.User, Role: e.seLinux.Role, Type: e.seLinux.Type, Level: e.seLinux.Level}
	}
	out.SupplementalGroups, out.SupplementalGroupsPolicy = groups(pod)
	if s := c.SecurityContext; s != nil {
		if s.Capabilities != nil {
			out.Capabilities = &runtimeapi.Capability{}
			for _, k := range s.Capabilities.Add {
				out.Capabilities.AddCapabilities = append(out.Capabilities.AddCapabilities, string(k))
			}
			for _, k := range s.Capabilities.Drop {
				out.Capabilities.DropCapabilities = append(out.Capabilities.DropCapabilities, string(k))
			}
		}
		out.Privileged = s.Privileged != nil && *s.Privileged
		out.ReadonlyRootfs = s.ReadOnlyRootFilesystem != nil && *s.ReadOnlyRootFilesystem
		out.NoNewPrivs = s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation
		if s.ProcMount != nil && *s.ProcMount == corev1.UnmaskedProcMount {
			out.MaskedPaths, out.ReadonlyPaths = []string{}, []string{}
		}
	}
	return out
}

// SandboxSecurity returns the security context of a pod's sandbox.
func SandboxSecurity(pod *corev1.Pod, seccompRoot string) *runtimeapi.LinuxSandboxSecurityContext {
	out := &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: namespaces(pod),
		// The sandbox's own process does nothing: the runtime's profile fits it always.
		Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
	}
	EachContainer(pod, func(c *corev1.Container) bool {
		if s := c.SecurityContext; s != nil && s.Privileged != nil && *s.Privileged {
			out.Privileged = true
		}
		return true
	})
	if p := pod.Spec.SecurityContext; p != nil {
		if p.RunAsUser != nil {
			out.RunAsUser = &runtimeapi.Int64Value{Value: *p.RunAsUser}
			if p.RunAsGroup != nil {
				out.RunAsGroup = &runtimeapi.Int64Value{Value: *p.RunAsGroup}
			}
		}
		if p.SELinuxOptions != nil {
			out.SelinuxOptions = &runtimeapi.SELinuxOption{User: p.SELinuxOptions.User, Role: p.SELinuxOptions.Role, Type: p.SELinuxOptions.Type, Level: p.SELinuxOptions.Level}
		}
		if p.SeccompProfile != nil {
			out.Seccomp = seccomp(p.SeccompProfile, seccompRoot)
		}
	}
	out.SupplementalGroups, out.SupplementalGroupsPolicy = groups(pod)
	return out
}

func groups(pod *corev1.Pod) ([]int64, runtimeapi.SupplementalGroupsPolicy) {
	p := pod.Spec.SecurityContext
	if p == nil {
		return nil, runtimeapi.SupplementalGroupsPolicy_Merge
	}
	var out []int64
	if p.FSGroup != nil {
		out = append(out, *p.FSGroup)
	}
	out = append(out, p.SupplementalGroups...)
	if p.SupplementalGroupsPolicy != nil && *p.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict {
		return out, runtimeapi.SupplementalGroupsPolicy_Strict
	}
	return out, runtimeapi.SupplementalGroupsPolicy_Merge
}

func namespaces(pod *corev1.Pod) *runtimeapi.NamespaceOption {
	mode := func(host bool, otherwise runtimeapi.NamespaceMode) runtimeapi.NamespaceMode {
		if host {
			return runtimeapi.NamespaceMode_NODE
		}
		return otherwise
	}
	pid := runtimeapi.NamespaceMode_CONTAINER
	if share := pod.Spec.ShareProcessNamespace; share != nil && *share {
		pid = runtimeapi.NamespaceMode_POD
	}
	return &runtimeapi.NamespaceOption{
		Network: mode(pod.Spec.HostNetwork, runtimeapi.NamespaceMode_POD),
		Ipc:     mode(pod.Spec.HostIPC, runtimeapi.NamespaceMode_POD),
		Pid:     mode(pod.Spec.HostPID, pid),
	}
}

func seccomp(p *corev1.SeccompProfile, root string) *runtimeapi.SecurityProfile {
	switch {
	case p == nil || p.Type == corev1.SeccompProfileTypeUnconfined:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	case p.Type == corev1.SeccompProfileTypeLocalhost && p.LocalhostProfile != nil:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: filepath.Join(root, filepath.FromSlash(*p.LocalhostProfile))}
	default:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	}
}

func appArmor(p *corev1.AppArmorProfile) *runtimeapi.SecurityProfile {
	if p == nil {
		return nil
	}
	switch p.Type {
	case corev1.AppArmorProfileTypeUnconfined:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	case corev1.AppArmorProfileTypeLocalhost:
		if p.LocalhostProfile != nil {
			return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: *p.LocalhostProfile}
		}
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
}
