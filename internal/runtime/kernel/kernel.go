// Package kernel tells what a machine's kernel lacks for running pods, before anything is made
// that would have to be taken away again.
package kernel

import (
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// A Feature is something of the kernel's that pods need.
type Feature struct {
	// Name is the feature's, and Remedy what the user can do when it is missing.
	Name, Remedy string
	// Probe returns nil when the feature is there. It changes nothing, except that the kernel
	// may load a module.
	Probe func() error
}

// Features lists what every machine that runs pods needs.
func Features() []Feature {
	features := []Feature{
		{"the overlay file system", "load it with `modprobe overlay`, or boot a kernel with CONFIG_OVERLAY_FS", probeOverlay},
		{"nftables", "load it with `modprobe nf_tables`, or boot a kernel with CONFIG_NF_TABLES", probeNftables},
	}
	for _, ns := range []string{"net", "mnt", "pid", "uts", "ipc"} {
		features = append(features, Feature{ns + " namespaces", "boot a kernel with CONFIG_NAMESPACES", func() error {
			_, err := os.Stat("/proc/self/ns/" + ns)
			return err
		}})
	}
	return features
}

// Check returns nil, or an error for each feature that is missing, in one sentence that says what
// to do. It needs root.
func Check(features []Feature) error {
	var errs []error
	for _, f := range features {
		if err := f.Probe(); err != nil {
			errs = append(errs, fmt.Errorf("this kernel lacks %s (%w): %s", f.Name, err, f.Remedy))
		}
	}
	return errors.Join(errs...)
}

// probeOverlay opens a context of the file system, which mounts nothing but loads the module
// (fsopen(2), Linux 5.2).
func probeOverlay() error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func probeNftables() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	_, err = c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	return err
}
