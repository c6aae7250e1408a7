// Package detect finds out that raft's leader is gone within milliseconds, and lets raft elect
// another at once, while raft's own timers stay long enough for a disk that stalls.
//
// A follower holds a connection to the leader's process: when it breaks and dialling again is
// refused, the process is dead. And it sends ICMP echoes, which the leader's kernel answers
// however busy the process is: when they cease, the machine or the link is gone. A prober that
// was late itself draws no conclusion.
//
// A follower that suspects the leader forgets it ([etcd.Member.ForgetLeader]), which lets it
// grant pre-votes, and then starts raft's ordinary campaign, one follower after the other by rank. A
// quorum has to have forgotten the leader for anybody to win, so one follower's error, or cut
// cable, deposes nobody. It does not see a process that hangs: there raft's timers decide.
package detect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"time"

	"barque.dev/internal/store/etcd"
)

// Member is what the detector needs of [etcd.Member].
type Member interface {
	ID() uint64
	Leader() uint64
	LeaderChanged() <-chan struct{}
	Members() []etcd.MemberInfo
	IsLearner() bool
	ForgetLeader(ctx context.Context, leader uint64) error
	Campaign(ctx context.Context) error
}

var _ Member = (*etcd.Member)(nil)

// Config is what a detector needs. Zero times take the defaults.
type Config struct {
	Member Member

	// Listen is where the other members' detectors connect to, such as ":2381". A member's
	// is found at its peer URL's host and the port of AddressOf.
	Listen string
	// AddressOf gives the listener's address of another member; nil: the host of its peer
	// URL, and that URL's port plus one.
	AddressOf func(etcd.MemberInfo) (string, error)

	// Interval (25 ms) is between echoes; Silence, by default the constant, is how long none is
	// answered before the machine counts as gone. On a LAN less than 50 ms gains nothing.
	Interval time.Duration
	Silence  time.Duration

	Log *slog.Logger
}

// Silence is how long a leader's machine answers no echo before its followers elect another.
const Silence = 100 * time.Millisecond

const (
	defaultInterval = 25 * time.Millisecond

	// firstCampaign is given to the others to forget the leader too; each rank waits
	// rankPause more, which is longer than a campaign takes.
	firstCampaign = 3 * time.Millisecond
	rankPause     = 15 * time.Millisecond
	// campaignAgain is between campaigns, of which there are several when votes are split
	// or the others were slower to suspect. After campaignFor raft's own timers have taken over.
	campaignAgain = 50 * time.Millisecond
	campaignFor   = 1500 * time.Millisecond
)

// A Detector watches whoever leads.
type Detector struct {
	cfg      Config
	log      *slog.Logger
	listener net.Listener
	pinger   *pinger // nil without permission for ICMP
	trust    trust
}

// New opens the listener. Run must follow.
func New(cfg Config) (*Detector, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.AddressOf == nil {
		cfg.AddressOf = besidePeer
	}
	if cfg.Interval == 0 {
		cfg.Interval = defaultInterval
	}
	if cfg.Silence == 0 {
		cfg.Silence = Silence
	}
	if cfg.Silence < 2*cfg.Interval {
		return nil, fmt.Errorf("detector: a silence of %v is less than two intervals of %v", cfg.Silence, cfg.Interval)
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("detector: %w", err)
	}
	d := &Detector{cfg: cfg, log: cfg.Log, listener: l}
	if d.pinger, err = newPinger(); err != nil {
		d.log.Warn("no permission for ICMP echo: the loss of a machine is left to raft's timers", "error", err)
	}
	return d, nil
}

// Addr is where the detector listens.
func (d *Detector) Addr() net.Addr { return d.listener.Addr() }

// besidePeer is the default of AddressOf.
func besidePeer(m etcd.MemberInfo) (string, error) {
	if len(m.PeerURLs) == 0 {
		return "", fmt.Errorf("member %x has no peer URL", m.ID)
	}
	u, err := url.Parse(m.PeerURLs[0])
	if err != nil {
		return "", err
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		return "", fmt.Errorf("peer URL %s: port: %w", m.PeerURLs[0], err)
	}
	return net.JoinHostPort(u.Hostname(), strconv.Itoa(port+1)), nil
}

