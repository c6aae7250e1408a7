package network

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"barque.dev/internal/network/cni"
	"barque.dev/internal/network/proxy"
	"github.com/fsnotify/fsnotify"
	"k8s.io/apimachinery/pkg/types"
)

// followLeases keeps the proxy's host ports in line with the leases that the CNI plugin writes, and
// frees leaked ones now and then.
func (n *Network) followLeases(ctx context.Context) error {
	store, err := cni.OpenStore(n.cfg.StateDir)
	if err != nil {
		return err
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch leases: %w", err)
	}
	defer watcher.Close()
	if err := watcher.Add(store.LeaseDir()); err != nil {
		return fmt.Errorf("watch leases: %w", err)
	}
	n.collect()
	n.readLeases(store)
	collect := time.NewTicker(collectInterval)
	defer collect.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-collect.C:
			n.collect()
		case event, ok := <-watcher.Events:
			if !ok {
				return nil
			}
			if strings.HasPrefix(filepath.Base(event.Name), ".") {
				continue // a file that is being written
			}
			n.readLeases(store)
		case err, ok := <-watcher.Errors:
			if !ok {
				return nil
			}
			// Events may have been lost.
			n.cfg.Log.Warn("watch leases", "error", err)
			n.readLeases(store)
		}
	}
}

func (n *Network) readLeases(store *cni.Store) {
	leases, err := store.Leases()
	if err != nil {
		n.cfg.Log.Error("host ports not applied", "error", err)
		return
	}
	n.proxy.SetHostPorts(hostPorts(leases))
}

func (n *Network) collect() {
	gone, err := cni.Plugin{Host: n.ns}.CollectOrphans(n.cfg.StateDir, cni.OrphanGrace)
	for _, l := range gone {
		n.cfg.Log.Info("leaked pod address freed", "address", l.Address, "namespace", l.Namespace, "pod", l.Pod)
	}
	if err != nil {
		n.cfg.Log.Warn("free leaked pod addresses", "error", err)
	}
}

// hostPorts lists the host ports of all leases.
func hostPorts(leases []cni.Lease) []proxy.HostPort {
	var ports []proxy.HostPort
	for _, l := range leases {
		for _, m := range l.PortMappings {
			if m.HostPort == 0 {
				continue
			}
			p := proxy.HostPort{
				Pod:      types.NamespacedName{Namespace: l.Namespace, Name: l.Pod},
				HostPort: m.HostPort,
				Target:   netip.AddrPortFrom(l.Address, m.ContainerPort),
			}
			switch strings.ToLower(m.Protocol) {
			case "", "tcp":
				p.Protocol = proxy.TCP
			case "udp":
				p.Protocol = proxy.UDP
			case "sctp":
				p.Protocol = proxy.SCTP
			default:
				continue
			}
			if m.HostIP != "" {
				ip, err := netip.ParseAddr(m.HostIP)
				if err != nil || !ip.Is4() {
					continue // IPv6 host addresses have no pod address to go to
				}
				p.HostIP = ip
			}
			ports = append(ports, p)
		}
	}
	return ports
}
