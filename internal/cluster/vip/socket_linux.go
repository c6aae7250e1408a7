package vip

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// arpSocket sends and receives ARP frames of one link. The kernel closes it with the process,
// so that a holder that dies falls silent at once.
type arpSocket struct {
	file  *os.File
	index int
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func openSocket(link *net.Interface) (*arpSocket, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons(etherTypeARP)))
	if err != nil {
		return nil, fmt.Errorf("open packet socket on %s: %w", link.Name, err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(etherTypeARP), Ifindex: link.Index}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("bind packet socket to %s: %w", link.Name, err)
	}
	// os.File puts the descriptor under the runtime's poller, so that Close ends a read.
	return &arpSocket{file: os.NewFile(uintptr(fd), "arp:"+link.Name), index: link.Index}, nil
}

// read waits for a frame. Errors of a link that went down are passed over: it may come back.
func (s *arpSocket) read(buffer []byte) (int, error) {
	for {
		n, err := s.file.Read(buffer)
		if errors.Is(err, unix.ENETDOWN) {
			continue
		}
		return n, err
	}
}

func (s *arpSocket) write(frame []byte) error {
	_, err := s.file.Write(frame)
	return err
}

func (s *arpSocket) close() { _ = s.file.Close() }
