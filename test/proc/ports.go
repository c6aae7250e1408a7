package proc

import (
	"fmt"
	"net"
	"strconv"
)

// Ports finds n free TCP ports of the loopback address that follow each other.
func Ports(n int) ([]string, error) {
search:
	for range 100 {
		var found []string
		next := "0"
		for range n {
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", next))
			if err != nil {
				continue search
			}
			defer func() { _ = l.Close() }()
			port := l.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // of a TCP listener
			found = append(found, strconv.Itoa(port))
			next = strconv.Itoa(port + 1)
		}
		return found, nil
	}
	return nil, fmt.Errorf("no %d free ports that follow each other", n)
}
