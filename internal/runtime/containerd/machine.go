package containerd

import (
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"golang.org/x/sys/unix"
)

// inspect finds out what the machine can do for containers whose layers lie below dir.
func inspect(dir string) (machine, error) {
	can, err := hasCapability(unix.CAP_SYS_RESOURCE)
	if err != nil {
		return machine{}, fmt.Errorf("inspect this machine: %w", err)
	}
	m := machine{
		canRaisePriority: can,
		appArmor:         appArmorWorks(),
		seLinux:          exists("/sys/fs/selinux/enforce"),
		snapshotter:      "overlayfs",
	}
	if err := overlayutils.Supported(dir); err != nil {
		m.snapshotter = "native"
	}
	return m, nil
}

// hasCapability reports whether this process has a capability in effect.
func hasCapability(capability int) (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false, fmt.Errorf("read capabilities: %w", err)
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0, nil
}

// appArmorWorks reports whether AppArmor is on and profiles can be loaded.
func appArmorWorks() bool {
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if err != nil || !strings.HasPrefix(string(enabled), "Y") {
		return false
	}
	_, err = exec.LookPath("apparmor_parser")
	return err == nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
