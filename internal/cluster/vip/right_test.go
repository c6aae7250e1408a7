package vip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"barque.dev/internal/testkit"
)

func TestRelies(t *testing.T) {
	now := time.Now()
	for name, tt := range map[string]struct {
		asked time.Time
		want  bool
	}{
		"never asked":   {time.Time{}, false},
		"just asked":    {now, true},
		"a moment ago":  {now.Add(-Good + 1), true},
		"too long ago":  {now.Add(-Good), false},
		"before a nap":  {now.Add(-time.Hour), false},
		"the beginning": {now.Add(-1 << 62), false},
	} {
		if got := relies(tt.asked, now); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

// Whatever the order of questions, doubts and answers: who may speak has been confirmed by a question
// that is less than Good old, and not older than the last doubt.
func TestRightNeedsAFreshAnswer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var confirmed, doubted time.Time
		leads := true
		r := &right{log: slog.New(slog.DiscardHandler), confirm: func(_ context.Context, since time.Time) (time.Time, error) {
			if !leads {
				return time.Time{}, errors.New("another leads")
			}
			if age := rapid.Int64Range(0, int64(2*Good)).Draw(t, "remembered"); age > 0 {
				confirmed = time.Now().Add(-time.Duration(age)) // also one that should not be given
				return confirmed, nil
			}
			confirmed = time.Now()
			return confirmed, nil
		}}
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			switch rapid.IntRange(0, 2).Draw(t, "step") {
			case 0:
				leads = !leads
			case 1:
				doubted = time.Now()
				r.doubt()
			case 2:
				before := time.Now()
				if r.stands(t.Context()) && (before.Sub(confirmed) >= Good || confirmed.Before(doubted)) {
					t.Fatalf("it speaks %v after the question, %v after a doubt", before.Sub(confirmed), before.Sub(doubted))
				}
			}
		}
	})
}

// An answer that comes late is none.
func TestRightGivesUpWaiting(t *testing.T) {
	r := &right{log: slog.New(slog.DiscardHandler), confirm: func(ctx context.Context, _ time.Time) (time.Time, error) {
		asked := time.Now()
		<-ctx.Done()
		return asked, nil
	}}
	if r.stands(t.Context()) {
		t.Error("it relies on an answer that took longer than answers are good for")
	}
}

// listener collects who answers for the virtual IP in a network.
type listener struct {
	socket *arpSocket
	hw     [6]byte
}

func listenAt(link string) (*listener, error) {
	l, err := net.InterfaceByName(link)
	if err != nil {
		return nil, err
	}
	socket, err := openSocket(l)
	if err != nil {
		return nil, err
	}
	hw, _ := hardware(l.HardwareAddr)
	return &listener{socket, hw}, nil
}

// ask sends a question for an address.
func (l *listener) ask(target string) error {
	question := packet{op: opRequest, sender: netip.MustParseAddr("10.99.0.100"), senderHW: l.hw, target: netip.MustParseAddr(target)}
	return l.socket.write(question.marshal(broadcast()))
}

// claims returns the hardware addresses that were told for the virtual IP until somebody answers for
// the address end.
func (l *listener) claims(end string) (map[[6]byte]int, error) {
	if err := l.socket.file.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return nil, err
	}
	found := map[[6]byte]int{}
	buffer := make([]byte, 128)
	for {
		n, err := l.socket.read(buffer)
		if err != nil {
			return nil, err
		}
		p, err := parse(buffer[:n])
		switch {
		case err != nil || p.op != opReply:
		case p.sender.String() == address:
			found[p.senderHW]++
		case p.sender.String() == end:
			return found, nil
		}
	}
}

// freeze stops the machine's process, and returns when it has stopped.
func (m *machine) freeze() error {
	if err := m.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	return testkit.Poll(10*time.Second, func() error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.cmd.Process.Pid))
		if err == nil && !strings.Contains(string(stat), ") T ") {
			err = errors.New("it goes on")
		}
		return err
	})
}

// A holder that was frozen while another took the address says nothing when it wakes, although it was
// asked many times meanwhile and does not know yet that it was deposed.
func TestFrozenHolderWakesSilent(t *testing.T) {
	inNetwork(t, func(n network) {
		one, two := n.machine(1), n.machine(2)
		defer one.close()
		defer two.close()
		n.hold(one)
		until(t, one.own)
		if err := one.freeze(); err != nil {
			t.Error(err)
			return
		}
		<-time.After(Good) // no election takes less
		l, err := listenAt("br0")
		if err != nil {
			t.Error(err)
			return
		}
		defer l.socket.close()
		n.hold(two)
		until(t, two.own)
		const questions = 50
		for range questions {
			if err := l.ask(address); err != nil {
				t.Error(err)
			}
		}
		if err := one.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Error(err)
			return
		}
		if err := testkit.Poll(20*time.Second, func() error {
			if n := one.count("refusals"); n < questions {
				return fmt.Errorf("it dealt with %d of %d questions", n, questions)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if err := l.ask(two.own); err != nil {
			t.Error(err)
		}
		found, err := l.claims(two.own)
		if err != nil || len(found) != 1 {
			t.Errorf("%d machines answered for the address, %v", len(found), err)
		}
		if who, err := ask(time.Second); err != nil || who != two.own {
			t.Errorf("%q answers, %v", who, err)
		}
	})
}
