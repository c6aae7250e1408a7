package node

import (
	"context"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/admission"
	"barque.dev/internal/auth"
	"barque.dev/internal/auth/rbac"
	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/cluster/vip"
	"barque.dev/internal/controllers"
	"barque.dev/internal/store"
)

// lateReader reads through the server's client, which is made after what needs the reader.
type lateReader struct{ server *Server }

func (r lateReader) Get(ctx context.Context, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
	return r.server.client.Get(ctx, key, obj, opts...)
}

func (r lateReader) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	return r.server.client.List(ctx, list, opts...)
}

// admission is the chain that every change passes.
func (s *Server) admission() admission.Chain {
	return append(admission.Default(lateReader{s}), admission.Plugin{Name: "Escalation", Interface: s.auth.Escalation})
}

// indexes are those that decisions about access look things up by.
func indexes() map[schema.GroupResource]map[string]store.IndexFunc {
	all := map[schema.GroupResource]map[string]store.IndexFunc{}
	for _, ix := range auth.Indexes() {
		if all[ix.Resource] == nil {
			all[ix.Resource] = map[string]store.IndexFunc{}
		}
		all[ix.Resource][ix.Name] = ix.Values
	}
	return all
}

// roleAggregation is the controller of cluster roles that are made of others.
func (s *Server) roleAggregation(c barqueclient.Client) controllers.Controller {
	aggregator := &rbac.Aggregator{Client: c}
	return controllers.Controller{
		Name:    "clusterrole-aggregation",
		Account: "clusterrole-aggregation-controller",
		Watches: []controllers.Watch{{Kind: &rbacv1.ClusterRole{}, Requests: func(barqueclient.Event) []reconcile.Request {
			var roles rbacv1.ClusterRoleList
			if err := s.client.List(context.Background(), &roles); err != nil {
				return nil
			}
			return rbac.Aggregated(roles.Items)
		}}},
		Reconcile: aggregator.Reconcile,
		Workers:   1,
	}
}

// vipPoll is how often it is checked whether this server is still the one to hold the virtual IP.
const vipPoll = 5 * time.Millisecond

// runVIP holds the virtual IP while this server leads and its store is well.
func (s *Server) runVIP(ctx context.Context, ready func()) error {
	ip, err := vip.New(vip.Config{Address: s.cfg.VIP, Log: s.cfg.Log})
	if err != nil {
		return err
	}
	return ip.Run(ctx, ready, func(ctx context.Context, hold func(context.Context) error) error {
		for ctx.Err() == nil {
			if !s.fit() {
				sleep(ctx, vipPoll)
				continue
			}
			term, end := context.WithCancel(ctx)
			go func() {
				defer end()
				for term.Err() == nil && s.fit() {
					sleep(term, vipPoll)
				}
			}()
			if err := hold(term); err != nil && term.Err() == nil {
				end()
				return err
			}
			end()
		}
		return nil
	})
}

// fit tells whether this server should answer at the virtual IP.
func (s *Server) fit() bool { return s.leadership.Leading() && s.store.Healthy() == nil }

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
