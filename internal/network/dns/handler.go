package dns

import (
	"context"
	"log/slog"
	"math/rand/v2"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
)

// cluster is the link of the chain that answers for the cluster domain, and for the reverse zones as far
// as the cluster knows the address. Everything else is for next.
type cluster struct {
	backend *backend
	zones   plugin.Zones // the first is the cluster domain
	next    plugin.Handler
	log     *slog.Logger
}

// Name implements plugin.Handler.
func (c *cluster) Name() string { return "cluster" }

// ServeDNS implements plugin.Handler.
func (c *cluster) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	state := request.Request{W: w, Req: r}
	zone := c.zones.Matches(state.Name())
	if zone == "" {
		return c.forward(ctx, w, r)
	}
	state.Zone = zone
	answer, extra, truncated, err := c.records(ctx, zone, state)
	switch {
	case c.backend.IsNameError(err) && zone != c.backend.zone:
		return c.forward(ctx, w, r) // an address that is not the cluster's
	case c.backend.IsNameError(err) && !c.backend.source.Synced():
		return plugin.BackendError(ctx, c.backend, zone, dns.RcodeServerFailure, state, nil, plugin.Options{})
	case c.backend.IsNameError(err):
		return plugin.BackendError(ctx, c.backend, zone, dns.RcodeNameError, state, nil, plugin.Options{})
	case err != nil:
		c.log.Debug("query failed", "name", state.Name(), "type", state.Type(), "error", err)
		return dns.RcodeServerFailure, err
	case len(answer) == 0:
		return plugin.BackendError(ctx, c.backend, zone, dns.RcodeSuccess, state, nil, plugin.Options{})
	}
	// Clients take the first address.
	if t := state.QType(); t == dns.TypeA || t == dns.TypeAAAA || t == dns.TypeSRV {
		shuffle(answer)
	}
	m := new(dns.Msg)
	m.SetReply(r)
	m.Authoritative, m.Truncated = true, truncated
	m.Answer, m.Extra = answer, extra
	if err := w.WriteMsg(m); err != nil {
		c.log.Debug("answer not sent", "name", state.Name(), "error", err)
	}
	return dns.RcodeSuccess, nil
}

func (c *cluster) records(ctx context.Context, zone string, state request.Request) (answer, extra []dns.RR, truncated bool, err error) {
	b, opt := c.backend, plugin.Options{}
	switch state.QType() {
	case dns.TypeA:
		answer, truncated, err = plugin.A(ctx, b, zone, state, nil, opt)
	case dns.TypeAAAA:
		answer, truncated, err = plugin.AAAA(ctx, b, zone, state, nil, opt)
	case dns.TypeTXT:
		answer, truncated, err = plugin.TXT(ctx, b, zone, state, nil, opt)
	case dns.TypeCNAME:
		answer, err = plugin.CNAME(ctx, b, zone, state, opt)
	case dns.TypeSRV:
		answer, extra, err = plugin.SRV(ctx, b, zone, state, opt)
	case dns.TypePTR:
		answer, err = plugin.PTR(ctx, b, zone, state, opt)
	case dns.TypeSOA:
		if state.Name() == zone {
			answer, err = plugin.SOA(ctx, b, zone, state, opt)
			break
		}
		err = c.exists(ctx, zone, state)
	case dns.TypeNS:
		if state.Name() == zone && zone == b.zone {
			answer, extra, err = plugin.NS(ctx, b, zone, state, opt)
			break
		}
		err = c.exists(ctx, zone, state)
	default:
		err = c.exists(ctx, zone, state)
	}
	return answer, extra, truncated, err
}

// exists tells a name without records of the type from one that is not there.
func (c *cluster) exists(ctx context.Context, zone string, state request.Request) error {
	as := state.NewWithQuestion(state.QName(), dns.TypeA)
	as.Zone = zone
	_, _, err := plugin.A(ctx, c.backend, zone, as, nil, plugin.Options{})
	return err
}

func (c *cluster) forward(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	code, err := plugin.NextOrFailure(c.Name(), c.next, ctx, w, r)
	if err != nil {
		c.log.Debug("query not forwarded", "error", err)
	}
	return code, err
}

// shuffle puts records in random order; CNAMEs stay in front of what they lead to.
func shuffle(records []dns.RR) {
	first := 0
	for first < len(records) && records[first].Header().Rrtype == dns.TypeCNAME {
		first++
	}
	rest := records[first:]
	for _, r := range rest {
		if r.Header().Rrtype == dns.TypeCNAME {
			return
		}
	}
	rand.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
}
