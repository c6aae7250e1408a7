package vip

import (
	"fmt"
	"log/slog"
	"net"

	"github.com/vishvananda/netlink"
)

// keep puts the address back when somebody else deletes it, such as what configures the machine's network anew, until stop is
// called. It waits for the kernel to tell; nothing is asked meanwhile.
func (v *IP) keep(log *slog.Logger) (stop func(), err error) {
	updates, done := make(chan netlink.AddrUpdate, 16), make(chan struct{})
	if err := netlink.AddrSubscribe(updates, done); err != nil {
		return nil, fmt.Errorf("hold virtual IP %s: ask to be told when it is deleted: %w", v.config.Address, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for u := range updates {
			select {
			case <-done: // it is released
				continue
			default:
			}
			if u.NewAddr || !u.LinkAddress.IP.Equal(net.IP(v.config.Address.AsSlice())) {
				continue
			}
			if _, err := v.assign(); err != nil {
				log.Error("the virtual IP was deleted, and can't be put back", "error", err)
				continue
			}
			log.Warn("somebody deleted the virtual IP: it is there again")
		}
	}()
	return func() { close(done); <-ended }, nil
}