// Run watches until ctx ends.
func (d *Detector) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { d.hold(ctx) })
	defer func() {
		cancel()
		d.listener.Close()
		if d.pinger != nil {
			d.pinger.close()
		}
		wg.Wait()
	}()
	for ctx.Err() == nil {
		changed := d.cfg.Member.LeaderChanged()
		leader := d.cfg.Member.Leader()
		if leader == 0 || leader == d.cfg.Member.ID() || d.cfg.Member.IsLearner() {
			waitFor(ctx, changed, idlePoll)
			continue
		}
		if cause := d.watch(ctx, leader); cause != nil && ctx.Err() == nil {
			d.suspect(ctx, leader, cause)
		}
	}
	return nil
}

// idlePoll is how often to look for something to watch, beside being told of new leaders.
const idlePoll = 250 * time.Millisecond

func waitFor(ctx context.Context, changed <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	case <-ctx.Done():
	}
}

// watch returns why leader must be gone, or nil when there is another leader or ctx ended.
func (d *Detector) watch(ctx context.Context, leader uint64) error {
	member, ok := find(d.cfg.Member.Members(), leader)
	if !ok {
		waitFor(ctx, nil, idlePoll)
		return nil
	}
	address, err := d.cfg.AddressOf(member)
	if err != nil {
		d.log.Warn("the leader can't be watched", "leader", member.Name, "error", err)
		waitFor(ctx, nil, time.Second)
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	refused := make(chan error, 1)
	wg.Go(func() { holdOn(ctx, address, refused) })

	w := window{interval: d.cfg.Interval, silence: d.cfg.Silence}
	ping := d.target(ctx, address)
	tick := time.NewTicker(d.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case cause := <-refused:
			return cause
		case <-tick.C:
			if now := d.cfg.Member.Leader(); now != leader {
				return nil
			}
			if ping != nil {
				if w.tick(time.Now(), ping.replies()) {
					return fmt.Errorf("no answer to echoes for %v", d.cfg.Silence)
				}
				ping.send()
			}
		}
	}
}

func find(members []etcd.MemberInfo, id uint64) (etcd.MemberInfo, bool) {
	for _, m := range members {
		if m.ID == id {
			return m, true
		}
	}
	return etcd.MemberInfo{}, false
}

// target prepares echoes to the host of address, or returns nil.
func (d *Detector) target(ctx context.Context, address string) *target {
	if d.pinger == nil {
		return nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", host)
	if err != nil || len(addrs) == 0 {
		d.log.Debug("the leader gets no echoes", "address", address, "error", err)
		return nil
	}
	return d.pinger.target(netip.AddrFrom4(addrs[0].As4()))
}

// suspect forgets the leader and campaigns until there is one.
func (d *Detector) suspect(ctx context.Context, leader uint64, cause error) {
	now := time.Now()
	if !d.trust.suspects(leader, now) {
		waitFor(ctx, d.cfg.Member.LeaderChanged(), idlePoll)
		return
	}
	log := d.log.With("lost", fmt.Sprintf("%x", leader))
	if member, ok := find(d.cfg.Member.Members(), leader); ok && member.Name != "" {
		log = d.log.With("lost", member.Name)
	}
	log.Warn("the leader is gone", "cause", cause)
	if err := d.cfg.Member.ForgetLeader(ctx, leader); err != nil {
		log.Warn("the leader can't be forgotten", "error", err)
		return
	}
	rank := rank(d.cfg.Member.Members(), leader, d.cfg.Member.ID())
	pause := firstCampaign + time.Duration(rank)*rankPause
	for time.Since(now) < campaignFor {
		waitFor(ctx, nil, pause)
		switch found := d.cfg.Member.Leader(); {
		case ctx.Err() != nil:
			return
		case found == leader:
			d.trust.wasWrong(leader, time.Now())
			log.Warn("the leader is still there", "after", time.Since(now))
			return
		case found != 0:
			log.Info("there is another leader", "after", time.Since(now))
			return
		}
		if err := d.cfg.Member.Campaign(ctx); err != nil && !errors.Is(err, context.Canceled) {
			log.Warn("campaign", "error", err)
		}
		pause = campaignAgain + time.Duration(rank)*rankPause
	}
}
