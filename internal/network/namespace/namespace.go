// Package namespace runs code inside a Linux network namespace.
//
// A barque server normally lives in one network namespace with all its threads, and the zero
// [Namespace] stands for it. An explicit one lets a single process look after another
// namespace: the CNI plugin does that for pods.
package namespace

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Namespace names a network namespace. The zero value is the caller's own. It is immutable
// and may be shared; the namespace itself lives as long as something else holds it.
type Namespace struct {
	path string
}

// At returns the namespace whose handle is bound at path, such as /run/netns/blue or
// /proc/12/ns/net. An empty path means the caller's own namespace.
func At(path string) Namespace { return Namespace{path: path} }

// Path is the path given to [At].
func (n Namespace) Path() string { return n.path }

// Do runs f on a thread that is inside the namespace. f must not start goroutines that rely on the
// namespace; sockets it opens stay in the namespace for good.
func (n Namespace) Do(f func() error) error {
	if n.path == "" {
		return f()
	}
	target, err := os.Open(n.path)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer target.Close()

	runtime.LockOSThread()
	origin, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer origin.Close()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", n.path, err)
	}
	ferr := f()
	if err := unix.Setns(int(origin.Fd()), unix.CLONE_NEWNET); err != nil {
		// The thread stays locked, so that the runtime ends it with its goroutine
		// rather than run others in the wrong namespace.
		return errors.Join(ferr, fmt.Errorf("leave network namespace %s: %w", n.path, err))
	}
	runtime.UnlockOSThread()
	return ferr
}

// Netlink opens a route netlink handle inside the namespace. The caller closes it.
func (n Namespace) Netlink() (*netlink.Handle, error) {
	return n.netlink(unix.NETLINK_ROUTE)
}

// Netfilter opens a netfilter netlink handle (connection tracking) inside the namespace. The
// caller closes it.
func (n Namespace) Netfilter() (*netlink.Handle, error) {
	return n.netlink(unix.NETLINK_NETFILTER)
}

func (n Namespace) netlink(family int) (*netlink.Handle, error) {
	var h *netlink.Handle
	err := n.Do(func() error {
		var err error
		h, err = netlink.NewHandle(family)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return h, nil
}

// SetSysctl writes a kernel setting of the namespace, named as sysctl(8) names it with slashes,
// such as "net/ipv4/ip_forward". A setting that already has the value is not written, so
// that a read-only /proc/sys with the right contents is good enough.
func (n Namespace) SetSysctl(name, value string) error {
	return n.Do(func() error {
		path := "/proc/sys/" + name
		have, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read sysctl %s: %w", name, err)
		}
		if strings.TrimSpace(string(have)) == value {
			return nil
		}
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			return fmt.Errorf("set sysctl %s to %s: %w", name, value, err)
		}
		return nil
	})
}
