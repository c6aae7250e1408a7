package fault

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A relay stands in a cable, between a bridge and a port that was plugged into it, and keeps every frame for a while. It
// does what netem does, which not every kernel has.
//
// It is a pair of links of its own, one end of which is plugged into the bridge in place of the port. Frames that come to the
// other end, or to the port, are read and written by packet sockets (packet(7)). With each goes what the kernel has left
// undone about checksums and segments (PACKET_VNET_HDR), since it does that where a frame leaves the machine, and these never do.
type relay struct {
	port, bridge string
	ends         [2]*os.File
	running      sync.WaitGroup
}

// near and far are the ends' names: the bridge's, and the one that is read.
func (r *relay) near() string { return r.port + "n" }
func (r *relay) far() string  { return r.port + "f" }

// newRelay puts a relay between a port and its bridge. Frames keep their order, and wait for least to most each.
func newRelay(port, bridge string, least, most time.Duration) (*relay, error) {
	r := &relay{port: port, bridge: bridge}
	if err := errors.Join(r.plug(), r.open(), r.enslave(r.port, false)); err != nil {
		return nil, errors.Join(fmt.Errorf("delay what passes %s: %w", port, err), r.close())
	}
	for i, from := range r.ends {
		waiting := make(chan frame, held)
		random := rand.New(rand.NewPCG(0, uint64(i)))
		r.running.Go(func() {
			defer close(waiting)
			take(from, waiting, func() time.Duration { return least + time.Duration(random.Int64N(int64(most-least)+1)) })
		})
		r.running.Go(func() { give(r.ends[1-i], waiting) })
	}
	return r, nil
}

// held bounds the frames that wait in each direction; more are lost, as they are where a line is full.
const held = 4096

// frame is one with its header, and when it goes on.
type frame struct {
	data []byte
	at   time.Time
}

// take reads frames until the end is closed.
func take(from *os.File, waiting chan<- frame, delay func() time.Duration) {
	const most = 1 << 17 // a frame that is yet to be cut into segments, and its header
	buffer := make([]byte, most)
	var last time.Time
	for {
		n, err := from.Read(buffer)
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil:
			continue // the link is down for a moment
		}
		at := time.Now().Add(delay())
		if at.Before(last) {
			at = last
		}
		last = at
		select {
		case waiting <- frame{append([]byte(nil), buffer[:n]...), at}:
		default:
		}
	}
}

// give writes frames at their times. What the other side can't take is lost.
func give(to *os.File, waiting <-chan frame) {
	for f := range waiting {
		time.Sleep(time.Until(f.at))
		_, _ = to.Write(f.data)
	}
}

// plug makes the pair of links and plugs it into the bridge.
func (r *relay) plug() error {
	err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: r.near()}, PeerName: r.far()})
	if err != nil {
		return err
	}
	if err := r.enslave(r.near(), true); err != nil {
		return err
	}
	for _, name := range []string{r.near(), r.far()} {
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(link)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// enslave plugs a link into the bridge, or unplugs it.
func (r *relay) enslave(name string, in bool) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if !in {
		// The machine behind it may ask for this one's addresses here, and is to be answered at the bridge alone.
		return errors.Join(netlink.LinkSetARPOff(link), netlink.LinkSetNoMaster(link))
	}
	bridge, err := netlink.LinkByName(r.bridge)
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetMaster(link, bridge), netlink.LinkSetARPOn(link))
}

// open opens both ends.
func (r *relay) open() error {
	for i, name := range []string{r.port, r.far()} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if name == r.far() {
			if err := netlink.LinkSetARPOff(link); err != nil {
				return err
			}
		}
		if r.ends[i], err = packetSocket(link.Attrs().Index); err != nil {
			return fmt.Errorf("read frames of %s: %w", name, err)
		}
	}
	return nil
}

// packetSocket reads and writes the frames of a link, but not those that this machine sends there itself.
func packetSocket(index int) (*os.File, error) {
	// Nothing is heard before it is bound, since it asks for no protocol.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "packet socket")
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in the network's byte order
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all & 0xffff, Ifindex: index}),
	)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// close takes the relay out of the cable; frames that wait are lost.
func (r *relay) close() error {
	for _, end := range r.ends {
		if end != nil {
			_ = end.Close()
		}
	}
	r.running.Wait()
	var missing netlink.LinkNotFoundError
	link, err := netlink.LinkByName(r.near())
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.As(err, &missing) {
		return fmt.Errorf("take the delay out of %s: %w", r.port, err)
	}
	if err := r.enslave(r.port, true); err != nil && !errors.As(err, &missing) {
		return fmt.Errorf("plug %s in again: %w", r.port, err)
	}
	return nil
}
