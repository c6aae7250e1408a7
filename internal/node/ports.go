package node

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
)

// kubeletPort is the node API's.
const kubeletPort = 10250

// A port is one that a machine listens on.
type port struct {
	address netip.Addr
	number  int
	// what uses it, and what to do when somebody else does.
	what, remedy string
}

// ports are those that the server will listen on besides the API's, which it takes itself.
func (c *ServerConfig) ports() []port {
	var ports []port
	if len(c.EtcdEndpoints) == 0 {
		ports = append(ports,
			port{c.BindAddress, c.EtcdPeerPort, "etcd's peers", "choose another with --etcd-peer-port"},
			port{c.BindAddress, c.EtcdPeerPort + 1, "the failure detector", "choose another --etcd-peer-port, which is one below it"})
		if c.EtcdClientPort != 0 {
			ports = append(ports, port{netip.AddrFrom4([4]byte{127, 0, 0, 1}), c.EtcdClientPort, "etcd's clients", "choose another with --etcd-client-port"})
		}
	}
	if !c.DisableAgent {
		ports = append(ports, port{c.AdvertiseAddress, kubeletPort, "the node's API", "add --disable agent for a control plane alone"})
	}
	return ports
}

// checkPorts tells of the first port that is taken, or of an address that is not this machine's.
func checkPorts(ports []port) error {
	for _, p := range ports {
		l, err := p.listen()
		if err != nil {
			return err
		}
		_ = l.Close()
	}
	return nil
}

func (p port) listen() (net.Listener, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(p.address.String(), strconv.Itoa(p.number)))
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("port %d of %s, for %s, is taken: end the program that has it (`ss -ltnp` names it), or %s", p.number, p.address, p.what, p.remedy)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("%s is not an address of this machine: choose one that `ip address` shows", p.address)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("port %d, for %s, is for root only: run with sudo, or %s", p.number, p.what, p.remedy)
	case err != nil:
		return nil, fmt.Errorf("listen on port %d of %s, for %s: %w", p.number, p.address, p.what, err)
	}
	return l, nil
}
