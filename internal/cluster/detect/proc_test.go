package detect_test

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
)

// connections counts established connections accepted at an IPv4 address, by /proc/net/tcp.
func connections(host, port string) (int, error) {
	ip := net.ParseIP(host).To4()
	p, err := strconv.Atoi(port)
	if ip == nil || err != nil {
		return 0, fmt.Errorf("no IPv4 address: %s:%s", host, port)
	}
	local := fmt.Sprintf("%02X%02X%02X%02X:%04X", ip[3], ip[2], ip[1], ip[0], p)
	data, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return 0, err
	}
	n := 0
	for _, line := range strings.Split(string(data), "\n") {
		f := strings.Fields(line)
		if len(f) > 3 && f[1] == local && f[3] == "01" {
			n++
		}
	}
	return n, nil
}
