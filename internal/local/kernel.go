package local

import (
	"fmt"

	"github.com/vishvananda/netlink"

	"barque.dev/internal/runtime/kernel"
)

// checkKernel tells what this machine's kernel lacks for a local cluster.
func checkKernel() error {
	if _, _, err := cgroupMounts(); err != nil {
		return err
	}
	if _, err := netlink.LinkList(); err != nil {
		return fmt.Errorf("this kernel does not answer netlink: %w", err)
	}
	return kernel.Check(kernel.Features())
}
