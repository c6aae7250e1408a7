package local

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
)

// checkKernel tells what this machine's kernel lacks for a local cluster.
func checkKernel() error {
	if _, _, err := cgroupMounts(); err != nil {
		return err
	}
	filesystems, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return fmt.Errorf("list the kernel's file systems: %w", err)
	}
	if !bytes.Contains(filesystems, []byte("\toverlay\n")) {
		return errors.New("this kernel has no overlay file system: load the module with `modprobe overlay`")
	}
	for _, path := range []string{"/proc/self/ns/net", "/proc/self/ns/uts", "/proc/self/ns/pid", "/proc/self/ns/mnt"} {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("this kernel lacks namespaces (%s): use one built with CONFIG_NAMESPACES", path)
		}
	}
	if _, err := netlink.LinkList(); err != nil {
		return fmt.Errorf("this kernel does not answer netlink: %w", err)
	}
	return nil
}
